"""The nouns of the package and the conventions that every part relies on.

Alignment. Row t of an episode holds the observation o_t, the action a_t chosen from it, and the reward r_t that
follows a_t. An episode of T transitions has T actions, T rewards and T+1 observations; the last observation is the
one after a_{T-1}. Sources that do not log it have T observations and say so by `final_observation=False`.

Ends. `terminated`: the task ended, the value of the last observation is zero. `truncated`: we stopped looking.
Never both; neither of them is a tail whose end was not logged, which is kept and labelled.

Return-to-go at t is the undiscounted sum r_t + r_{t+1} + ... and so includes r_t.

Shapes. B batch or lanes, T time, D features, N candidates, H horizon. Images are uint8 [H, W, C] in data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from gymnasium import Space

Array: TypeAlias = NDArray[Any]
Tree: TypeAlias = Union[Array, dict[str, "Tree"]]
"""An array, or a dict of trees by name (the form of a Dict space)."""

TensorTree: TypeAlias = Union["torch.Tensor", dict[str, "TensorTree"]]
State: TypeAlias = dict[str, "torch.Tensor"]
"""Explicit state of a policy or world: tensors with the lane first, goes in and comes out."""

Scalar: TypeAlias = Union[str, int, float, bool, None]
Metrics: TypeAlias = dict[str, float]


@dataclass(frozen=True, slots=True)
class Spaces:
    """What one step of the data looks like.

    Attributes:
        observation: Gymnasium space of one observation: Box, Discrete, MultiDiscrete, or Dict of those.
        action: Gymnasium space of one action, or None where actions were not logged.
    """

    observation: Space[Any]
    action: Space[Any] | None


@dataclass(frozen=True, slots=True)
class Episode:
    """One logged episode of T transitions.

    Attributes:
        observations: leaves [T+1, ...]; [T, ...] where `final_observation` is False.
        actions: leaves [T, ...], or None for video without actions.
        rewards: float32 [T], r_t follows a_t; None where rewards were not logged.
        terminated: the task ended.
        truncated: the log was cut, by a time limit for example.
        final_observation: whether the observation after the last action is there.
        meta: seed, source, behaviour policy: anything scalar that is worth keeping.
    """

    observations: Tree
    actions: Tree | None
    rewards: NDArray[np.float32] | None
    terminated: bool
    truncated: bool
    final_observation: bool = True
    meta: Mapping[str, Scalar] = field(default_factory=lambda: MappingProxyType({}))

    def __len__(self) -> int:
        """The number of transitions T."""
        rows = len(first_leaf(self.observations))
        return rows - 1 if self.final_observation else rows


@dataclass(frozen=True, slots=True)
class Batch:
    """B windows of T consecutive rows each, as torch tensors.

    A window holds the rows t-T+1 .. t of one episode. Where the episode has fewer, the rows there are stand first
    and `valid` is False behind them; the content of invalid rows is zero and may not change any output.

    Attributes:
        observations: leaves [B, T, ...]; float32 for Box, int64 for Discrete, uint8 [H, W, C] for images.
        actions: leaves [B, T, ...], float32 or int64; None where the store has none.
        rewards: float32 [B, T], r_t follows a_t; None where the store has none.
        terminated: bool [B, T], True at the row whose action ended the task.
        truncated: bool [B, T], True at the last row of an episode that was cut.
        valid: bool [B, T].
        timesteps: int64 [B, T], the step within the episode, 0 first.
        returns_to_go: float32 [B, T], r_t + r_{t+1} + ... to the end of the log; None without rewards.
        following: leaves [B, ...], the observation behind the action of each window's last valid row; None unless the
            windows were asked for it.
    """

    observations: TensorTree
    actions: TensorTree | None
    rewards: torch.Tensor | None
    terminated: torch.Tensor
    truncated: torch.Tensor
    valid: torch.Tensor
    timesteps: torch.Tensor
    returns_to_go: torch.Tensor | None
    following: TensorTree | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {f.name: _move(getattr(self, f.name), device) for f in fields(self)}
        return replace(self, **moved)


def first_leaf(tree: Tree) -> Array:
    """The first array of a tree, in the order of its names."""
    while isinstance(tree, dict):
        tree = next(iter(tree.values()))
    return tree


def _move(value: Any, device: torch.device | str) -> Any:
    if value is None:
        return None
    if isinstance(value, dict):
        return {name: _move(leaf, device) for name, leaf in value.items()}
    return value.to(device, non_blocking=True)
