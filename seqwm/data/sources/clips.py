"""Video clips: each is an episode of frames, with neither actions nor rewards nor an end that was logged.

They are the video files of a folder or of a Hub repository, or the rows of a table that hold one each. The frames of
all of them have one size and one rate; a step is one frame. What differs, does not decode or is too short is named, and
passed over where findings are not strict.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from gymnasium import spaces

from seqwm.core.errors import DataError
from seqwm.core.types import Episode, Scalar, Spaces
from seqwm.data.problems import Findings, Problem
from seqwm.data.sources import Source
from seqwm.data.sources.shards import Shard, read_batches
from seqwm.data.sources.video import CONTAINERS, UnreadableVideo, VideoFormat, read_frames, video_format

_RATE_TOLERANCE = 0.01  # frames a second are stored as fractions near the nominal rate
_BATCH_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Clip:
    """One video.

    Attributes:
        name: what the episode's meta calls it.
        place: file that problems name.
        video: the file, or its bytes; None where a row has neither.
    """

    name: str
    place: str
    video: Path | bytes | None


def is_video(name: str) -> bool:
    """Whether a file's name is one of a video."""
    return Path(name).suffix.lower() in CONTAINERS


def open_folder(location: str, findings: Findings) -> Source:
    """The video files under the folder at `location`, in the order of their names.

    Raises:
        DataError: no such folder, or no file in it that can be read.
    """
    folder = Path(location)
    files = tuple(sorted(path for path in folder.rglob("*") if is_video(path.name)))
    if not files:
        found = "no video file in it" if folder.is_dir() else "no such folder"
        expected = f"a folder with files of {', '.join(CONTAINERS)}"
        raise DataError([Problem("unknown-source", found, expected, "check the path", location)])
    return from_files(f"video:{folder.name}", files, findings, {})


def from_files(name: str, files: Sequence[Path], findings: Findings, provenance: dict[str, Scalar]) -> Source:
    """A source of video files.

    Raises:
        DataError: none of them decodes.
    """

    def clips() -> Iterator[Clip]:
        return (Clip(file.name, str(file), file) for file in files)

    return replace(_source(name, clips, findings, provenance), files=tuple(files), count=len(files))


def video_column(schema: pa.Schema) -> str | None:
    """The column of a table that holds a video a row, where one does: a `Video` of `datasets`, or one called so."""
    features: dict[str, Any] = {}
    with contextlib.suppress(KeyError, TypeError, ValueError):  # written by another program
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    for column in schema:
        stated = features.get(column.name) if isinstance(features, dict) else None
        named = column.name == "video" or (isinstance(stated, dict) and stated.get("_type") == "Video")
        if named and _bytes_of(column.type) is not None:
            return str(column.name)
    return None


def from_rows(
    name: str, shards: Sequence[Shard], column: str, findings: Findings, provenance: dict[str, Scalar]
) -> Source:
    """A source of tables with a column of videos.

    Raises:
        DataError: none of them decodes.
    """
    left = sorted(set(shards[0].schema.names) - {column})
    if left:
        mend = "nothing, if frames are all that is wanted"
        expected = f"'{column}' alone"
        findings.add(Problem("columns-left-out", ", ".join(left), expected, mend, shards[0].name, severity="warning"))
    rows = max(1, int(_BATCH_BYTES / max(max(shard.bytes_a_row for shard in shards), 1.0)))

    def clips() -> Iterator[Clip]:
        number = 0
        for shard, batch in read_batches(shards, [column], rows, findings):
            field = _bytes_of(batch.schema.field(column).type)
            values = batch[column] if field == "" else batch[column].field(field)
            for value in values:
                yield Clip(f"row {number}", shard.name, value.as_py())
                number += 1

    footers = [shard.parquet for shard in shards if shard.parquet is not None]
    count = sum(footer.num_rows for footer in footers) if len(footers) == len(shards) else None
    return replace(_source(name, clips, findings, provenance), count=count)


def _bytes_of(kind: pa.DataType) -> str | None:
    """The field of a column's values that holds the bytes, '' where they are the values; None where nothing does."""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return ""
    if pa.types.is_struct(kind):
        names = {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)}
        if "bytes" in names and _bytes_of(names["bytes"]) == "":
            return "bytes"
    return None


def _source(
    name: str, clips: Callable[[], Iterator[Clip]], findings: Findings, provenance: dict[str, Scalar]
) -> Source:
    known, first = None, None
    for number, clip in enumerate(clips()):
        try:
            known = video_format(_there(clip))
            break
        except UnreadableVideo as error:  # it is named when its turn comes
            first = first or _unreadable(clip, f"none of the videos decodes; of the first, {error}", number)
    if known is None:
        raise DataError([first or Problem("empty-dataset", "no video", "at least one", "check the files", name)])
    image = spaces.Box(0, 255, (known.height, known.width, 3), np.uint8)
    return Source(
        name=name,
        spaces=Spaces(image, None),
        episodes=lambda: _episodes(clips(), known, findings),
        provenance={**provenance, "frames_per_second": round(known.fps, 3)},
    )


def _episodes(clips: Iterator[Clip], known: VideoFormat, findings: Findings) -> Iterator[Episode]:
    for number, clip in enumerate(clips):
        try:
            own, frames = video_format(_there(clip)), read_frames(_there(clip))
        except UnreadableVideo as error:
            findings.add(_unreadable(clip, str(error), number))
            continue
        problem = _unlike(clip, number, own, known, len(frames))
        if problem is not None:
            findings.add(problem)
            continue
        yield Episode(frames, None, None, terminated=False, truncated=False, meta={"file": clip.name})


def _there(clip: Clip) -> Path | bytes:
    if clip.video is None:
        raise UnreadableVideo("a row without the bytes of a video, which `push_to_hub` of `datasets` would put there")
    return clip.video


def _unlike(clip: Clip, number: int, own: VideoFormat, known: VideoFormat, frames: int) -> Problem | None:
    size, wanted = f"{own.height} x {own.width} pixels", f"{known.height} x {known.width} pixels, as in the first video"
    if (own.height, own.width) != (known.height, known.width):
        return Problem("image-shape", size, wanted, "resize the videos to one size", clip.place, number)
    if abs(own.fps - known.fps) > _RATE_TOLERANCE * known.fps:
        rate, other = f"{own.fps:g} frames a second", f"{known.fps:g}, as in the first video"
        return Problem("video-fps", rate, other, "resample the videos to one rate", clip.place, number)
    if frames < 2:
        mend = "remove it"
        return Problem("no-transition", f"{frames} frame", "two frames, which are one step", mend, clip.place, number)
    return None


def _unreadable(clip: Clip, said: str, number: int) -> Problem:
    mend = "convert it again, or remove it"
    return Problem("corrupt-file", said, "a video that decodes", mend, clip.place, number)
