"""Episodes out of tables that hold one step a row (LeRobot's names, RLDS exports, our own files).

Rows of an episode stand together and in order, across the borders of batches and files; the tables are read batch by
batch, so a file may be larger than memory. An episode's last row may hold nothing but the final observation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqwm.core.spaces import leaf_spaces
from seqwm.core.tree import unflatten
from seqwm.core.types import Array, Episode, Scalar, Spaces
from seqwm.data.problems import Findings, Problem
from seqwm.data.sources.columns import UnreadableColumn, dense
from seqwm.data.sources.ends import find_end, open_tail, tell_inference, time_limit, with_last
from seqwm.data.sources.layout import Layout
from seqwm.data.sources.shards import ROW_LIMIT, Shard, read_batches

BATCH_BYTES = 64 << 20
"""Decoded size of one batch, about."""


@dataclass(frozen=True, slots=True)
class _Field:
    """A column that is wanted: the shape and dtype of its rows."""

    column: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Neighbouring rows of one episode; `arrays` by column is None where they cannot be used."""

    file: str
    episode: int | str
    rows: int
    arrays: dict[str, Array] | None
    meta: dict[str, Scalar]


def read_steps(shards: Sequence[Shard], layout: Layout, spaces: Spaces, findings: Findings) -> Iterator[Episode]:
    """Every episode in the order of the rows; what is wrong goes to `findings`, and the episode is passed over."""
    limit = None
    if set(layout.flags) == {"done"}:
        limit = time_limit(_lengths(shards, layout))
        tell_inference(shards[0].name, layout.flags["done"], limit, findings)
    pieces = _pieces(shards, layout, _fields(layout, spaces), findings)
    episodes = (list(group) for _, group in groupby(pieces, key=lambda piece: piece.episode))
    rows_of: dict[int | str, int] = {}  # of the episodes before
    for parts, last in with_last(episodes):
        name = parts[0].episode
        episode = _assemble(parts, layout, limit, rows_of.get(name), last)
        rows_of[name] = rows_of.get(name, 0) + sum(part.rows for part in parts)
        if isinstance(episode, Problem):
            findings.add(replace(episode, file=parts[0].file, episode=name))
        elif episode is not None:
            if last and layout.flags and not layout.tails and not (episode.terminated or episode.truncated):
                findings.add(open_tail(parts[0].file, name, len(episode)))
            yield episode


def _fields(layout: Layout, spaces: Spaces) -> list[_Field]:
    wanted = []
    for columns, space in ((layout.observations, spaces.observation), (layout.actions, spaces.action)):
        for path, column in columns.items():
            assert space is not None
            leaf = leaf_spaces(space)[path]
            wanted.append(_Field(column, tuple(leaf.shape or ()), np.dtype(leaf.dtype)))
    if layout.reward is not None:
        wanted.append(_Field(layout.reward, (), np.dtype(np.float32)))
    if layout.frame is not None:
        wanted.append(_Field(layout.frame, (), np.dtype(np.int64)))
    flags = [*layout.flags.values(), *([layout.final] if layout.final is not None else [])]
    return wanted + [_Field(column, (), np.dtype(np.bool_)) for column in flags]


