"""The metadata of a LeRobot v3 folder: what is in it, where each episode stands, and whether the counts agree."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any

import pyarrow.parquet as pq

from seqwm.core.errors import DataError
from seqwm.data.problems import Problem
from seqwm.data.sources.shards import Shard, open_shard

REWRITE = "write the folder again with LeRobot"


@dataclass(frozen=True, slots=True)
class Info:
    """What of meta/info.json is used: `data_path` and `video_path` are templates of paths in `root`."""

    root: Path
    version: str
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    episodes: int
    frames: int
    data_path: str
    video_path: str

    @property
    def file(self) -> str:
        """meta/info.json, as problems name it."""
        return str(self.root / "meta" / "info.json")

    @property
    def cameras(self) -> list[str]:
        """The features whose frames are in videos."""
        return [name for name, feature in self.features.items() if feature.get("dtype") == "video"]

    def place(self, template: str, **numbers: Any) -> Path:
        """The file that a path template names.

        Raises:
            DataError: for a template that asks for other things than `numbers`, or leads outside the folder.
        """
        try:
            fields = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
            filled = template.format(**numbers) if fields <= set(numbers) else ".."
        except (ValueError, TypeError, KeyError, IndexError):
            filled = ".."
        path = PurePosixPath(filled)
        if path.is_absolute() or ".." in path.parts or "\\" in filled:
            expected = f"a path inside the folder made of {', '.join(sorted(numbers))}"
            mend = "do not use this data set unless you know why its paths lead elsewhere"
            raise DataError([Problem("path-outside", repr(template), expected, mend, self.file)])
        return self.root / path


@dataclass(frozen=True, slots=True)
class Clip:
    """Where the frames of one episode of one camera stand: `start` in seconds."""

    file: Path
    start: float


@dataclass(frozen=True, slots=True)
class Record:
    """One episode by the metadata."""

    length: int
    task: str | None
    data: Path
    clips: Mapping[str, Clip]


def read_info(root: Path) -> Info:
    """meta/info.json of a folder; raises DataError where it is not that of LeRobot v3."""
    file = root / "meta" / "info.json"
    mend = REWRITE
    try:
        written = json.loads(file.read_text())
        version = str(written["codebase_version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            [Problem("corrupt-file", f"{error!r}", "the JSON of a LeRobot data set", mend, str(file))]
        ) from error
    if not version.startswith("v3."):
        mend = (
            "convert it with LeRobot's own script to v3.0"
            if version.startswith(("v1.", "v2."))
            else "read it with a newer seqwm"
        )
        raise DataError([Problem("unknown-version", f"codebase_version {version}", "v3.x", mend, str(file))])
    try:
        info = Info(
            root,
            version,
            float(written["fps"]),
            {str(name): dict(feature) for name, feature in written["features"].items()},
            int(written["total_episodes"]),
            int(written["total_frames"]),
            str(written["data_path"]),
            str(written.get("video_path") or ""),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found = f"{type(error).__name__} at {error}"
        raise DataError([Problem("corrupt-file", found, "the JSON of a LeRobot data set", mend, str(file))]) from error
    if not info.fps > 0:
        raise DataError([Problem("video-fps", f"fps {info.fps}", "more than 0", mend, str(file))])
    return info


def read_records(info: Info) -> dict[int, Record]:
    """Every episode of meta/episodes by its number, in order.

    Raises:
        DataError: for files or columns that are missing, and numbers that stand twice.
    """
    files = sorted((info.root / "meta" / "episodes").rglob("*.parquet"))
    if not files:
        folder = str(info.root / "meta" / "episodes")
        raise DataError([Problem("missing-shard", "no file", "Parquet files", "fetch the folder again", folder)])
    records: dict[int, Record] = {}
    for file in files:
        shard = open_existing(file)
        parts = ("chunk_index", "file_index", "from_timestamp")
        places = {camera: [f"videos/{camera}/{part}" for part in parts] for camera in info.cameras}
        wanted = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        wanted += [column for columns in places.values() for column in columns]
        if missing := [column for column in wanted if column not in shard.schema.names]:
            mend = REWRITE
            raise DataError([Problem("missing-column", "no such column", "one", mend, str(file), column=missing[0])])
        optional = ["tasks"] if "tasks" in shard.schema.names else []
        for row in pq.read_table(file, columns=[*wanted, *optional]).to_pylist():
            number = int(row["episode_index"])
            tasks = row.get("tasks") or []
            clips = {}
            for camera, (chunk, index, start) in places.items():
                numbers = {"chunk_index": row[chunk], "file_index": row[index]}
                clips[camera] = Clip(info.place(info.video_path, video_key=camera, **numbers), float(row[start]))
            data = info.place(info.data_path, chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
            if number in records:
                found, mend = "the same number twice", "write the folder again with LeRobot"
                raise DataError([Problem("duplicate-episode", found, "one an episode", mend, str(file), number)])
            records[number] = Record(int(row["length"]), tasks[0] if len(tasks) == 1 else None, data, clips)
    return dict(sorted(records.items()))


def check_totals(info: Info, records: Mapping[int, Record], shards: Sequence[Shard]) -> None:
    """Refuse a folder whose totals are not those of its files; raises DataError with each of them."""
    rows = sum(shard.parquet.num_rows for shard in shards if shard.parquet is not None)
    counted = [
        ("episodes in meta/episodes", len(records), info.episodes, "total_episodes"),
        ("steps by the lengths in meta/episodes", sum(r.length for r in records.values()), info.frames, "total_frames"),
        ("rows in the data files", rows, info.frames, "total_frames"),
    ]
    mend = "fetch what is missing, or write the folder again with LeRobot"
    problems = [
        Problem("totals-differ", f"{count} {what}", f"{total}, as {name} in info.json says", mend, info.file)
        for what, count, total, name in counted
        if count != total
    ]
    if problems:
        raise DataError(problems)


def open_existing(file: Path) -> Shard:
    """A Parquet file that the metadata names; raises DataError where it is not there."""
    if not file.is_file():
        raise DataError([Problem("missing-shard", "no such file", "a file", "fetch the folder again", str(file))])
    return open_shard(str(file), partial(Path, file), arrow=False)
