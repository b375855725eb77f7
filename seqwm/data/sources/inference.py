"""Spaces read off the columns of a data set that does not state them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from gymnasium import Space
from gymnasium import spaces as gym_spaces

from seqwm.core.errors import DataError
from seqwm.core.types import Spaces
from seqwm.data.problems import Findings, Problem
from seqwm.data.sources.columns import UnreadableColumn, dense, is_image_type, list_offsets, shape_of, value_type
from seqwm.data.sources.layout import Layout
from seqwm.data.sources.shards import Shard, integer_bounds, read_batches


def infer_spaces(shards: Sequence[Shard], layout: Layout) -> Spaces:
    """Spaces as the columns have them.

    Floats are a Box without bounds in their own dtype (a scalar becomes shape (1,)), images a Box of 0..255, single
    integers and booleans Discrete(greatest + 1), integer vectors MultiDiscrete as actions and a Box as observations.

    Raises:
        DataError: for columns that hold no step, or float images.
    """
    first = next(
        (batch for _, batch in read_batches(shards, layout.columns, 1, Findings()) if _holds(layout, batch)), None
    )
    if first is None:
        mend = "name files that hold episodes"
        raise DataError([Problem("empty-dataset", "no step in any row", "at least one", mend, shards[0].name)])

    def tree(columns: Mapping[str, str], action: bool) -> Space[Any]:
        leaves: dict[str, Space[Any]] = {}
        for path, column in columns.items():
            try:
                steps = first[column].flatten() if layout.rows == "episode" else first[column]
                leaves[path] = _leaf_space(shards, layout, column, steps, action)
            except UnreadableColumn as problem:
                problem.column = column
                raise DataError([problem.problem(shards[0].name)]) from None
        return leaves[""] if set(leaves) == {""} else gym_spaces.Dict(leaves)

    return Spaces(tree(layout.observations, False), tree(layout.actions, True) if layout.actions else None)


def _leaf_space(shards: Sequence[Shard], layout: Layout, column: str, steps: pa.Array, action: bool) -> Space[Any]:
    shape, kind = shape_of(steps), value_type(steps.type)
    if is_image_type(kind):
        return gym_spaces.Box(0, 255, shape, np.uint8)
    dtype = np.dtype(kind.to_pandas_dtype())
    if dtype.kind == "f":
        if len(shape) == 3 and (shape[2] in (1, 3, 4) or shape[0] in (1, 3, 4)):
            mend = "store frames as uint8, 0 to 255, or as encoded images"
            raise UnreadableColumn("image-dtype", f"{dtype} images of shape {shape}", "uint8", mend)
        return gym_spaces.Box(-np.inf, np.inf, shape or (1,), dtype.type)
    if dtype.kind == "b":
        return gym_spaces.Discrete(2) if shape in ((), (1,)) else gym_spaces.MultiDiscrete(np.full(shape, 2))
    if shape in ((), (1,)):
        least, greatest = integer_bounds(shards, column) or _scanned_bounds(shards, layout, column, ())
        start = min(0, int(least))
        return gym_spaces.Discrete(int(greatest) - start + 1, start=start)
    if len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        mend = "store frames with the channel last: transpose to H, W, C"
        raise UnreadableColumn("channel-order", f"images of shape {shape}", "[H, W, C]", mend)
    if action:
        least, greatest = _scanned_bounds(shards, layout, column, shape)
        start = np.minimum(least, 0)
        return gym_spaces.MultiDiscrete(greatest - start + 1, start=start)
    limits = np.iinfo(dtype)
    return gym_spaces.Box(limits.min, limits.max, shape, dtype.type)


def _scanned_bounds(shards: Sequence[Shard], layout: Layout, column: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Least and greatest value of each entry, [*shape] each, over the rows that can be read."""
    least = greatest = None
    for _, batch in read_batches(shards, [column], 1 << 12, Findings(strict=False)):
        try:
            steps = batch[column].flatten() if layout.rows == "episode" else batch[column]
            values = dense(steps, shape)
        except UnreadableColumn:
            continue  # told with its place when the episodes are read
        if len(values):
            low, high = values.min(axis=0).astype(np.int64), values.max(axis=0).astype(np.int64)
            least = low if least is None else np.minimum(least, low)
            greatest = high if greatest is None else np.maximum(greatest, high)
    if least is None or greatest is None:
        raise UnreadableColumn(
            "wrong-shape", "no row that can be read", f"integers of shape {shape}", "mend the column"
        )
    return least, greatest


def _holds(layout: Layout, batch: pa.RecordBatch) -> bool:
    """Whether a batch of one row holds a step."""
    if not len(batch):
        return False
    if layout.rows == "step":
        return True
    columns = [*layout.observations.values(), *layout.actions.values()]
    return all(int(list_offsets(batch[column])[-1]) > 0 for column in columns if not batch[column].null_count)
