"""Parquet and Arrow files as one run of record batches, local or over the network, never whole in memory.

Page checksums are verified, so a flipped byte in a file that carries them is an error and not another number; Arrow
files, whose buffers come as they are, have their offsets checked.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seqwm.core.errors import DataError
from seqwm.core.hub import explained
from seqwm.data.problems import Findings, Problem
from seqwm.data.sources.columns import comparable

ROW_LIMIT = 1 << 16
"""Rows of a batch at most."""
FETCH_BYTES = 32 << 20
"""Neighbouring row groups up to this size are asked for in one request where a file is read over the network."""

_NUMBERED = re.compile(r"^(?P<stem>.*?)-?(?P<number>\d{5})-of-(?P<count>\d{5})(?P<hash>-[0-9a-f]{16})?$")


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a data set.

    Attributes:
        name: the file as problems name it.
        source: opens it: a path, or a seekable file over the network.
        schema: its columns.
        parquet: its footer; None for Arrow files.
        remote: whether bytes come over the network.
    """

    name: str
    source: Callable[[], Any]
    schema: pa.Schema
    parquet: pq.FileMetaData | None
    remote: bool

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """The file's rows in order, at most `rows` at a time."""
        if self.parquet is None:
            with _arrow_reader(self.source()) as reader:
                for batch in reader:
                    batch.validate(full=True)  # offsets that point outside their buffers
                    chosen = batch.select(list(columns))
                    yield from (chosen.slice(start, rows) for start in range(0, len(chosen), rows))
            return
        with pq.ParquetFile(self.source(), **_parquet_options(self.remote)) as file:
            for groups in _runs(self.parquet, FETCH_BYTES) if self.remote else [None]:
                yield from file.iter_batches(batch_size=rows, row_groups=groups, columns=list(columns))

    @property
    def bytes_a_row(self) -> float:
        """Decoded bytes of one row on average, encoded images counted as they are; 0 where the file does not say."""
        if self.parquet is None or not self.parquet.num_rows:
            return 0.0
        groups = (self.parquet.row_group(number) for number in range(self.parquet.num_row_groups))
        return sum(int(group.total_byte_size) for group in groups) / int(self.parquet.num_rows)


def open_shard(name: str, source: Callable[[], Any], *, arrow: bool, remote: bool = False) -> Shard:
    """Read the footer of a file.

    Raises:
        DataError: for a file that is empty, cut short, or of another kind than its name says.
    """
    try:
        if arrow:
            with _arrow_reader(source()) as reader:
                return Shard(name, source, reader.schema, None, remote)
        with pq.ParquetFile(source(), **_parquet_options(remote)) as file:
            groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
            if file.metadata.num_rows != sum(group.num_rows for group in groups):
                raise OSError("its footer counts other rows than its row groups")
            return Shard(name, source, file.schema_arrow, file.metadata, remote)
    except _failures(remote) as error:
        raise DataError([_unreadable(name, error, "an Arrow file" if arrow else "a Parquet file", remote)]) from error


def read_batches(
    shards: Sequence[Shard], columns: Sequence[str], rows: int, findings: Findings
) -> Iterator[tuple[Shard, pa.RecordBatch]]:
    """Every batch that holds rows, shard by shard; a shard that breaks off is reported and the next one taken."""
    for shard in shards:
        try:
            for batch in shard.batches(columns, rows):
                if len(batch):
                    yield shard, batch
        except _failures(shard.remote) as error:
            findings.add(_unreadable(shard.name, error, "bytes as they were written", shard.remote))


def pick_split(names: Sequence[str], findings: Findings) -> list[str]:
    """The files to read: those of the training split where files are named by split, all of them otherwise.

    Names are paths relative to the data set, in the order they should be read in.
    """
    splits = defaultdict(list)
    for name in sorted(names):
        stem = Path(name).stem
        splits[re.split(r"[-_.]", stem)[0] if re.match(r"(train|test|validation|valid|eval)\b", stem) else ""].append(
            name
        )
    if "train" not in splits or len(splits) == 1:
        return sorted(names)
    for split in splits.keys() - {"train"}:
        found = f"{len(splits[split])} file{'s' if len(splits[split]) > 1 else ''} beside those of the split 'train'"
        findings.add(
            Problem(
                "split-left-out",
                found,
                "one split",
                "name a file to read it instead",
                splits[split][0],
                severity="warning",
            )
        )
    return splits["train"]


