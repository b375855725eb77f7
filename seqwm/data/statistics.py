"""Means, deviations, ranges and return quantiles of a store: what normalisers, cards and figures are made from.

Only rows with an action count: the final observation of an episode is never an input of a policy. Deviations of
constant columns are given as 1, so that dividing by them is always safe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqwm.core.types import Tree
from seqwm.data.records import field_names, tree_of
from seqwm.data.store import TrajectoryStore

_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class Statistics:
    """Per-column figures over all transitions; trees have the structure of the spaces, image leaves left out.

    Attributes:
        observation_mean, observation_std, observation_low, observation_high: float32 leaves, shape of one observation.
        action_mean, action_std, action_low, action_high: the same of actions; None without actions.
        reward_mean, reward_std: None without rewards.
        return_quantiles: undiscounted episode return at the quantiles 0.0, 0.1, ... 1.0; empty without rewards.
        max_length: transitions of the longest episode.
    """

    observation_mean: Tree
    observation_std: Tree
    observation_low: Tree
    observation_high: Tree
    action_mean: Tree | None
    action_std: Tree | None
    action_low: Tree | None
    action_high: Tree | None
    reward_mean: float | None
    reward_std: float | None
    return_quantiles: dict[float, float]
    max_length: int


def compute_statistics(store: TrajectoryStore) -> Statistics:
    """One pass over the rows, in float64."""
    names = [name for name in store.layout.record.names or () if name not in ("empty", "return_to_go")]
    moments = {name: _Moments() for name in names}
    for chunk in _transition_chunks(store):
        for name in names:
            moments[name].add(chunk[name].astype(np.float64))
    trees: dict[str, Any] = {}
    for kind in ("observation", "action"):
        present = [name for name in field_names(store.layout, kind) if name in moments]
        for figure in ("mean", "std", "low", "high"):
            leaves = {name: moments[name].figure(figure).astype(np.float32) for name in present}
            trees[f"{kind}_{figure}"] = tree_of(kind, leaves) if leaves else ({} if kind == "observation" else None)
    reward = moments.get("reward")
    quantiles = np.round(np.linspace(0, 1, 11), 1)
    return Statistics(
        **trees,
        reward_mean=float(reward.figure("mean")) if reward else None,
        reward_std=float(reward.figure("std")) if reward else None,
        return_quantiles=dict(zip(quantiles.tolist(), np.quantile(store.returns, quantiles).tolist(), strict=True))
        if store.has_rewards and len(store)
        else {},
        max_length=int(store.lengths.max()) if len(store) else 0,
    )


class _Moments:
    """Streaming mean, deviation and range of one column (Chan, Golub and LeVeque's parallel update)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: NDArray[np.float64] = np.zeros(())
        self.squares: NDArray[np.float64] = np.zeros(())
        self.low: NDArray[np.float64] = np.asarray(np.inf)
        self.high: NDArray[np.float64] = np.asarray(-np.inf)

    def add(self, values: NDArray[np.float64]) -> None:
        count, mean = len(values), values.mean(0)
        delta, total = mean - self.mean, self.count + count
        self.squares = self.squares + ((values - mean) ** 2).sum(0) + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total
        self.low, self.high = np.minimum(self.low, values.min(0)), np.maximum(self.high, values.max(0))

    def figure(self, name: str) -> NDArray[np.float64]:
        if name != "std":
            value: NDArray[np.float64] = np.asarray(getattr(self, name))
            return value
        std = np.sqrt(self.squares / max(self.count, 1))
        scale = np.maximum(np.abs(self.low), np.abs(self.high))
        return np.where(std > 1e-6 * np.maximum(scale, 1e-3), std, 1.0)


def _transition_chunks(store: TrajectoryStore) -> Iterator[NDArray[Any]]:
    """Packed rows that hold a transition, a bounded number at a time."""
    final = store.first_rows + store.lengths  # the row behind the last transition, where there is one
    offset = 0
    for part in store.parts:
        keep = np.ones(len(part), np.bool_)
        keep[(final[(final >= offset) & (final < offset + len(part))]) - offset] = False
        # The row behind an episode without a final observation is the next episode's first.
        starts = store.first_rows[(store.first_rows >= offset) & (store.first_rows < offset + len(part))]
        keep[starts - offset] = True
        for begin in range(0, len(part), _CHUNK):
            span = slice(begin, begin + _CHUNK)
            rows = part.records[span][keep[span]]
            if len(rows):
                yield rows
            part.release()
        offset += len(part)
