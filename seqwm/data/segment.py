"""One sealed stretch of rows: an Arrow IPC file with a single record batch, memory-mapped.

The file has one fixed-size binary column 'row' (the packed records) and one for each image leaf; the layout stands in
the schema's metadata, so pyarrow alone can read it. One record batch means one contiguous array, which is what makes a
window a single memory copy.
"""

from __future__ import annotations

import json
import mmap
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from seqwm.core.errors import DataError
from seqwm.core.files import aside, file_sha256, sync_folder
from seqwm.core.types import Array
from seqwm.data.problems import Problem
from seqwm.data.records import RecordLayout


@dataclass(slots=True, weakref_slot=True)
class Rows:
    """A contiguous stretch of rows, in memory or mapped from a file.

    Attributes:
        records: structured [n].
        images: uint8 [n, H, W, C] by field name.
        mapped: the mapping behind the arrays, None for rows in memory.
        path: the file behind the mapping.
    """

    records: NDArray[Any]
    images: dict[str, Array]
    mapped: mmap.mmap | None = None
    path: Path | None = None
    _descriptor: int = -1

    def __len__(self) -> int:
        return len(self.records)

    def read_runs(self, name: str, starts: NDArray[np.int64], length: int) -> Array:
        """Runs of rows read from the file, not through the mapping: no page of it becomes this process's.

        Args:
            name: an image field, or '' for the records.
            starts: the first row of each run, [B].
            length: rows of a run, T; what of it lies behind the last row is arbitrary.

        Returns:
            uint8 [B, T, bytes of a row].

        Raises:
            DataError: the file has become shorter since it was opened.
        """
        assert self.mapped is not None
        assert self.path is not None
        if self._descriptor < 0:
            self._descriptor = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
        array = self.images[name] if name else self.records
        size = array.dtype.itemsize * int(np.prod(array.shape[1:]))
        first_byte = array.ctypes.data - np.frombuffer(self.mapped, np.uint8).ctypes.data
        end, run = first_byte + len(array) * size, length * size
        out = np.empty((len(starts), length, size), np.uint8)
        target, descriptor = out.reshape(-1).data, self._descriptor
        for place, offset in enumerate((first_byte + starts * size).tolist()):
            got = os.preadv(descriptor, (target[place * run : (place + 1) * run],), offset)
            if got < min(run, end - offset):
                raise DataError([damaged(self.path, f"{got} bytes at {offset}", f"{min(run, end - offset)} bytes")])
        return out

    def release(self) -> None:
        """Let go of the pages touched so far; they stay in the system's file cache."""
        if self.mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.mapped.madvise(mmap.MADV_DONTNEED)


def write_rows(path: Path, layout: RecordLayout, rows: Rows) -> str:
    """Write rows to an Arrow file, atomically; returns its sha256."""
    columns, names = [_binary(rows.records.view(np.uint8), layout.record.itemsize)], ["row"]
    for name, shape in layout.images.items():
        columns.append(_binary(rows.images[name], int(np.prod(shape))))
        names.append(name)
    metadata = {"seqwm": json.dumps(layout.describe())}
    batch = pa.record_batch(columns, names=names).replace_schema_metadata(metadata)
    return write_ipc(path, batch)


def open_rows(path: Path, layout: RecordLayout, count: int) -> Rows:
    """Map a file that `write_rows` made; raises DataError when it is not the file the store describes."""
    with open(path, "rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            batch = single_batch(pa.py_buffer(mapped))
        except (ValueError, pa.ArrowInvalid, OSError) as error:
            raise DataError([damaged(path, str(error).splitlines()[0], "an Arrow file of one record batch")]) from None
    sizes = {"row": layout.record.itemsize} | {name: int(np.prod(shape)) for name, shape in layout.images.items()}
    found = {field.name: field.type for field in batch.schema}
    expected = {name: pa.binary(size) for name, size in sizes.items()}
    if found != expected or batch.num_rows != count:
        raise DataError([damaged(path, f"{batch.num_rows} rows of {found}", f"{count} rows of {expected}")])
    arrays = {
        name: np.frombuffer(batch.column(name).buffers()[1], np.uint8, count * size) for name, size in sizes.items()
    }
    images = {name: arrays[name].reshape(count, *shape) for name, shape in layout.images.items()}
    return Rows(arrays["row"].view(layout.record), images, mapped, path)


def _binary(values: Array, size: int) -> pa.Array:
    flat = np.ascontiguousarray(values).reshape(-1)
    return pa.Array.from_buffers(pa.binary(size), flat.size // size, [None, pa.py_buffer(flat)])


def write_ipc(path: Path, batch: pa.RecordBatch) -> str:
    """Write a record batch to an Arrow file, atomically; returns its sha256."""
    temporary = aside(path)
    with open(temporary, "wb") as file:
        with pa.ipc.new_file(pa.PythonFile(file), batch.schema) as writer:
            writer.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())
    digest = file_sha256(temporary)
    os.replace(temporary, path)
    sync_folder(path.parent)
    return digest


def single_batch(buffer: pa.Buffer) -> pa.RecordBatch:
    """The one record batch of an Arrow file; raises pa.ArrowInvalid when it is damaged or has another number."""
    reader = pa.ipc.open_file(pa.BufferReader(buffer))
    if reader.num_record_batches != 1:
        raise pa.ArrowInvalid(f"{reader.num_record_batches} record batches")
    try:
        _ = reader.schema.names
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid(f"a column name that is no text ({error})") from None
    return reader.get_batch(0)


def damaged(path: Path, found: str, expected: str) -> Problem:
    """What is wrong with a file of a store."""
    mend = "the file is damaged: convert or collect the data again"
    return Problem("damaged-store", found, expected, mend, file=str(path))