def _pieces(shards: Sequence[Shard], layout: Layout, fields: Sequence[_Field], findings: Findings) -> Iterator[_Piece]:
    """The rows cut where the episode's number changes and where a batch ends."""
    assert layout.episode is not None
    row_bytes = sum(int(np.prod(field.shape)) * field.dtype.itemsize for field in fields)
    rows = max(1, min(ROW_LIMIT, BATCH_BYTES // max(row_bytes, 1)))
    previous, passed = None, 0  # the episode of the row before, and its rows so far
    for shard, batch in read_batches(shards, layout.columns, rows, findings):
        try:
            codes, names = _identities(batch[layout.episode])
        except UnreadableColumn as problem:
            problem.column = layout.episode
            findings.add(problem.problem(shard.name))
            continue
        try:
            whole = _convert(batch, fields)
        except UnreadableColumn:
            whole = None  # find the episodes that can be used one by one
        borders = [0, *(np.flatnonzero(codes[1:] != codes[:-1]) + 1).tolist(), len(batch)]
        for start, stop in pairwise(borders):
            name = names(codes[start])
            passed = passed if name == previous else 0
            part = batch.slice(start, stop - start)
            try:
                arrays = _convert(part, fields) if whole is None else {k: v[start:stop] for k, v in whole.items()}
                piece = _Piece(shard.name, name, stop - start, arrays, _meta(part, layout, name))
            except UnreadableColumn as problem:
                findings.add(problem.problem(shard.name, name, passed))
                piece = _Piece(shard.name, name, stop - start, None, {})
            yield piece
            previous, passed = name, passed + stop - start


def _convert(batch: pa.RecordBatch, fields: Sequence[_Field]) -> dict[str, Array]:
    arrays = {}
    for field in fields:
        try:
            arrays[field.column] = dense(batch[field.column], field.shape).astype(field.dtype, copy=False)
        except UnreadableColumn as problem:
            problem.column = field.column
            raise
    return arrays


def _identities(column: pa.Array) -> tuple[Array, Any]:
    """A number for each row that is the same exactly where the episode is, and the episode's name for a number."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        encoded = column.dictionary_encode()
        return dense(encoded.indices, ()), lambda code: encoded.dictionary[int(code)].as_py()
    return dense(column, ()), int


def _meta(part: pa.RecordBatch, layout: Layout, name: int | str) -> dict[str, Scalar]:
    if layout.meta is None:
        meta: dict[str, Scalar] = {"episode_index": name}
        return meta | ({"task_index": part[layout.task][0].as_py()} if layout.task is not None else {})
    try:
        return dict(json.loads(part[layout.meta][0].as_py()))
    except (TypeError, ValueError) as error:
        mend = "export the store again"
        problem = UnreadableColumn("wrong-type", f"text that is no JSON ({error})", "a JSON object", mend, 0)
        problem.column = layout.meta
        raise problem from None


def _assemble(
    parts: Sequence[_Piece], layout: Layout, limit: int | None, rows_before: int | None, last: bool
) -> Episode | Problem | None:
    """The episode of all its rows, what is wrong with it, or None where that is already told."""
    usable = [part.arrays for part in parts if part.arrays is not None]
    if len(usable) < len(parts):
        return None
    arrays = {column: _joined([part[column] for part in usable]) for column in usable[0]}
    rows = sum(part.rows for part in parts)
    frames = arrays[layout.frame] if layout.frame is not None else np.arange(rows)
    if rows_before is not None:
        if frames[0] == rows_before:
            found, mend = "rows of it behind another episode's", "sort the rows by episode and frame"
            return Problem("interleaved-episodes", found, "its rows together", mend, column=layout.episode)
        found, mend = "the same number twice", "number the episodes through all files"
        return Problem("duplicate-episode", found, "one number an episode", mend, column=layout.episode)
    if (wrong := np.flatnonzero(frames != np.arange(rows))).size:
        step, mend = int(wrong[0]), "sort the rows by episode and frame, and log every step"
        return Problem("frame-order", f"frame {frames[step]}", f"frame {step}", mend, None, None, step, layout.frame)
    marks = np.flatnonzero(arrays[layout.final]) if layout.final is not None else np.empty(0, np.int64)
    if marks.size and marks[0] != rows - 1:
        found, expected = "a final observation in the middle", "one in the last row at most"
        mend = "give what follows another episode number"
        return Problem("end-in-middle", found, expected, mend, None, None, int(marks[0]), layout.final)
    length = rows - int(marks.size)
    if length == 0:
        return Problem("empty-episode", "a final observation alone", "at least one transition", "drop the episode")
    flags = {flag: arrays[column] for flag, column in layout.flags.items()}
    end = find_end(flags, length, limit, tail_allowed=layout.tails or last, columns=layout.flags)
    if isinstance(end, Problem):
        return end
    actions = {path: arrays[column][:length] for path, column in layout.actions.items()}
    return Episode(
        observations=unflatten({path: arrays[column] for path, column in layout.observations.items()}),
        actions=unflatten(actions) if actions else None,
        rewards=arrays[layout.reward][:length] if layout.reward is not None else None,
        terminated=end[0],
        truncated=end[1],
        final_observation=bool(marks.size),
        meta=parts[0].meta,
    )


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _lengths(shards: Sequence[Shard], layout: Layout) -> Iterable[int]:
    """Transitions of each episode from the episode's number alone."""
    assert layout.episode is not None
    columns = [layout.episode, *([layout.final] if layout.final is not None else [])]
    counts: dict[Any, int] = {}
    for _, batch in read_batches(shards, columns, ROW_LIMIT, Findings(strict=False)):
        numbers = batch[layout.episode]
        if layout.final is not None:
            numbers = numbers.filter(pc.invert(batch[layout.final]))
        for entry in numbers.value_counts().to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    return counts.values()
