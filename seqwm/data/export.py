"""Episodes to Parquet that others read: one row a step under LeRobot's names, images as the Hub shows them.

The columns are observation.state, observation.image or observation.<leaf>; action or action.<leaf>; next.reward,
next.done, next.terminated, next.truncated; episode_index, frame_index, timestamp (seconds); is_final_observation; and
episode_meta (JSON). An episode whose final observation was logged has one row more than transitions: there
`is_final_observation` is True, action and reward are zero and mean nothing, and the end flags are False; they stand in
the row before, at the last transition.

A row group is one episode, so a reader can fetch single episodes; pages carry checksums, so a flipped byte is an error.
Exact spaces and the provenance stand in the file's metadata (`seqwm.data.sources.declaration`), and what
`seqwm.load` reads back is equal to the last bit.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from gymnasium import Space

from seqwm.core.errors import DataError
from seqwm.core.files import sync_folder
from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.core.tree import flatten
from seqwm.core.types import Array, Episode, Scalar, Spaces
from seqwm.data.problems import Problem
from seqwm.data.sources.declaration import METADATA_KEY, Declaration

FILE_BYTES = 256 << 20
"""A new file is begun when one has reached this size."""

_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_REPEATED = ["episode_index", "episode_meta"]  # the columns that a dictionary makes smaller


def write_parquet(
    episodes: Iterable[Episode],
    spaces: Spaces,
    folder: Path,
    *,
    provenance: Mapping[str, Scalar] = MappingProxyType({}),
) -> None:
    """Write `folder`/data/train-00000-of-0000N.parquet; all of them or, when anything fails, none.

    Args:
        episodes: a store's `episodes()`, or any others of these spaces; all with rewards or all without.
        spaces: what one step looks like.
        folder: made where it is not there; its 'data' must not be.
        provenance: JSON scalars kept in the files; 'fps' (frames a second, else 1) gives the timestamps.

    Raises:
        DataError: where there is no episode, or `folder`/data exists.
        SpaceError: where two leaves of a space would become one column.
    """
    target = folder / "data"
    if target.exists():
        mend = "name another folder or remove it"
        raise DataError([Problem("store-exists", "a folder 'data'", "none", mend, str(folder))])
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".data.", dir=folder))
    try:
        count = _write_files(episodes, spaces, provenance, partial)
        for number in range(count):
            os.replace(partial / f"{number}", partial / f"train-{number:05d}-of-{count:05d}.parquet")
        partial.chmod(0o755)
        sync_folder(partial)
        os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(folder)


def _write_files(episodes: Iterable[Episode], spaces: Spaces, provenance: Mapping[str, Scalar], folder: Path) -> int:
    """Files named 0, 1, ... in `folder`; how many."""
    declaration, writer, path, count = None, None, folder, 0
    try:
        for number, episode in enumerate(episodes):
            declaration = declaration or Declaration.of(spaces, episode.rewards is not None, provenance)
            if writer is None:
                path, count = folder / str(count), count + 1
                schema = _schema(declaration)
                writer = pq.ParquetWriter(
                    path, schema, compression="zstd", use_dictionary=_REPEATED, write_page_checksum=True
                )
            table = _table(episode, number, declaration, writer.schema)
            writer.write_table(table, row_group_size=len(table))
            if path.stat().st_size >= FILE_BYTES:
                writer.close()
                writer = None
                _sync(path)
    finally:
        if writer is not None:
            writer.close()
    if declaration is None:
        raise DataError([Problem("empty-dataset", "no episode", "at least one", "export a store that holds some")])
    _sync(path)
    return count


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _columns(declaration: Declaration) -> dict[str, Space[Any]]:
    """The leaf space of every observation and action column."""
    leaves = leaf_spaces(declaration.spaces.observation)
    named = {column: leaves[path] for path, column in declaration.observations.items()}
    if declaration.spaces.action is not None:
        leaves = leaf_spaces(declaration.spaces.action)
        named |= {column: leaves[path] for path, column in declaration.actions.items()}
    return named


def _schema(declaration: Declaration) -> pa.Schema:
    types = {column: _type(space) for column, space in _columns(declaration).items()}
    if declaration.rewards:
        types["next.reward"] = pa.float32()
    types |= {name: pa.bool_() for name in ("next.done", "next.terminated", "next.truncated")}
    types |= {"episode_index": pa.int64(), "frame_index": pa.int64(), "timestamp": pa.float32()}
    types |= {"is_final_observation": pa.bool_(), "episode_meta": pa.string()}
    features = {column: _feature(kind) for column, kind in types.items()}
    metadata = {
        METADATA_KEY: declaration.to_metadata(),
        b"huggingface": json.dumps({"info": {"features": features}}).encode(),
    }
    return pa.schema([pa.field(column, kind) for column, kind in types.items()], metadata)


def _type(space: Space[Any]) -> pa.DataType:
    if is_image(space):
        return _IMAGE
    kind = pa.from_numpy_dtype(space.dtype)
    for size in reversed(space.shape or ()):
        kind = pa.list_(kind, size)
    return kind


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """A type as `datasets` describes it."""
    if kind == _IMAGE:
        return {"_type": "Image"}
    if pa.types.is_fixed_size_list(kind):
        return {"_type": "List", "feature": _feature(kind.value_type), "length": kind.list_size}
    names = {pa.float16(): "float16", pa.float32(): "float32", pa.float64(): "float64"}
    return {"_type": "Value", "dtype": names.get(kind, str(kind))}


def _table(episode: Episode, number: int, declaration: Declaration, schema: pa.Schema) -> pa.Table:
    length, rows = len(episode), len(episode) + episode.final_observation
    observations = flatten(episode.observations)
    arrays = {column: observations[path] for path, column in declaration.observations.items()}
    actions = flatten(episode.actions) if episode.actions is not None else {}
    arrays |= {column: _padded(actions[path], rows) for path, column in declaration.actions.items()}
    spaces = _columns(declaration)
    columns = {column: _array(array, spaces[column]) for column, array in arrays.items()}
    if declaration.rewards:
        assert episode.rewards is not None, f"episode {number} has no rewards, the ones before have"
        columns["next.reward"] = pa.array(_padded(episode.rewards, rows))
    last = np.arange(rows) == length - 1
    columns["next.done"] = pa.array(last & (episode.terminated or episode.truncated))
    columns["next.terminated"] = pa.array(last & episode.terminated)
    columns["next.truncated"] = pa.array(last & episode.truncated)
    frames = np.arange(rows)
    columns["episode_index"] = pa.array(np.full(rows, number))
    columns["frame_index"] = pa.array(frames)
    fps = declaration.provenance.get("fps") or 1.0
    columns["timestamp"] = pa.array((frames / float(fps)).astype(np.float32))
    columns["is_final_observation"] = pa.array(frames == length)
    columns["episode_meta"] = pa.array([json.dumps(dict(episode.meta))] * rows)
    return pa.table(columns, schema=schema)


def _padded(array: Array, rows: int) -> Array:
    filler = np.zeros((rows - len(array), *array.shape[1:]), array.dtype)
    return np.concatenate([array, filler]) if len(filler) else array


def _array(values: Array, space: Space[Any]) -> pa.Array:
    if is_image(space):
        with ThreadPoolExecutor() as pool:  # encoding happens outside Python's lock
            encoded = pa.array(pool.map(_png, values), pa.binary())
        return pa.StructArray.from_arrays([encoded, pa.nulls(len(values), pa.string())], fields=list(_IMAGE))
    array = pa.array(np.ascontiguousarray(values, dtype=space.dtype).reshape(-1))
    for size in reversed(space.shape or ()):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def _png(image: Array) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(out, "PNG")
    return out.getvalue()
