"""Minari's Arrow and Parquet storages: a folder an episode, with a table of its steps and a metadata.json.

A table has a row for each observation; actions, rewards and flags are padded with a row of zeros to that number. The
step count stands in the episode's metadata.json, which is what tells a padded table from one that lacks its final
observation. Arrow files are mapped, not read: the arrays stay in the file until the store copies them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from gymnasium import Space
from gymnasium import spaces as gym_spaces

from seqwm.core.types import Array, Tree
from seqwm.data.sources.columns import UnreadableColumn, dense, shape_of
from seqwm.data.sources.minari_metadata import FILE_NAME, LoggedEpisode, Metadata, decode_jpeg, is_jpeg, scalars

_COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")


@dataclass(frozen=True, slots=True)
class TableEpisodes:
    """The episodes of one folder; `numbers` says which there are."""

    metadata: Metadata
    numbers: frozenset[int]

    def file(self, number: int) -> Path:
        """The folder that holds an episode."""
        return self.metadata.folder / str(number)

    def read(self, number: int) -> LoggedEpisode:
        """One episode.

        Raises:
            UnreadableColumn: for a column that is missing, ragged or null, a file that is damaged, or padding that
                does not fit the step count.
        """
        folder = self.file(number)
        stated = _read_json(folder / FILE_NAME)
        identity, steps = stated.pop("id", None), stated.pop("total_steps", None)
        table = _read_table(folder, self.metadata.format)
        arrays: dict[str, Any] = {}
        spaces = {"observations": self.metadata.observation_space, "actions": self.metadata.action_space}
        for column in _COLUMNS:
            if column not in table:
                mend = "write the episode again"
                raise _at(UnreadableColumn("missing-column", f"columns {list(table)}", column, mend), column)
            if column in spaces:
                arrays[column] = self._tree(table[column], column, spaces[column])
            else:
                arrays[column] = _named(table[column], (), column)
        rows = len(table["observations"])
        length = steps if isinstance(steps, int) else rows - 1
        if rows != length + 1:
            found, expected = f"{rows} rows for {length} steps", f"{length + 1}: the steps and the final observation"
            mend = "log the final observation; a row that is missing would cost the last step, one too many invents one"
            problem = UnreadableColumn("observation-length", found, expected, mend, min(rows, length + 1))
            raise _at(problem, "observations")
        for column in ("terminations", "truncations"):
            if arrays[column][length:].any():
                found, mend = "an end flag in the row of the final observation", "log the final observation"
                problem = UnreadableColumn("observation-length", found, "padding", mend, length)
                raise _at(problem, column)
        padded = {column: _cut(arrays[column], length) for column in _COLUMNS[1:]}
        return LoggedEpisode(
            arrays["observations"],
            **padded,
            identity=identity if isinstance(identity, int) else None,
            steps=length,
            meta=scalars(stated),
        )

    def _tree(self, array: pa.Array, path: str, space: Space[Any] | None) -> Tree:
        if isinstance(space, gym_spaces.Dict) or (space is None and pa.types.is_struct(array.type)):
            names = list(space.spaces) if isinstance(space, gym_spaces.Dict) else [field.name for field in array.type]
            tree: dict[str, Tree] = {}
            for name in names:
                if not pa.types.is_struct(array.type) or array.type.get_field_index(name) < 0:
                    problem = UnreadableColumn("missing-column", f"{array.type}", f"a field '{name}'", "log every part")
                    raise _at(problem, f"{path}/{name}")
                subspace = space.spaces[name] if isinstance(space, gym_spaces.Dict) else None
                tree[name] = self._tree(array.field(name), f"{path}/{name}", subspace)
            return tree
        if space is not None and self.metadata.jpeg and is_jpeg(space):
            if not pa.types.is_binary(array.type):
                mend = "set jpeg_encoding in metadata.json to what the files hold"
                raise _at(UnreadableColumn("wrong-type", f"{array.type}", "encoded images", mend), path)
            try:
                return decode_jpeg(array, space)
            except UnreadableColumn as problem:
                raise _at(problem, path) from None
        if space is None:
            return _named(array, None, path)
        if isinstance(space, gym_spaces.Discrete):
            return _named(array, (), path)
        shape = tuple(space.shape or ())
        return _named(array, (math.prod(shape),), path).reshape(-1, *shape)  # tables keep arrays flat


@contextmanager
def open_table_episodes(metadata: Metadata) -> Iterator[TableEpisodes]:
    """List the folders of a data set."""
    with os.scandir(metadata.folder) as entries:
        numbers = frozenset(int(entry.name) for entry in entries if entry.name.isdecimal() and entry.is_dir())
    yield TableEpisodes(metadata, numbers)


def table_files(folder: Path, suffix: str) -> list[Path]:
    """The parts of an episode's table in order."""
    names = [name for name in os.listdir(folder) if name.endswith(f".{suffix}")]
    return [folder / name for name in sorted(names, key=lambda name: (len(name), name))]


def _read_table(folder: Path, suffix: str) -> dict[str, pa.Array]:
    """The columns of an episode, each one array."""
    try:
        files = table_files(folder, suffix)
        if not files:
            found, mend = "no table", "fetch the data set again"
            raise UnreadableColumn("missing-shard", found, f"a .{suffix} file", mend)
        batches = [batch for file in files for batch in _batches(file, suffix)]
        if any(batch.schema != batches[0].schema for batch in batches):
            raise UnreadableColumn("schema-drift", "parts with different columns", "one schema", "write it again")
        names = [name for name in _COLUMNS if batches and name in batches[0].schema.names]
        if len(batches) == 1:
            return {name: batches[0].column(name) for name in names}
        return {name: pa.concat_arrays([batch.column(name) for batch in batches]) for name in names}
    except (pa.ArrowException, OSError, UnicodeError) as error:
        found = f"a file that cannot be read ({next(iter(str(error).splitlines()), type(error).__name__)})"
        raise UnreadableColumn("corrupt-file", found, f"the {suffix} file of an episode", "fetch it again") from None


def _batches(file: Path, suffix: str) -> list[pa.RecordBatch]:
    if suffix == "parquet":
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            kept = [name for name in _COLUMNS if name in opened.schema_arrow.names]
            whole: list[pa.RecordBatch] = opened.read(columns=kept).combine_chunks().to_batches()
            return whole
    opened = pa.ipc.open_file(pa.memory_map(str(file)))
    batches = [opened.get_batch(number) for number in range(opened.num_record_batches)]
    for batch in batches:
        batch.validate(full=True)  # offsets that point outside their buffers
    return batches


def _read_json(file: Path) -> dict[str, Any]:
    try:
        stated = json.loads(file.read_bytes())
        if not isinstance(stated, dict):
            raise TypeError("no JSON object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        found = f"an episode's metadata.json that cannot be read ({type(error).__name__})"
        raise UnreadableColumn("broken-metadata", found, "JSON", "fetch the data set again") from None
    return stated


def _named(array: pa.Array, shape: tuple[int, ...] | None, column: str) -> Array:
    try:
        return dense(array, shape_of(array) if shape is None else shape)
    except UnreadableColumn as problem:
        raise _at(problem, column) from None


def _at(problem: UnreadableColumn, column: str) -> UnreadableColumn:
    problem.column = column
    return problem


def _cut(tree: Tree, length: int) -> Any:
    if isinstance(tree, dict):
        return {name: _cut(node, length) for name, node in tree.items()}
    return tree[:length]