def check_numbering(names: Sequence[str]) -> None:
    """Refuse a data set of which a numbered file ('train-00001-of-00004.parquet') is missing.

    Raises:
        DataError: naming each file that is not there.
    """
    found: defaultdict[tuple[str, str, int], set[int]] = defaultdict(set)
    for name in names:
        path = Path(name)
        if match := _NUMBERED.match(path.stem):
            found[str(path.parent / match["stem"]), path.suffix, int(match["count"])].add(int(match["number"]))
    problems = []
    for (stem, suffix, count), numbers in found.items():
        for number in sorted(set(range(count)) - numbers)[:8]:
            file = f"{stem}-{number:05d}-of-{count:05d}{suffix}"
            problems.append(
                Problem("missing-shard", f"{len(numbers)} of {count} files", "all", "fetch the missing one", file)
            )
    if problems:
        raise DataError(problems)


def check_schemas(shards: Sequence[Shard]) -> None:
    """Refuse shards whose columns differ from those of most of them.

    Raises:
        DataError: naming file and column.
    """
    described = {shard.name: {field.name: comparable(field.type) for field in shard.schema} for shard in shards}
    common = Counter(tuple(sorted(columns.items())) for columns in described.values())
    expected = dict(common.most_common(1)[0][0])
    mend = "write the files anew with one schema, or name the folder of one data set alone"
    problems = []
    for file, columns in described.items():
        for column in sorted(columns.keys() | expected.keys()):
            one, other = columns.get(column, "no such column"), expected.get(column, "no such column")
            if one != other:
                problems.append(Problem("schema-drift", one, f"{other}, as elsewhere", mend, file, column=column))
    if problems:
        raise DataError(problems)


def integer_bounds(shards: Sequence[Shard], column: str) -> tuple[int, int] | None:
    """The least and greatest value of an integer column from the footers alone; None where they do not say."""
    least: list[int] = []
    greatest: list[int] = []
    for shard in shards:
        if shard.parquet is None:
            return None
        paths = [shard.parquet.schema.column(number).path for number in range(shard.parquet.num_columns)]
        numbers = [number for number, path in enumerate(paths) if path.split(".list.")[0] == column]
        for group in range(shard.parquet.num_row_groups):
            chunk = shard.parquet.row_group(group)
            statistics = chunk.column(numbers[0]).statistics if numbers else None
            if statistics is None or not statistics.has_min_max:
                return None
            least.append(int(statistics.min))
            greatest.append(int(statistics.max))
    return (min(least), max(greatest)) if least else None


def _parquet_options(remote: bool) -> dict[str, Any]:
    return {"page_checksum_verification": True, "memory_map": not remote, "pre_buffer": remote}


def _runs(metadata: pq.FileMetaData, limit: int) -> Iterator[list[int]]:
    """Row groups in order, neighbours together up to `limit` bytes."""
    run: list[int] = []
    size = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number).total_byte_size
        if run and size + group > limit:
            yield run
            run, size = [], 0
        run.append(number)
        size += group
    if run:
        yield run


def _arrow_reader(source: Any) -> Any:
    """A reader of the file format, or of the stream format in which `datasets` keeps its cache."""
    file = pa.memory_map(str(source)) if isinstance(source, Path) else pa.PythonFile(source, mode="r")
    magic = file.read(6)
    file.seek(0)
    if magic != b"ARROW1":
        return pa.ipc.open_stream(file)
    reader = pa.ipc.open_file(file)
    return _FileBatches(reader)


@dataclass(frozen=True, slots=True)
class _FileBatches:
    """The file format read like the stream format."""

    reader: Any

    @property
    def schema(self) -> pa.Schema:
        return self.reader.schema

    def __enter__(self) -> _FileBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.__exit__(None, None, None)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return (self.reader.get_batch(number) for number in range(self.reader.num_record_batches))


def _failures(remote: bool) -> tuple[type[Exception], ...]:
    """What reading a file may raise that is not our mistake."""
    local = (pa.ArrowException, OSError, EOFError, UnicodeError)
    if not remote:
        return local
    from huggingface_hub.errors import HTTPError

    return (*local, HTTPError)


def _unreadable(file: str, error: Exception, expected: str, remote: bool) -> Problem:
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    told = explained(error, "read") if remote else None
    if told is not None:
        mend = f"{told[1]} (a training run goes on by --resume)"
        return Problem("unreachable", told[0], "the whole file", mend, file)
    found = f"a file that cannot be read ({why})"
    return Problem("corrupt-file", found, expected, "fetch the file again", file)
