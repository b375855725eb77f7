"""Environments side by side, and the way of a policy's actions into them: what every run of a policy steps through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import Space, spaces
from gymnasium.vector.utils import create_empty_array
from numpy.typing import NDArray

from seqwm.core.errors import RolloutError
from seqwm.core.protocols import Policy
from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.core.tree import flatten, unflatten
from seqwm.core.types import State, TensorTree, Tree


class Lanes(Protocol):
    """Environments side by side, each standing still from its end to its reset: real ones or dreams."""

    num_envs: int
    name: str
    single_observation_space: Space[Any]
    single_action_space: Space[Any]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tree, dict[str, Any]]:
        """Begin an episode in the lanes of `options['reset_mask']`; observations [B, ...]."""
        ...

    def step(
        self, actions: Tree
    ) -> tuple[Tree, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Observations (leaves [B, ...]), rewards, terminations, truncations [B]."""
        ...


@runtime_checkable
class Restorable(Protocol):
    """Environments whose state can be saved."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors in nested dicts, and JSON scalars."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Tree:
        """Go on from there; the observations of all lanes."""
        ...


class Driver:
    """Carries observations to a policy and its actions to the environments, and the policy's state between them."""

    def __init__(self, vector: Lanes, policy: Policy, lanes: int) -> None:
        self._vector, self.policy = vector, policy
        self.state: State = policy.initial(lanes)
        self.device = next((tensor.device for tensor in self.state.values()), torch.device("cpu"))
        self._images = {path: is_image(leaf) for path, leaf in leaf_spaces(vector.single_observation_space).items()}

    def keep(self, going: NDArray[np.bool_]) -> None:
        """Go on with those lanes of the last `act` where `going` is True."""
        index = torch.from_numpy(np.flatnonzero(going)).to(self.device)
        self.state = {name: tensor.index_select(0, index) for name, tensor in self.state.items()}

    def act(
        self, running: NDArray[np.int64], observation: Tree, rewards: NDArray[np.float64], first: NDArray[np.bool_]
    ) -> Tree:
        """Actions for all lanes (zero in those that stand still) from what the running ones see.

        Args:
            running: numbers of the lanes that run, [R].
            observation: of all lanes, leaves [B, ...].
            rewards, first: of the running lanes, [R].
        """
        action, self.state = self.policy.act(
            self.state,
            self._tensors(observation, running),
            torch.from_numpy(rewards.astype(np.float32)).to(self.device),
            torch.from_numpy(first).to(self.device),
        )
        space = self._vector.single_action_space
        actions: Any = create_empty_array(space, self._vector.num_envs, fn=np.zeros)
        chosen, known = flatten(action), leaf_spaces(space)
        for path, leaf in flatten(actions).items():
            leaf[running] = self._usable(chosen[path].cpu().numpy(), known[path], running)
        tree: Tree = actions
        return tree

    def _tensors(self, observation: Tree, running: NDArray[np.int64]) -> TensorTree:
        """The leaves as a `Batch` has them: float32, int64, or uint8 for images."""
        leaves = {}
        for path, leaf in flatten(observation).items():
            own = leaf[running]
            if not self._images[path]:
                own = own.astype(np.float32 if own.dtype.kind == "f" else np.int64, copy=False)
            leaves[path] = torch.from_numpy(own).to(self.device)
        tree: TensorTree = unflatten(leaves)
        return tree

    def _usable(self, chosen: NDArray[Any], space: Any, running: NDArray[np.int64]) -> NDArray[Any]:
        """A leaf of actions that the environments take: numbers, and those of a Box within its bounds."""
        if not isinstance(space, spaces.Box):
            return chosen
        if not np.isfinite(chosen).all():
            lane = int(running[~np.isfinite(chosen).reshape(len(chosen), -1).all(1)][0])
            raise RolloutError(
                f"{self._vector.name}: lane {lane}: the policy's action is not finite; were the weights trained with "
                "losses that were, and are the observations of the kind that it was trained on?"
            )
        clipped: NDArray[Any] = np.clip(chosen, space.low, space.high)
        return clipped


def reset_lanes(vector: Lanes, seeds: dict[int, int]) -> Tree:
    """Begin an episode in the lanes that are named, each with its seed; the observations of all lanes."""
    mask = np.zeros(vector.num_envs, np.bool_)
    mask[list(seeds)] = True
    observation, _ = vector.reset(seed=[seeds.get(i) for i in range(vector.num_envs)], options={"reset_mask": mask})
    return observation
