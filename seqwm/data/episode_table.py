"""Where each episode of a store stands and how it ended: growing columns, and one Arrow file a segment on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from seqwm.core.errors import DataError
from seqwm.core.types import Array, Episode
from seqwm.data import segment

_SCHEMA = pa.schema(
    [
        ("length", pa.int64()),
        ("terminated", pa.bool_()),
        ("truncated", pa.bool_()),
        ("final_observation", pa.bool_()),
        ("return", pa.float64()),
        ("meta", pa.string()),
    ]
)
_STORED = tuple(name for name in _SCHEMA.names if name != "meta")


class EpisodeTable:
    """One row an episode; columns are NumPy views of what is there now, meta is JSON text."""

    def __init__(self) -> None:
        self._columns = {
            "length": _Column(np.int64),
            "first_row": _Column(np.int64),
            "end": _Column(np.int64),  # transitions up to and with this episode
            "terminated": _Column(np.bool_),
            "truncated": _Column(np.bool_),
            "final_observation": _Column(np.bool_),
            "return": _Column(np.float64),
        }
        self.meta: list[str] = []

    def __len__(self) -> int:
        return len(self.meta)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A column, [N]."""
        return self._columns[name].values

    @property
    def transitions(self) -> int:
        """Of all episodes together."""
        return int(self["end"][-1]) if len(self) else 0

    def append(self, episode: Episode, first_row: int) -> None:
        """Add an episode whose rows begin at `first_row`."""
        total = float(np.sum(episode.rewards, dtype=np.float64)) if episode.rewards is not None else float("nan")
        values = {
            "length": len(episode),
            "first_row": first_row,
            "end": self.transitions + len(episode),
            "terminated": episode.terminated,
            "truncated": episode.truncated,
            "final_observation": episode.final_observation,
            "return": total,
        }
        for name, value in values.items():
            self._columns[name].append(value)
        self.meta.append(json.dumps(dict(episode.meta)))

    def write(self, path: Path, first: int) -> str:
        """Write the episodes from number `first` on, atomically; returns the file's sha256."""
        columns = {name: self[name][first:] for name in _STORED} | {"meta": self.meta[first:]}
        return segment.write_ipc(path, pa.record_batch(columns, schema=_SCHEMA))

    def read(self, path: Path, count: int, first_row: int, rows: int) -> None:
        """Add the `count` episodes of a file that `write` made.

        Args:
            path: the file.
            count: episodes that it must hold.
            first_row: where the rows of the first one begin.
            rows: rows that they must have together.

        Raises:
            DataError: it is not that file, or damaged.
        """
        try:
            batch = segment.single_batch(pa.py_buffer(path.read_bytes()))
            batch.validate(full=True)
        except (pa.ArrowInvalid, OSError) as error:
            wanted = "an Arrow file of one record batch"
            raise DataError([segment.damaged(path, str(error).splitlines()[0], wanted)]) from None
        if not batch.schema.equals(_SCHEMA) or batch.num_rows != count:
            found = f"{batch.num_rows} episodes with columns {batch.schema.names}"
            raise DataError([segment.damaged(path, found, f"{count} episodes with columns {_SCHEMA.names}")])
        columns = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in _STORED}
        lengths, sizes = columns["length"], columns["length"] + columns["final_observation"]
        if int(sizes.sum()) != rows or (count and int(lengths.min()) < 1):
            raise DataError([segment.damaged(path, f"episodes of {int(sizes.sum())} rows", f"{rows} rows")])
        columns["end"] = self.transitions + np.cumsum(lengths)
        columns["first_row"] = first_row + np.cumsum(sizes) - sizes
        for name, values in columns.items():
            self._columns[name].extend(values)
        self.meta += batch.column("meta").to_pylist()

    def shrink(self, episodes: int) -> None:
        """Forget all but the first `episodes`."""
        for column in self._columns.values():
            column.shrink(episodes)
        del self.meta[episodes:]


class _Column:
    """A growing NumPy column."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._data = np.empty(64, dtype)
        self._size = 0

    @property
    def values(self) -> NDArray[Any]:
        return self._data[: self._size]

    def append(self, value: Any) -> None:
        if self._size == len(self._data):
            self._data = np.concatenate([self._data, np.empty_like(self._data)])
        self._data[self._size] = value
        self._size += 1

    def extend(self, values: Array) -> None:
        self._data = np.concatenate([self.values, values.astype(self._data.dtype)])
        self._size = len(self._data)
        if not self._size:
            self._data = np.empty(64, self._data.dtype)

    def shrink(self, size: int) -> None:
        self._size = size
