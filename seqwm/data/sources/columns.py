"""Arrow columns to NumPy without a Python object a value: nested lists by their offsets, images from their bytes.

Arrow lists may be ragged and null anywhere; an array may not. What does not fit raises `UnreadableColumn` with the row
where it stands, which the readers turn into a problem with file, episode and step.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from seqwm.core.types import Array
from seqwm.data.problems import Problem

MAX_IMAGE_PIXELS = 1 << 25
"""Larger images are refused before they are decoded: 8192 x 4096, far above any log, far below a decompression bomb."""

_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGBA"}
"""What an image of each mode is read as: one letter a channel."""


class UnreadableColumn(Exception):
    """A column that is no array: the class of problem, what was found, what was expected, the mend, the row."""

    def __init__(self, check: str, found: str, expected: str, mend: str, row: int | None = None) -> None:
        super().__init__(found)
        self.check, self.found, self.expected, self.mend, self.row = check, found, expected, mend, row
        self.column: str | None = None

    def problem(self, file: str, episode: int | str | None = None, first_step: int = 0) -> Problem:
        """The record of it, for rows of `episode` that begin at `first_step`."""
        step = None if self.row is None else first_step + self.row
        return Problem(self.check, self.found, self.expected, self.mend, file, episode, step, self.column)


def is_list(kind: pa.DataType) -> bool:
    """Whether values of a type are lists, of whatever flavour."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_image_type(kind: pa.DataType) -> bool:
    """Whether a type is that of the Hub's `Image` feature: a struct of encoded bytes and a path."""
    return bool(pa.types.is_struct(kind)) and {field.name for field in kind} == {"bytes", "path"}


def value_type(kind: pa.DataType) -> pa.DataType:
    """The type inside all the lists."""
    while is_list(kind):
        kind = kind.value_type
    return kind


def depth(kind: pa.DataType) -> int:
    """The number of lists around a value."""
    count = 0
    while is_list(kind):
        kind, count = kind.value_type, count + 1
    return count


def is_numeric(kind: pa.DataType) -> bool:
    """Whether values are numbers or booleans."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def comparable(kind: pa.DataType) -> str:
    """A type by name with the flavour of its lists left out, which changes nothing about the values."""
    return "list of " * depth(kind) + ("image" if is_image_type(value_type(kind)) else str(value_type(kind)))


def list_offsets(array: pa.Array) -> NDArray[np.int64]:
    """Where each row of a list column begins in its flat values, [rows + 1], 0 first.

    Raises:
        UnreadableColumn: at a row that is null.
    """
    _no_nulls(array)
    if pa.types.is_fixed_size_list(array.type):
        return np.arange(len(array) + 1, dtype=np.int64) * int(array.type.list_size)
    offsets = array.offsets.to_numpy().astype(np.int64)
    return np.asarray(offsets - offsets[0])


def shape_of(array: pa.Array) -> tuple[int, ...]:
    """The shape of one row as its first row has it: () for scalars, (3,) for lists of three, (H, W, C) for images."""
    if is_image_type(array.type):
        return _decode(_encoded(array[:1])[0].as_buffer(), None).shape
    if is_list(array.type):
        offsets = list_offsets(array[:1])
        inner = array[:1].flatten()
        return (int(offsets[1]), *(shape_of(inner) if len(inner) else ()))
    return ()


def dense(array: pa.Array, shape: tuple[int, ...]) -> Array:
    """A column as one array [rows, *shape] in the dtype of its values; images decoded to uint8 [rows, H, W, C].

    Raises:
        UnreadableColumn: for nulls, ragged rows, rows of another shape, values that are no numbers, broken images.
    """
    if is_image_type(array.type):
        return _images(array, shape)
    if not is_list(array.type):
        _no_nulls(array)
        if shape == (1,) and is_numeric(array.type):
            return dense(array, ()).reshape(-1, 1)  # LeRobot writes vectors of one number as scalars
        if shape or not is_numeric(array.type):
            found, expected = f"values of type {array.type}", "lists of numbers" if shape else "numbers"
            raise UnreadableColumn("wrong-shape", found, expected, "store the column as lists of numbers")
        return np.asarray(array.to_numpy(zero_copy_only=False))
    widths = np.diff(list_offsets(array))
    width = shape[0] if shape else 1  # a list of one number is read where a number is wanted
    if (wrong := np.flatnonzero(widths != width)).size:
        check = "ragged-row" if (widths != widths[0]).any() else "wrong-shape"
        found, expected = f"a list of {widths[wrong[0]]}", f"a list of {width}" if shape else "a number"
        raise UnreadableColumn(check, found, expected, "log every step with one shape", int(wrong[0]))
    try:
        return dense(array.flatten(), shape[1:]).reshape(len(array), *shape)
    except UnreadableColumn as problem:
        if problem.row is not None:
            problem.row //= width
        raise


def _no_nulls(array: pa.Array) -> None:
    if array.null_count:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise UnreadableColumn("null-value", "a null", "a value in every row", "fill it or drop the episode", row)


def _encoded(array: pa.Array) -> pa.Array:
    """The bytes of every image; a path is never followed."""
    _no_nulls(array)
    encoded = array.field("bytes")
    try:
        _no_nulls(encoded)
    except UnreadableColumn as problem:
        mend = "embed the images in the file"
        raise UnreadableColumn("image-outside", "an image by path alone", "its bytes", mend, problem.row) from None
    return encoded


def _images(array: pa.Array, shape: tuple[int, ...]) -> Array:
    encoded = _encoded(array)
    images = np.empty((len(array), *shape), dtype=np.uint8)

    def place(row: int) -> None:
        try:
            images[row] = _decode(encoded[row].as_buffer(), shape)
        except UnreadableColumn as problem:
            problem.row = row
            raise

    with ThreadPoolExecutor() as pool:  # decoding happens outside Python's lock
        for _ in pool.map(place, range(len(array))):
            pass
    return images


def _decode(encoded: Any, shape: tuple[int, ...] | None) -> NDArray[np.uint8]:
    """One encoded image as uint8 [H, W, C]; its header is compared with `shape` before any pixel is decoded."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded), formats=_IMAGE_FORMATS) as image:
            mode = _MODES.get(image.mode)
            if mode is None:
                mend = "store 8-bit grey, RGB or RGBA images"
                raise UnreadableColumn("image-format", f"an image of mode {image.mode}", "mode L, RGB or RGBA", mend)
            found = (image.height, image.width, len(mode))
            if image.height * image.width > MAX_IMAGE_PIXELS:
                raise UnreadableColumn("image-shape", f"{found}", f"at most {MAX_IMAGE_PIXELS} pixels", "resize it")
            if shape is not None and found != shape:
                raise UnreadableColumn("image-shape", f"{found}", f"{shape}", "log every frame with one shape")
            pixels = image if image.mode == mode else image.convert(mode)
            return np.asarray(pixels, dtype=np.uint8).reshape(found)
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
        OSError,
        SyntaxError,
        ValueError,
    ) as error:
        mend = "write the file again from the frames"
        raise UnreadableColumn("image-broken", f"bytes that do not decode ({error})", "an image", mend) from None
