"""Frames out of video files, decoded by PyAV.

The container is taken from the file's name, or of bytes from how they begin, and nothing else is tried: a playlist that
calls itself .mp4 could otherwise have FFmpeg open other files and addresses.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".m4v": "mp4", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi"}
_BEGINNINGS = ((4, b"ftyp", "mp4"), (0, b"\x1a\x45\xdf\xa3", "matroska"), (8, b"AVI ", "avi"))


class UnreadableVideo(Exception):
    """A video file that does not open or decode."""


@dataclass(frozen=True, slots=True)
class VideoFormat:
    """Height and width in pixels, and frames a second (0 where the file does not say)."""

    height: int
    width: int
    fps: float


def video_format(video: Path | bytes) -> VideoFormat:
    """The format of the first video stream of a file, or of its bytes.

    Raises:
        UnreadableVideo: for a file that does not open, or holds no video.
    """
    import av

    try:
        with _opened(video) as container:
            stream = container.streams.video[0]
            return VideoFormat(stream.height, stream.width, float(stream.average_rate or 0))
    except (av.FFmpegError, OSError, IndexError) as error:
        raise UnreadableVideo(str(error) or type(error).__name__) from error


def decode_frames(
    path: Path, start: float, count: int, spacing: float
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """`count` frames from `start` on, or as many as there are, and when they are shown.

    Args:
        path: the file.
        start: seconds of the first frame; half a `spacing` of tolerance.
        count: frames at most.
        spacing: seconds between frames.

    Returns:
        RGB frames uint8 [N, H, W, 3] and their times in seconds float64 [N].

    Raises:
        UnreadableVideo: for a file that does not open or decode.
    """
    import av

    frames: NDArray[np.uint8] | None = None
    times: list[float] = []
    try:
        with _opened(path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if start > 0 and stream.time_base is not None:
                container.seek(int(start / stream.time_base), stream=stream)  # to the key frame before it
            for frame in container.decode(stream):
                if len(times) == count:
                    break
                if frame.time is None or frame.time < start - spacing / 2:
                    continue
                if frames is None:
                    frames = np.empty((count, frame.height, frame.width, 3), np.uint8)
                frames[len(times)] = frame.to_ndarray(format="rgb24")
                times.append(frame.time)
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:
        raise UnreadableVideo(str(error) or type(error).__name__) from error
    if frames is None:
        return np.empty((0, 0, 0, 3), np.uint8), np.empty(0)
    return frames[: len(times)], np.array(times)


def read_frames(video: Path | bytes) -> NDArray[np.uint8]:
    """Every frame of a file, or of its bytes, RGB uint8 [N, H, W, 3].

    Raises:
        UnreadableVideo: for a file that does not open or decode, or holds no frame.
    """
    import av

    try:
        with _opened(video) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames)
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:
        raise UnreadableVideo(str(error) or type(error).__name__) from error


def _opened(video: Path | bytes) -> Any:
    """PyAV's container of a file or of its bytes."""
    import av

    if isinstance(video, Path):
        return av.open(str(video), format=CONTAINERS.get(video.suffix.lower()))
    for place, magic, container in _BEGINNINGS:
        if video[place : place + len(magic)] == magic:
            return av.open(io.BytesIO(video), format=container)
    raise UnreadableVideo("bytes that begin like neither MP4 nor Matroska nor AVI")
