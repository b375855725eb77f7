"""Policies that need no learning."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from torch import Tensor

from seqwm.core.protocols import Policy
from seqwm.core.random import key, numpy_generator
from seqwm.core.tree import flatten, unflatten
from seqwm.core.types import State, TensorTree
from seqwm.envs.scripted import Player

_WHETHER = 1 << 32  # the place of whether to act at random among the streams under a seed, behind the lanes


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


class ScriptedPolicy:
    """Acts as a player of one image does.

    State: seen uint8 [B, H, W, C], the last frame.

    Args:
        player: chooses actions.
    """

    def __init__(self, player: Player) -> None:
        self._player = player

    def initial(self, lanes: int) -> State:
        """Nothing seen."""
        return {"seen": torch.zeros(lanes, *self._player.shape, dtype=torch.uint8)}

    def act(self, state: State, observation: TensorTree, reward: Tensor, first: Tensor) -> tuple[TensorTree, State]:
        """Actions [B] for one frame each."""
        now = next(iter(flatten(observation).values()))
        before = torch.where(first[:, None, None, None], now, state["seen"])
        return torch.from_numpy(self._player.choose(before.cpu().numpy(), now.cpu().numpy())), {"seen": now}


class Distracted:
    """A policy some of whose actions are drawn from the action space instead.

    State: the policy's own, and `drawn_...`, that of `RandomPolicy`.

    Args:
        policy: acts otherwise.
        share: of the actions that are drawn.
        space: of an action.
        seed: of what is drawn; lanes have streams of their own.
    """

    def __init__(self, policy: Policy, share: float, space: Space[Any], seed: int) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share of random actions: found {share}, expected a number from 0 to 1")
        self._policy, self._share, self._seed = policy, share, seed
        self._random = RandomPolicy(space, seed)
        self._whether: list[np.random.Generator] = []

    def initial(self, lanes: int) -> State:
        """Every stream begins anew."""
        self._whether = [numpy_generator(self._seed, _WHETHER, lane) for lane in range(lanes)]
        drawn = {f"drawn_{name}": tensor for name, tensor in self._random.initial(lanes).items()}
        return self._policy.initial(lanes) | drawn

    def act(self, state: State, observation: TensorTree, reward: Tensor, first: Tensor) -> tuple[TensorTree, State]:
        """Actions (leaves [B, ...])."""
        drawn = {name.removeprefix("drawn_"): one for name, one in state.items() if name.startswith("drawn_")}
        own = {name: one for name, one in state.items() if not name.startswith("drawn_")}
        random, _ = self._random.act(drawn, observation, reward, first)
        chosen, own = self._policy.act(own, observation, reward, first)
        instead = torch.tensor([self._whether[lane].random() < self._share for lane in drawn["lane"].tolist()])
        theirs = flatten(random)
        leaves = {
            path: torch.where(instead.view(-1, *[1] * (leaf.ndim - 1)), theirs[path], leaf.cpu())
            for path, leaf in flatten(chosen).items()
        }
        actions: TensorTree = unflatten(leaves)
        return actions, own | {f"drawn_{name}": one for name, one in drawn.items()}
