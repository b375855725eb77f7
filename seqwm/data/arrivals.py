"""What arrives together, for models of dynamics: an observation, the action that led to it, and the reward it brought.

    a row of a batch            o_t, a_t, r_t                 the action was chosen from o_t
    a row of arrivals           o_t, a_{t-1}, r_{t-1}, first  the action led to o_t

`arrivals` is the one place where the first becomes the second. The last transition of an episode arrives with its final
observation; episodes logged without one lose it here.

`CrossingWindows` draws windows for sequence models that carry a state: they run on from one episode into the next,
which begins with `first`, and from the last row of the store into its first one. So every row stands at every place of
a window equally often, and episodes shorter than a window are used like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seqwm.core.errors import DataError
from seqwm.core.random import indices
from seqwm.core.tree import tree_map
from seqwm.core.types import Array, Batch, TensorTree
from seqwm.data.problems import Problem
from seqwm.data.records import field_names, tree_of
from seqwm.data.store import TrajectoryStore
from seqwm.data.windows import for_torch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Arrivals:
    """B windows of T rows in arrival form, as torch tensors.

    Attributes:
        observations: leaves [B, T, ...].
        actions: leaves [B, T, ...], the action before each observation; zero where `first`.
        rewards: float32 [B, T], what the action before brought; zero where `first`. None where there are none.
        first: bool [B, T], the observation begins an episode.
        terminated: bool [B, T], the observation is the one after the action that ended the task.
        last: bool [B, T], no row of the same episode follows this one: terminated, truncated, or cut by the log.
        valid: bool [B, T].
    """

    observations: TensorTree
    actions: TensorTree
    rewards: torch.Tensor | None
    first: torch.Tensor
    terminated: torch.Tensor
    last: torch.Tensor
    valid: torch.Tensor


def arrivals(batch: Batch, *, context: int = 0) -> Arrivals:
    """The arrival form of windows.

    A row that is the first of its window without beginning an episode has an unknown past; it is taken as `first`,
    unless it is among the `context` rows that are left out and serve only to give the next row its action and reward.

    Args:
        batch: windows of T rows, of one episode each or crossing.
        context: 0 gives all T rows; 1 gives T - 1.

    Raises:
        ValueError: the batch has no actions.
    """
    import torch

    if batch.actions is None:
        raise ValueError("found a batch without actions, expected some: dynamics are what actions lead to")
    begins = (batch.timesteps == 0) & batch.valid
    if not context:
        begins = begins.clone()
        begins[:, 0] = True

    def before(leaf: torch.Tensor) -> torch.Tensor:
        shifted = torch.cat([torch.zeros_like(leaf[:, :1]), leaf[:, :-1]], 1)
        shifted[begins] = 0
        return shifted[:, context:]

    terminated = before(batch.terminated)
    ends = torch.cat([begins[:, 1:], torch.zeros_like(begins[:, :1])], 1)[:, context:]
    return Arrivals(
        observations=tree_map(lambda leaf: leaf[:, context:], batch.observations),
        actions=tree_map(before, batch.actions),
        rewards=None if batch.rewards is None else before(batch.rewards),
        first=begins[:, context:],
        terminated=terminated,
        last=terminated | before(batch.truncated) | ends,
        valid=batch.valid[:, context:],
    )


class CrossingWindows:
    """An endless stream of batches whose windows cross the borders of episodes; a pure function of (seed, step).

    Final observations are rows of their own, with an action and a reward of zero; `timesteps` is 0 where an episode
    begins. Which batch k is depends on the rows there are, as with all windows of a growing store.

    Args:
        store: with one transition or more by the time a batch is asked for.
        length: rows in a window.
        batch_size: windows in a batch.
        seed: of the draws.
    """

    def __init__(self, store: TrajectoryStore, length: int, batch_size: int, seed: int) -> None:
        self.store, self.length, self.batch_size, self.seed = store, length, batch_size, seed
        self._positions = np.arange(batch_size, dtype=np.uint64)
        self._offsets = np.arange(length)
        self._observation_fields = field_names(store.layout, "observation")
        self._action_fields = field_names(store.layout, "action")

    def rows(self, step: int) -> NDArray[np.int64]:
        """The rows of the store in batch `step`, [B, T], final observations counted."""
        total = sum(len(part) for part in self.store.parts)
        if not total:
            mend = "collect some first (collect.prefill), or name a source that holds episodes"
            problem = Problem("empty-dataset", "no row to draw from", "at least one", mend, str(self.store.path))
            raise DataError([problem])
        starts = indices(self.seed, self._positions + np.uint64(step * self.batch_size), total)
        return (starts[:, None] + self._offsets) % total

    def batch(self, step: int) -> Batch:
        """Batch number `step` as CPU tensors."""
        return self.gather(self.rows(step))

    def gather(self, rows: NDArray[np.int64]) -> Batch:
        """The batch of these rows, [B, T]."""
        import torch

        store = self.store
        episodes = np.searchsorted(store.first_rows, rows, side="right") - 1
        timesteps = rows - store.first_rows[episodes]
        lasts = timesteps == store.lengths[episodes] - 1
        columns = self._columns(rows)
        fields = {name: torch.from_numpy(for_torch(leaf)) for name, leaf in columns.items() if name != "reward"}
        return Batch(
            observations=tree_of("observation", {name: fields[name] for name in self._observation_fields}),
            actions=tree_of("action", {name: fields[name] for name in self._action_fields})
            if store.has_actions
            else None,
            rewards=torch.from_numpy(columns["reward"]) if store.has_rewards else None,
            terminated=torch.from_numpy(lasts & store.terminated[episodes]),
            truncated=torch.from_numpy(lasts & store.truncated[episodes]),
            valid=torch.ones(rows.shape, dtype=torch.bool),
            timesteps=torch.from_numpy(timesteps),
            returns_to_go=None,
        )

    def _columns(self, rows: NDArray[np.int64]) -> dict[str, Array]:
        """The stored values of rows [B, T] by field name, [B, T, ...], whichever part they lie in."""
        parts, layout = self.store.parts, self.store.layout
        borders = np.cumsum([0] + [len(part) for part in parts])
        owner = np.searchsorted(borders, rows, side="right") - 1
        records = np.empty(rows.shape, layout.record)
        images = {name: np.empty((*rows.shape, *shape), np.uint8) for name, shape in layout.images.items()}
        for number in np.unique(owner):
            chosen = owner == number
            within = rows[chosen] - borders[number]
            records[chosen] = parts[number].records[within]
            for name, leaf in images.items():
                leaf[chosen] = parts[number].images[name][within]
        names = [*self._observation_fields, *self._action_fields] + ["reward"] * layout.rewards
        return {name: images[name] if name in images else np.ascontiguousarray(records[name]) for name in names}
