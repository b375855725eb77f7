"""Spaces read off arrays, for logs that do not state them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium import spaces as gym_spaces

from seqwm.core.tree import flatten, unflatten
from seqwm.core.types import Array, Tree
from seqwm.data.episode_check import TOLERANCE
from seqwm.data.problems import Findings, Problem


class ObservedLeaf:
    """Dtype, shape of a step and range of a leaf over all arrays that were seen of it."""

    def __init__(self, first: Array) -> None:
        self.dtype, self.shape = first.dtype, first.shape[1:]
        self.low: Array = np.full(self.shape, np.inf)
        self.high: Array = np.full(self.shape, -np.inf)

    def add(self, values: Array) -> None:
        """Widen the range; values of another shape are passed over, for they are told where they are read."""
        if values.shape[1:] == self.shape and len(values):
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                values = np.where(np.isfinite(values), values, np.nan)  # told where they are read, too
            self.low = np.fmin(self.low, np.fmin.reduce(values, axis=0))
            self.high = np.fmax(self.high, np.fmax.reduce(values, axis=0))

    @property
    def unit(self) -> bool:
        """Whether everything lies in [-1, 1], where continuous actions usually live."""
        return bool((self.low >= -1 - TOLERANCE).all() and (self.high <= 1 + TOLERANCE).all())

    def space(self, *, action: bool) -> Space[Any]:
        """The space of one step.

        Floats are a Box without bounds as observations and [-1, 1] or the range seen as actions; images a Box of
        0..255; single integers and booleans Discrete(greatest + 1); vectors of them MultiDiscrete as actions and a Box
        of the whole dtype as observations.
        """
        if self.dtype.kind == "f":
            if not action:
                return gym_spaces.Box(-np.inf, np.inf, self.shape, self.dtype.type)
            if self.unit:
                return gym_spaces.Box(-1, 1, self.shape, self.dtype.type)
            seen = [np.where(np.isfinite(side), side, 0).astype(self.dtype) for side in (self.low, self.high)]
            return gym_spaces.Box(np.minimum(*seen), np.maximum(*seen), self.shape, self.dtype.type)
        if self.dtype.kind == "b":
            return gym_spaces.MultiDiscrete(np.full(self.shape, 2)) if self.shape else gym_spaces.Discrete(2)
        start = np.minimum(self.low, 0).astype(np.int64)
        count = self.high.astype(np.int64) - start + 1
        if not self.shape:
            return gym_spaces.Discrete(int(count), start=int(start))
        if action:
            return gym_spaces.MultiDiscrete(count, start=start)
        limits = np.iinfo(self.dtype)
        return gym_spaces.Box(limits.min, limits.max, self.shape, self.dtype.type)


def observe(trees: Iterable[Tree]) -> dict[str, ObservedLeaf]:
    """Every leaf by its path; leaves that not all trees have are kept."""
    leaves: dict[str, ObservedLeaf] = {}
    for tree in trees:
        for path, values in flatten(tree).items():
            if path not in leaves:
                leaves[path] = ObservedLeaf(values)
            leaves[path].add(values)
    return leaves


def space_of(
    leaves: Mapping[str, ObservedLeaf], findings: Findings, file: str, column: str, *, action: bool
) -> Space[Any]:
    """The space of a tree of leaves; where bounds had to be guessed that is told."""
    for path, leaf in leaves.items():
        if action and leaf.dtype.kind == "f" and not leaf.unit:
            found = f"actions from {leaf.low.min():g} to {leaf.high.max():g} and no space that says what is allowed"
            mend = "the range that was seen is taken as the space; state the space where that is too narrow"
            name = f"{column}/{path}" if path else column
            findings.add(
                Problem("space-inferred", found, "actions in [-1, 1]", mend, file, None, None, name, "warning")
            )
    spaces = {path: leaf.space(action=action) for path, leaf in leaves.items()}
    return _dict_space(unflatten(spaces))


def _dict_space(tree: Any) -> Space[Any]:
    if not isinstance(tree, dict):
        space: Space[Any] = tree
        return space
    return gym_spaces.Dict({name: _dict_space(node) for name, node in tree.items()})
