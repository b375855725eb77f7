"""HDF5 read as data alone, and fast.

A plain HDF5 read follows links and external storage to any file that the process may read, and loads filters from
plugin folders. Here whatever leads out of the file is refused before it is followed. h5py's low-level objects are used
because a Minari file has five data sets an episode, and building h5py's `Dataset` around each takes longer than reading
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqwm.core.errors import DataError
from seqwm.core.types import Array
from seqwm.data.problems import Problem
from seqwm.data.sources.columns import UnreadableColumn

_FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32000})
"""Deflate, shuffle, Fletcher32, SZip, N-bit, scale-offset, LZF: those that come with HDF5 and h5py."""

_MOST_COMPRESSION = 2000
"""Deflate reaches 1032; a data set that claims to be larger than this many times its bytes is no log."""

_ROOM = 64 << 20  # bytes that a data set may claim whatever is behind it

_DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError)
"""What the library raises, depending on which of its structures is broken."""


@dataclass(frozen=True, slots=True)
class Hdf5File:
    """An open file.

    Attributes:
        root: h5py's low-level identifier of the root group.
        names: every group and data set by its path, all of them inside this file.
    """

    root: Any
    names: frozenset[str]

    def children(self, path: str) -> list[str]:
        """Names of what stands directly in a group."""
        start = f"{path}/" if path else ""
        rests = (name[len(start) :] for name in self.names if name.startswith(start))
        return sorted(rest for rest in rests if "/" not in rest)


@contextmanager
def open_hdf5(path: Path) -> Iterator[Hdf5File]:
    """Open a file for reading.

    Raises:
        DataError: for a file that is no HDF5, is cut short, or holds links that lead elsewhere.
    """
    import h5py

    try:
        file = h5py.h5f.open(str(path).encode(), h5py.h5f.ACC_RDONLY)
    except _DAMAGE as error:
        raise DataError([_corrupt(path, error)]) from None
    try:
        names: list[str] = []
        links: list[Problem] = []

        def visit(name: bytes, link: Any) -> None:
            if link.type == h5py.h5l.TYPE_HARD:
                names.append(name.decode(errors="backslashreplace"))
            else:
                kind = "a soft link" if link.type == h5py.h5l.TYPE_SOFT else "an external link"
                mend = "write the data set itself; links are never followed"
                links.append(
                    Problem(
                        "outside-file", kind, "data", mend, str(path), column=name.decode(errors="backslashreplace")
                    )
                )

        try:
            root = h5py.h5g.open(file, b"/")
            root.links.visit(visit, info=True)
        except _DAMAGE as error:
            raise DataError([_corrupt(path, error)]) from None
        if links:
            raise DataError(links)
        yield Hdf5File(root, frozenset(names))
    finally:
        file.close()


def read_array(parent: Any, name: str) -> Array:
    """A data set of numbers [rows, ...] whole.

    Args:
        parent: low-level group to look in, `Hdf5File.root` or one opened from it.
        name: path below it.

    Raises:
        UnreadableColumn: where there is none, it holds objects, leads out of the file, or is damaged.
    """
    import h5py

    dataset, space = _open(parent, name)
    try:
        dtype, stored = dataset.dtype, dataset.get_storage_size()
    except _DAMAGE as error:
        raise _broken(error) from None
    if dtype.kind not in "biuf":
        mend = "store numbers, one fixed type a column"
        raise UnreadableColumn("object-dtype", f"values of type {_type_name(dtype)}", "numbers", mend)
    shape = space.shape
    if not shape:
        raise UnreadableColumn("wrong-shape", "a single value", "one row a step", "store an array")
    _refuse_impossible(shape, dtype.itemsize, stored)
    values = np.empty(shape, dtype.newbyteorder("="))
    if values.size:
        try:
            dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
        except _DAMAGE as error:
            raise _broken(error) from None
    return values


def read_byte_strings(parent: Any, name: str) -> list[bytes]:
    """A data set of encoded images: uint8 rows of one length, or of a length each.

    Raises:
        UnreadableColumn: as `read_array`.
    """
    import h5py

    dataset, _ = _open(parent, name)
    try:
        if h5py.check_vlen_dtype(dataset.dtype) == np.uint8:
            return [row.tobytes() for row in h5py.Dataset(dataset)[()]]
    except _DAMAGE as error:
        raise _broken(error) from None
    rows = read_array(parent, name)
    if rows.dtype != np.uint8 or rows.ndim != 2:
        found = f"{rows.dtype} of shape {rows.shape}"
        mend = "set jpeg_encoding in metadata.json to what the file holds"
        raise UnreadableColumn("wrong-type", found, "encoded images", mend)
    return [row.tobytes() for row in rows]


def open_group(parent: Any, name: str) -> Any:
    """A group as h5py's low-level identifier.

    Raises:
        UnreadableColumn: where there is none.
    """
    import h5py

    try:
        return h5py.h5g.open(parent, name.encode())
    except _DAMAGE as error:
        raise _broken(error) from None


def read_attributes(group: Any) -> dict[str, Any]:
    """The attributes of a group by name, strings and numbers as h5py gives them.

    Raises:
        UnreadableColumn: where they are damaged.
    """
    import h5py

    try:
        return dict(h5py.Group(group).attrs)
    except _DAMAGE as error:
        raise _broken(error) from None


def _open(parent: Any, name: str) -> tuple[Any, Any]:
    """Low-level data set and data space, nothing of it read."""
    import h5py

    try:
        dataset = h5py.h5d.open(parent, name.encode())
    except _DAMAGE:
        raise UnreadableColumn("missing-column", "no such data set", "a data set", "log every column") from None
    try:
        plist, space = dataset.get_create_plist(), dataset.get_space()
        layout, outside = plist.get_layout(), plist.get_external_count()
        filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    except _DAMAGE as error:
        raise _broken(error) from None
    if layout == h5py.h5d.VIRTUAL:
        raise _outside("a virtual data set")
    if outside:
        raise _outside("external storage")
    if unknown := set(filters) - _FILTERS:
        mend = "write it with gzip, LZF or no compression; filters from plugins are never loaded"
        found = f"filter {', '.join(map(str, sorted(unknown)))}"
        raise UnreadableColumn("unknown-format", found, "filters that HDF5 comes with", mend)
    if space.get_simple_extent_type() == h5py.h5s.NULL:
        raise UnreadableColumn("null-value", "an empty data space", "one row a step", "store an array")
    return dataset, space


def _refuse_impossible(shape: tuple[int, ...], itemsize: int, stored: int) -> None:
    size = itemsize
    for extent in shape:
        size *= extent
    if shape[0] >= 2**31 or size > _ROOM + _MOST_COMPRESSION * stored:
        found = f"a stated shape {shape} over {stored} bytes in the file"
        raise UnreadableColumn("impossible-length", found, "as many rows as were written", "fetch the file again")


def _outside(kind: str) -> UnreadableColumn:
    mend = "copy the values into the file; what lies outside it is never read"
    return UnreadableColumn("outside-file", kind, "values in the file itself", mend)


def _type_name(dtype: np.dtype[Any]) -> str:
    return {"O": "object", "V": "struct", "S": "bytes"}.get(dtype.kind, str(dtype))


def _corrupt(path: Path, error: Exception) -> Problem:
    found = f"a file that cannot be read ({_first_line(error)})"
    return Problem("corrupt-file", found, "an HDF5 file", "fetch the file again", str(path))


def _broken(error: Exception) -> UnreadableColumn:
    found = f"bytes that cannot be read ({_first_line(error)})"
    return UnreadableColumn("corrupt-file", found, "bytes as they were written", "fetch the file again")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
