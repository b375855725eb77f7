"""A folder of video files: each is an episode of frames, with neither actions nor rewards nor an end that was logged.

The frames of all files have one size and one rate; a step is one frame. What differs, does not decode or is too short
is named, and passed over where findings are not strict.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gymnasium import spaces

from seqwm.core.errors import DataError
from seqwm.core.types import Episode, Spaces
from seqwm.data.problems import Findings, Problem
from seqwm.data.sources import Source
from seqwm.data.sources.video import CONTAINERS, UnreadableVideo, VideoFormat, read_frames, video_format

_RATE_TOLERANCE = 0.01  # frames a second are stored as fractions near the nominal rate


def open_source(location: str, findings: Findings) -> Source:
    """The video files under the folder at `location`, in the order of their names.

    Raises:
        DataError: no such folder, or no file in it that can be read.
    """
    folder = Path(location)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in CONTAINERS)
    expected = f"a folder with files of {', '.join(CONTAINERS)}"
    if not files:
        found = "no video file in it" if folder.is_dir() else "no such folder"
        raise DataError([Problem("unknown-source", found, expected, "check the path", location)])
    known: VideoFormat | None = None
    for file in files:
        try:
            known = video_format(file)
            break
        except UnreadableVideo:
            continue  # it is named when its turn comes
    if known is None:
        raise DataError([_unreadable(files[0], "none of the files decodes")])
    image = spaces.Box(0, 255, (known.height, known.width, 3), np.uint8)
    return Source(
        name=f"video:{folder.name}",
        spaces=Spaces(image, None),
        episodes=lambda: _episodes(files, known, findings),
        files=tuple(files),
        provenance={"frames_per_second": round(known.fps, 3)},
        count=len(files),
    )


def _episodes(files: list[Path], known: VideoFormat, findings: Findings) -> Iterator[Episode]:
    for number, file in enumerate(files):
        try:
            own = video_format(file)
            frames = read_frames(file)
        except UnreadableVideo as error:
            findings.add(_unreadable(file, str(error), number))
            continue
        problem = _unlike(file, number, own, known, len(frames))
        if problem is not None:
            findings.add(problem)
            continue
        yield Episode(frames, None, None, terminated=False, truncated=False, meta={"file": file.name})


def _unlike(file: Path, number: int, own: VideoFormat, known: VideoFormat, frames: int) -> Problem | None:
    size, wanted = f"{own.height} x {own.width} pixels", f"{known.height} x {known.width} pixels, as in the first file"
    if (own.height, own.width) != (known.height, known.width):
        return Problem("image-shape", size, wanted, "resize the videos to one size", str(file), number)
    if abs(own.fps - known.fps) > _RATE_TOLERANCE * known.fps:
        rate, other = f"{own.fps:g} frames a second", f"{known.fps:g}, as in the first file"
        return Problem("video-fps", rate, other, "resample the videos to one rate", str(file), number)
    if frames < 2:
        mend = "remove the file"
        return Problem("no-transition", f"{frames} frame", "two frames, which are one step", mend, str(file), number)
    return None


def _unreadable(file: Path, said: str, number: int | None = None) -> Problem:
    mend = "convert it again, or remove the file"
    return Problem("corrupt-file", said, "a video that decodes", mend, str(file), number)
