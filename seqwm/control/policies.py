"""Policies that need no learning."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from torch import Tensor

from seqwm.core.random import key
from seqwm.core.tree import flatten, unflatten
from seqwm.core.types import State, TensorTree


class RandomPolicy:
    """Draws from an action space as the space itself does: uniformly where it is bounded.

    State: lane int64 [B], the number of the stream that a lane draws from, so lanes do not depend on each other.
    """

    def __init__(self, space: Space[Any], seed: int) -> None:
        """Stream i is named by (seed, i)."""
        self._space, self._seed = space, seed
        self._streams: list[Space[Any]] = []

    def initial(self, lanes: int) -> State:
        """Every stream begins anew."""
        self._streams = [deepcopy(self._space) for _ in range(lanes)]
        for lane, stream in enumerate(self._streams):
            stream.seed(key(self._seed, lane) >> 33)
        return {"lane": torch.arange(lanes)}

    def act(self, state: State, observation: TensorTree, reward: Tensor, first: Tensor) -> tuple[TensorTree, State]:
        """Actions (leaves [B, ...]), whatever is observed."""
        drawn = [flatten(self._streams[lane].sample()) for lane in state["lane"].tolist()]
        leaves = {path: torch.from_numpy(np.stack([one[path] for one in drawn])) for path in drawn[0]}
        actions: TensorTree = unflatten(leaves)
        return actions, state


class RandomExplorer:
    """As `RandomPolicy`, but without a memory: it draws from torch's default generator, which a collector seeds.

    State: lane int64 [B], which says how many lanes there are.
    """

    def __init__(self, space: Space[Any]) -> None:
        self._space = deepcopy(space)

    def initial(self, lanes: int) -> State:
        """Nothing but the lanes."""
        return {"lane": torch.arange(lanes)}

    def act(self, state: State, observation: TensorTree, reward: Tensor, first: Tensor) -> tuple[TensorTree, State]:
        """Actions (leaves [B, ...]), whatever is observed."""
        self._space.seed(int(torch.randint(2**31, ())))
        drawn = [flatten(self._space.sample()) for _ in state["lane"]]
        leaves = {path: torch.from_numpy(np.stack([one[path] for one in drawn])) for path in drawn[0]}
        actions: TensorTree = unflatten(leaves)
        return actions, state
