"""Episodes out of tables that hold one episode a row, every column a list over its steps.

This is the layout of the Decision Transformer's replay sets (observations, actions, rewards, dones) and of JAT
(continuous_observations, discrete_actions, ...). It has T observations where the last one was not kept. An end flag may
also be one boolean for the whole episode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from seqwm.core.spaces import leaf_spaces
from seqwm.core.tree import unflatten
from seqwm.core.types import Array, Episode, Spaces
from seqwm.data.problems import Findings, Problem
from seqwm.data.sources.columns import UnreadableColumn, dense, is_image_type, is_list, list_offsets, value_type
from seqwm.data.sources.ends import find_end, open_tail, tell_inference, time_limit, with_last
from seqwm.data.sources.layout import Layout
from seqwm.data.sources.shards import ROW_LIMIT, Shard, read_batches

BATCH_BYTES = 64 << 20
"""Size of one batch as its file states it, about; encoded images, which grow when they are decoded, get a sixteenth."""
BATCH_EPISODES = 1024


@dataclass(frozen=True, slots=True)
class _Steps:
    """The values of one column for all episodes of a batch, one behind the other, and where each episode begins."""

    values: Array
    offsets: NDArray[np.int64]

    def of(self, row: int) -> Array:
        return self.values[self.offsets[row] : self.offsets[row + 1]]


def read_episodes(shards: Sequence[Shard], layout: Layout, spaces: Spaces, findings: Findings) -> Iterator[Episode]:
    """Every episode in the order of the rows; what is wrong goes to `findings`, and the episode is passed over."""
    limit = None
    if set(layout.flags) == {"done"}:
        limit = time_limit(_lengths(shards, layout.flags["done"]))
        tell_inference(shards[0].name, layout.flags["done"], limit, findings)
    kinds = _kinds(layout, spaces)
    final_observation: bool | None = None  # of the first good episode, and so of all
    number = 0
    batches = read_batches(shards, layout.columns, _batch_rows(shards, layout), findings)
    for (shard, batch), last_batch in with_last(batches):
        try:
            whole = _convert(batch, kinds)
        except UnreadableColumn:
            whole = None  # find the episodes that can be used one by one
        for row in range(len(batch)):
            last = last_batch and row == len(batch) - 1
            try:
                steps = whole or _convert(batch.slice(row, 1), kinds)
            except UnreadableColumn as problem:
                findings.add(problem.problem(shard.name, number))
            else:
                arrays = {column: part.of(row if whole else 0) for column, part in steps.items()}
                episode = _assemble(arrays, layout, limit, final_observation, last)
                if isinstance(episode, Problem):
                    findings.add(replace(episode, file=shard.name, episode=number))
                else:
                    if last and layout.flags and not (episode.terminated or episode.truncated):
                        findings.add(open_tail(shard.name, number, len(episode)))
                    final_observation = episode.final_observation
                    yield episode
            number += 1


def _kinds(layout: Layout, spaces: Spaces) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of one step by column."""
    kinds: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    for columns, space in ((layout.observations, spaces.observation), (layout.actions, spaces.action)):
        for path, column in columns.items():
            assert space is not None
            leaf = leaf_spaces(space)[path]
            kinds[column] = tuple(leaf.shape or ()), np.dtype(leaf.dtype)
    if layout.reward is not None:
        kinds[layout.reward] = (), np.dtype(np.float32)
    return kinds | {column: ((), np.dtype(np.bool_)) for column in layout.flags.values()}


def _convert(batch: pa.RecordBatch, kinds: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> dict[str, _Steps]:
    steps = {}
    for column, (shape, dtype) in kinds.items():
        try:
            array = batch[column]
            if is_list(array.type):
                values = dense(array.flatten(), shape)
                steps[column] = _Steps(values.astype(dtype, copy=False), list_offsets(array))
            else:  # one flag for the whole episode
                steps[column] = _Steps(dense(array, ()).astype(dtype, copy=False), np.arange(len(array) + 1))
        except UnreadableColumn as problem:
            problem.column = column
            raise
    return steps


def _assemble(
    arrays: Mapping[str, Array], layout: Layout, limit: int | None, final_observation: bool | None, last: bool
) -> Episode | Problem:
    """The episode of one row's arrays by column, or what is wrong with them."""
    flags = {name: arrays[column] for name, column in layout.flags.items()}
    stepwise = [*layout.actions.values(), *([layout.reward] if layout.reward is not None else [])]
    observed = len(arrays[next(iter(layout.observations.values()))])
    length = len(arrays[stepwise[0]]) if stepwise else observed
    if length == 0:
        return Problem(
            "empty-episode", "no step", "at least one", "drop the row", column=stepwise[0] if stepwise else None
        )
    for column in stepwise:
        if len(arrays[column]) != length:
            found, expected = f"{len(arrays[column])} steps", f"{length}, as in '{stepwise[0]}'"
            return Problem("ragged-episode", found, expected, "log every column at every step", column=column)
    expected_rows = (length, length + 1) if final_observation is None else (length + final_observation,)
    for column in layout.observations.values():
        if len(arrays[column]) != observed or observed not in expected_rows:
            wanted = " or ".join(str(rows) for rows in expected_rows)
            found = f"{len(arrays[column])} observations for {length} steps"
            mend = "log every column at every step, and the final observation in all episodes or in none"
            return Problem("observation-length", found, f"{wanted}, as in the episodes before", mend, column=column)
    for name, flag in flags.items():
        if len(flag) == 1 and length > 1:
            flags[name] = np.concatenate([np.zeros(length - 1, np.bool_), flag])
        elif len(flag) not in (length, observed):
            found, mend = f"{len(flag)} flags", "log every column at every step"
            return Problem("ragged-episode", found, f"{length}", mend, column=layout.flags[name])
    end = find_end(flags, length, limit, tail_allowed=last, columns=layout.flags)
    if isinstance(end, Problem):
        return end
    actions = {path: arrays[column] for path, column in layout.actions.items()}
    return Episode(
        observations=unflatten({path: arrays[column] for path, column in layout.observations.items()}),
        actions=unflatten(actions) if actions else None,
        rewards=arrays[layout.reward] if layout.reward is not None else None,
        terminated=end[0],
        truncated=end[1],
        final_observation=observed == length + 1,
    )


def _batch_rows(shards: Sequence[Shard], layout: Layout) -> int:
    row_bytes = max(max(shard.bytes_a_row for shard in shards), 1.0)
    schema = shards[0].schema
    has_images = any(is_image_type(value_type(schema.field(column).type)) for column in layout.observations.values())
    return max(1, min(BATCH_EPISODES, int(BATCH_BYTES / (16 if has_images else 1) / row_bytes)))


def _lengths(shards: Sequence[Shard], column: str) -> Iterator[int]:
    """Steps of each episode from one column alone."""
    for _, batch in read_batches(shards, [column], ROW_LIMIT, Findings(strict=False)):
        if is_list(batch[column].type) and not batch[column].null_count:
            yield from np.diff(list_offsets(batch[column])).tolist()
