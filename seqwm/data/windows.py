"""Batches of windows, gathered from the packed rows; the order is a pure function of (seed, step) and the rows.

A window ends at a row drawn uniformly over all transitions and holds the up to T rows before and with it. That is what
a policy sees when it acts, early in an episode and late, so training and acting meet the same distribution. Rows that
are there stand first; the rest is zero and not `valid`, so causal attention needs no padding mask.

A method that must learn how episodes end asks for an `overrun`: windows then may also end up to that many rows behind
a termination (never behind a mere cut), with nothing valid there. Drawn so, a row that ends its task stands at every
place of a window as often as any other row does; without, it could only ever be the last.

A method that must learn what the last action of an episode led to asks for the observation `following` each window, the
final one among them: no row of a window ever holds it. Where it was not logged, no window ends at the last row.

What ends an episode is often what matters most and is rare: the share `ends` of the windows of every batch end where
an episode does, each as likely as any other.

The draw hashes the position of the window in the stream (seqwm.core.random), so resuming is an integer, and any number
of processes, each taking its share of every batch, sees the same windows as one.

Stores up to `MAPPED` bytes are gathered from the memory map. Larger ones are read by the window: a system may map two
megabytes around each row that is touched, and the resident size of a training process would grow to the data's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqwm.core.errors import DataError
from seqwm.core.random import indices, key
from seqwm.core.types import Array, Batch
from seqwm.data.problems import Problem
from seqwm.data.records import field_names, tree_of
from seqwm.data.segment import Rows
from seqwm.data.store import TrajectoryStore, discounted_returns

if TYPE_CHECKING:
    import torch

MAPPED = 512 << 20

_ENDING = 6  # the place of the episodes whose ends are drawn among the random streams under a seed


class Windows:
    """An endless stream of batches; `batch(step)` gives any of them, iterating gives them from step 0."""

    def __init__(
        self,
        store: TrajectoryStore,
        length: int,
        batch_size: int,
        seed: int,
        episodes: Sequence[int] | None,
        discount: float,
        end_reward: float | None,
        overrun: int,
        following: bool,
        ends: float,
        rank: int,
        world_size: int,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(
                f"batch_size {batch_size}: expected a multiple of the {world_size} processes that share it"
            )
        if overrun and following:
            raise ValueError("overrun and following: found both, expected one; nothing follows a row behind the end")
        if not 0 <= overrun < length:
            raise ValueError(f"overrun {overrun}: expected at least 0 and less than the {length} rows of a window")
        self.store, self.length, self.batch_size, self.seed = store, length, batch_size, seed
        self._discount, self._end_reward, self._overrun = discount, end_reward, overrun
        self._following, self._ending = following, round(ends * batch_size)
        if not 0 <= ends < 1:
            raise ValueError(f"ends {ends}: expected a share of the windows, at least 0 and less than 1")
        self._share, self._rank = batch_size // world_size, rank
        self._subset = None if episodes is None else np.asarray(episodes, np.int64)
        self._subset_ends = None if self._subset is None else np.cumsum(self._last_steps(self._subset) + 1)
        self._all_ends: tuple[int, NDArray[np.int64]] = (0, np.zeros(0, np.int64))
        self._offsets = np.arange(length)
        self._positions = np.arange(self._share, dtype=np.uint64)
        self._views: dict[tuple[int, int, str, int], Array] = {}
        self._side: tuple[int, NDArray[np.float32]] | None = None
        self._observation_fields = field_names(store.layout, "observation")
        self._action_fields = field_names(store.layout, "action")
        if self.rows == 0:
            mend = "name a source that holds episodes"
            raise DataError(
                [Problem("empty-dataset", "no transition to draw from", "at least one", mend, str(store.path))]
            )

    def __iter__(self) -> Iterator[Batch]:
        step = 0
        while True:
            yield self.batch(step)
            step += 1

    @property
    def rows(self) -> int:
        """Places that a window can end at: the transitions, and `overrun` more behind each that terminated."""
        ends = self._ends()
        return int(ends[-1]) if len(ends) else 0

    def drawn(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the windows of batch `step` end: episode numbers [B] and steps within them [B]."""
        first = step * self.batch_size + self._rank * self._share
        draws = indices(self.seed, self._positions + np.uint64(first), self.rows)
        ends = self._ends()
        ending = max(min(self._ending - self._rank * self._share, self._share), 0)
        if ending:
            chosen = indices(key(self.seed, _ENDING), self._positions[:ending] + np.uint64(first), len(ends))
            draws[:ending] = ends[chosen] - 1
        place = np.searchsorted(ends, draws, side="right")
        episodes = place if self._subset is None else self._subset[place]
        return episodes, draws - ends[place] + self._last_steps(episodes) + 1

    def batch(self, step: int) -> Batch:
        """Batch number `step`, this process's share of it, as CPU tensors."""
        return self.gather(*self.drawn(step))

    def gather(self, episodes: NDArray[np.int64], steps: NDArray[np.int64]) -> Batch:
        """The windows that end at the given steps of the given episodes, both int64 [B].

        A step behind the last one gives a window whose rows end before it does.
        """
        import torch

        store, length, from_numpy = self.store, self.length, torch.from_numpy
        first_steps = np.maximum(steps + 1 - length, 0)
        counts = np.minimum(steps + 1, store.lengths[episodes]) - first_steps
        starts = store.first_rows[episodes] + first_steps
        valid = self._offsets < counts[:, None]
        padded = None if counts.min() == length else ~valid

        packed = self._rows(starts, padded, "")
        fields: dict[str, torch.Tensor] = {}
        for name in (*self._observation_fields, *self._action_fields):
            leaf = self._rows(starts, padded, name) if name in store.layout.images else packed[name]
            fields[name] = from_numpy(for_torch(leaf))

        terminated = np.zeros(valid.shape, np.bool_)
        truncated = np.zeros(valid.shape, np.bool_)
        last = np.flatnonzero(steps >= store.lengths[episodes] - 1)
        if last.size:
            terminated[last, counts[last] - 1] = store.terminated[episodes[last]]
            truncated[last, counts[last] - 1] = store.truncated[episodes[last]]

        rewards = returns = None
        if store.has_rewards:
            rewards = from_numpy(packed["reward"])
            plain = self._discount == 1.0 and self._end_reward is None
            returns = from_numpy(packed["return_to_go"] if plain else self._returns(starts, padded))
            if self._end_reward is not None:
                rewards[torch.from_numpy(terminated)] = self._end_reward
        return Batch(
            observations=tree_of("observation", {name: fields[name] for name in self._observation_fields}),
            actions=tree_of("action", {name: fields[name] for name in self._action_fields})
            if store.has_actions
            else None,
            rewards=rewards,
            terminated=from_numpy(terminated),
            truncated=from_numpy(truncated),
            valid=from_numpy(valid),
            timesteps=from_numpy(np.where(valid, first_steps[:, None] + self._offsets, 0)),
            returns_to_go=returns,
            following=self._behind(episodes, starts + counts) if self._following else None,
        )

    def _behind(self, episodes: NDArray[np.int64], rows: NDArray[np.int64]) -> Any:
        """The observations of rows [B] of the store, which belong to these episodes, as torch tensors."""
        import torch

        store = self.store
        missing = rows >= store.first_rows[episodes] + store.lengths[episodes] + store.final_observations[episodes]
        if missing.any():
            raise ValueError(
                f"{store.path}: episode {episodes[missing][0]} was logged without a final observation, expected one, "
                "or a window that ends before its last step"
            )
        packed, fields = self._rows(rows, None, "", 1)[:, 0], {}
        for name in self._observation_fields:
            leaf = self._rows(rows, None, name, 1)[:, 0] if name in store.layout.images else packed[name]
            fields[name] = torch.from_numpy(leaf if leaf.dtype == np.uint8 and leaf.ndim == 4 else for_torch(leaf))
        return tree_of("observation", fields)

    def _rows(self, starts: NDArray[np.int64], padded: Array | None, name: str, length: int | None = None) -> Array:
        """Runs of T (or `length`) rows of one column ('' is the packed record), [B, T, ...], padding zeroed."""
        parts, length = self.store.parts, length or self.length
        if len(parts) == 1:
            out = self._gather_part(parts[0], starts, name, length)
        else:
            borders = np.cumsum([len(part) for part in parts])
            owner = np.searchsorted(borders, starts, side="right")
            out = np.empty((len(starts), length), _column(parts[0], name).dtype)
            for number in np.unique(owner):
                chosen = owner == number
                offset = borders[number] - len(parts[number])
                out[chosen] = self._gather_part(parts[number], starts[chosen] - offset, name, length)
        if padded is not None:
            out[padded] = np.zeros((), out.dtype)
        if not name:
            return out.view(self.store.layout.record)
        return out.view(np.uint8).reshape(*out.shape, *self.store.layout.images[name])

    def _gather_part(self, part: Rows, starts: NDArray[np.int64], name: str, length: int) -> Array:
        if part.mapped is not None and self.store.rows * self.store.layout.row_bytes > MAPPED:
            read = part.read_runs(name, starts, length)
            return read.view(np.dtype((np.void, read.shape[-1])))[..., 0]
        column = _column(part, name)
        limit = len(column) - length
        if limit < 0 or starts.max() > limit:  # a short window at the very end of the part: row by row
            rows = np.minimum(starts[:, None] + np.arange(length), len(column) - 1)
            gathered: Array = column[rows]
            return gathered
        return self._runs(column, name, length)[starts].view(column.dtype).reshape(len(starts), length)

    def _runs(self, column: Array, name: str, length: int) -> Array:
        """Every run of T rows of a column as one overlapping item each, so that a window is a single copy."""
        key = (column.ctypes.data, len(column), name, length)
        view = self._views.get(key)
        if view is None:
            if len(self._views) > 64:  # parts of a growing store come and go
                self._views.clear()
            size = column.dtype.itemsize
            run = np.dtype((np.void, size * length))
            view = np.ndarray((len(column) - length + 1,), run, column, strides=(size,))
            self._views[key] = view
        return view

    def _returns(self, starts: NDArray[np.int64], padded: Array | None) -> NDArray[np.float32]:
        if self._side is None or self._side[0] != len(self.store):
            self._side = (len(self.store), discounted_returns(self.store, self._discount, self._end_reward))
        side = self._side[1]
        out: NDArray[np.float32] = side[np.minimum(starts[:, None] + self._offsets, len(side) - 1)]
        if padded is not None:
            out[padded] = 0
        return out

    def _last_steps(self, episodes: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        """The last step of each episode that a window can end at, [N]."""
        last: NDArray[np.int64] = self.store.lengths[episodes] - 1 + self._overrun * self.store.terminated[episodes]
        if self._following:
            last = last - ~self.store.final_observations[episodes]
        return last

    def _ends(self) -> NDArray[np.int64]:
        """Cumulative places that a window can end at, up to and with each episode drawn from, [N]."""
        if self._subset_ends is not None:
            return self._subset_ends
        if not self._overrun and not self._following:
            return self.store.ends
        if self._all_ends[0] != len(self.store):
            self._all_ends = (len(self.store), np.cumsum(self._last_steps(slice(None)) + 1))
        return self._all_ends[1]


def _column(part: Rows, name: str) -> Array:
    """A part's packed records or images as one opaque item a row."""
    array = part.images[name] if name else part.records
    size = array.dtype.itemsize * int(np.prod(array.shape[1:]))
    return array.reshape(len(array), -1).view(np.dtype((np.void, size))).reshape(len(array))


def for_torch(leaf: Array) -> Array:
    """Box leaves as float32, integers as int64, images as they are."""
    if leaf.dtype == np.float32 or leaf.dtype == np.int64 or (leaf.dtype == np.uint8 and leaf.ndim == 5):
        return leaf
    return leaf.astype(np.float32 if leaf.dtype.kind == "f" else np.int64)


def gather_episode(windows: Windows, number: int) -> Any:
    """Every window of one episode in order of its steps: what a policy must see when it replays the episode."""
    steps = np.arange(windows.store.lengths[number])
    return windows.gather(np.full_like(steps, number), steps)
