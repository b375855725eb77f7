"""LeRobot v3: Parquet for what is small, one video file for the frames of many episodes, JSON that says where all is.

    meta/info.json                                  version, fps, features, totals, path templates
    meta/episodes/chunk-000/file-000.parquet        length, tasks and places of every episode
    data/chunk-000/file-000.parquet                 one row a step
    videos/<camera>/chunk-000/file-000.mp4          its own numbering, not that of the data files

An episode's frames are decoded in one go, from the time at which the metadata says it begins. The format has one
observation a step, so the one after the last action is never there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces as gym_spaces

from seqwm.core.errors import DataError
from seqwm.core.spaces import leaf_spaces
from seqwm.core.tree import flatten, unflatten
from seqwm.core.types import Array, Episode, Scalar, Spaces
from seqwm.data.problems import Findings, Problem
from seqwm.data.sources import Source
from seqwm.data.sources.inference import infer_spaces
from seqwm.data.sources.layout import DONE, REWARD, TERMINATED, TRUNCATED, Layout, check_layout
from seqwm.data.sources.lerobot_metadata import (
    REWRITE,
    Clip,
    Info,
    Record,
    check_totals,
    open_existing,
    read_info,
    read_records,
)
from seqwm.data.sources.shards import Shard, check_schemas
from seqwm.data.sources.step_rows import read_steps
from seqwm.data.sources.video import UnreadableVideo, decode_frames, video_format

_CLOCK = "timestamp"


def open_source(location: str, findings: Findings) -> Source:
    """The data set in a folder, or of a Hub repository 'user/name[@revision]'.

    Raises:
        DataError: for another version of the format, paths that lead outside, totals that differ, missing files.
    """
    provenance: dict[str, Scalar] = {}
    root, name = Path(location), f"lerobot:{location}"
    if not root.is_dir():
        from seqwm.data.sources import hub

        repository, _, revision = location.partition("@")
        root = hub.download(repository, revision or None, ["meta/*", "data/*", "videos/*"])
        name, provenance = f"lerobot:{repository}", {"revision": root.name}
    info = read_info(root)
    records = read_records(info)
    files = list(dict.fromkeys(record.data for record in records.values()))
    shards = [open_existing(file) for file in files]
    check_schemas(shards)
    check_totals(info, records, shards)
    layout = _layout(info, shards[0], findings)
    stored = infer_spaces(shards, layout)
    spaces = Spaces(_observation_space(info, records, stored), stored.action)
    _check_features(info, layout, stored)
    videos = list(dict.fromkeys(clip.file for record in records.values() for clip in record.clips.values()))
    return Source(
        name=name,
        spaces=spaces,
        episodes=lambda: _read(info, records, shards, layout, stored, findings),
        files=(root / "meta" / "info.json", *files, *videos),
        provenance={"codebase_version": info.version, "fps": info.fps, **provenance},
        count=info.episodes,
    )


def _layout(info: Info, shard: Shard, findings: Findings) -> Layout:
    """Columns by meaning; observations go by their whole name here, and the time of every step among them."""
    names = set(shard.schema.names)

    def first(choices: tuple[str, ...]) -> str | None:
        return next((name for name in choices if name in names), None)

    for column in ("episode_index", "frame_index", _CLOCK):
        if column not in names:
            mend = REWRITE
            raise DataError([Problem("missing-column", "no such column", "one", mend, shard.name, column=column)])
    stored = [name for name in _named(info, "observation") if name in names]
    layout = Layout(
        rows="step",
        observations={name: name for name in [*stored, _CLOCK]},
        actions=_paths([name for name in _named(info, "action") if name in names], "action"),
        reward=first(REWARD),
        terminated=first(TERMINATED),
        truncated=first(TRUNCATED),
        done=first(DONE),
        episode="episode_index",
        frame="frame_index",
        task="task_index" if "task_index" in names else None,
        tails=True,
    )
    check_layout(layout, shard, findings)
    return layout


def _named(info: Info, kind: str) -> list[str]:
    """Features of a kind that hold numbers or frames."""
    return [
        name
        for name, feature in info.features.items()
        if (name == kind or name.startswith(f"{kind}.")) and feature.get("dtype") != "string"
    ]


def _paths(columns: Sequence[str], kind: str) -> dict[str, str]:
    """Columns by leaf path: '' for one alone, else the name behind the kind."""
    if len(columns) == 1:
        return {"": columns[0]}
    return {column[len(kind) + 1 :] or kind: column for column in columns}


def _observation_space(info: Info, records: Mapping[int, Record], stored: Spaces) -> Any:
    """The space of everything that is observed, cameras in it, in the order of the features."""
    spaces = leaf_spaces(stored.observation)
    for camera in info.cameras:
        clip = next(iter(records.values())).clips[camera]
        try:
            form = video_format(clip.file)
        except UnreadableVideo as error:
            raise DataError([_broken(clip.file, camera, None, error)]) from error
        if form.fps and abs(form.fps - info.fps) > 0.01 * info.fps:
            found, expected = f"{form.fps:g} frames a second", f"{info.fps:g}, as info.json says"
            mend = REWRITE
            raise DataError([Problem("video-fps", found, expected, mend, str(clip.file), column=camera)])
        spaces[camera] = gym_spaces.Box(0, 255, (form.height, form.width, 3), np.uint8)
    leaves = {path: spaces[column] for path, column in _observed(info, spaces).items()}
    if not leaves:
        mend = "nothing can be learned from it"
        raise DataError([Problem("missing-column", "no observation", "a feature 'observation.*'", mend, info.file)])
    return leaves[""] if set(leaves) == {""} else gym_spaces.Dict(leaves)


def _observed(info: Info, present: Mapping[str, Any]) -> dict[str, str]:
    return _paths([name for name in _named(info, "observation") if name in present], "observation")


def _check_features(info: Info, layout: Layout, stored: Spaces) -> None:
    """Refuse columns of another shape than the features in info.json say."""
    spaces = dict(leaf_spaces(stored.observation))
    if stored.action is not None:
        actions = leaf_spaces(stored.action)
        spaces |= {column: actions[path] for path, column in layout.actions.items()}
    for column, space in spaces.items():
        feature = info.features.get(column, {})
        stated, found = tuple(feature.get("shape", ())), tuple(space.shape or (1,))
        same = sorted(stated) == sorted(found) if feature.get("dtype") == "image" else stated == found
        if stated and not same:
            mend = REWRITE
            problem = Problem("wrong-shape", f"{found}", f"{stated}, as info.json says", mend, info.file, column=column)
            raise DataError([problem])


def _read(
    info: Info,
    records: Mapping[int, Record],
    shards: Sequence[Shard],
    layout: Layout,
    stored: Spaces,
    findings: Findings,
) -> Iterator[Episode]:
    open_ends = 0
    for episode in read_steps(shards, layout, stored, findings):
        number = int(episode.meta["episode_index"] or 0)
        record = records.get(number)
        leaves = flatten(episode.observations)
        times = leaves.pop(_CLOCK)[:, 0].astype(np.float64)
        if record is None or record.length != len(times):
            expected = f"{record.length if record else 0} steps, as meta/episodes says"
            mend = REWRITE
            findings.add(Problem("totals-differ", f"{len(times)} steps", expected, mend, info.file, number))
            continue
        try:
            for camera, clip in record.clips.items():
                leaves[camera] = _frames(info, clip, camera, number, times)
        except DataError as error:
            findings.extend(list(error.problems))
            continue
        open_ends += bool(layout.flags) and not (episode.terminated or episode.truncated)
        paths = _observed(info, leaves)
        meta = dict(episode.meta) | ({"task": record.task} if record.task is not None else {})
        observations = unflatten({path: leaves[column] for path, column in paths.items()})
        yield replace(episode, observations=observations, meta=meta)
    if open_ends:
        found, expected = f"{open_ends} episodes without an end flag", "terminated or truncated"
        mend = "nothing: they are kept as tails without an end"
        findings.add(Problem("missing-end-flag", found, expected, mend, info.file, severity="warning"))


def _frames(info: Info, clip: Clip, camera: str, episode: int, times: Array) -> Array:
    """The frame of every step, uint8 [T, H, W, 3].

    Raises:
        DataError: where there are fewer frames than steps, or they stand more than half a frame beside their steps.
    """
    try:
        frames, shown = decode_frames(clip.file, clip.start + float(times[0]), len(times), 1 / info.fps)
    except UnreadableVideo as error:
        raise DataError([_broken(clip.file, camera, episode, error)]) from error

    def refuse(check: str, found: str, expected: str, step: int | None = None) -> DataError:
        return DataError([Problem(check, found, expected, REWRITE, str(clip.file), episode, step, camera)])

    if len(frames) < len(times):
        raise refuse("video-too-short", f"{len(frames)} frames", f"{len(times)}, one a step", len(frames))
    drift = np.abs(shown - (clip.start + times))
    if drift.max() > 0.5 / info.fps:
        step = int(np.argmax(drift > 0.5 / info.fps))
        found, expected = f"a frame {drift[step]:.3f} s beside its step", f"at most {0.5 / info.fps:.3f} s"
        raise refuse("video-drift", found, expected, step)
    return frames


def _broken(file: Path, camera: str, episode: int | None, error: Exception) -> Problem:
    found, mend = f"a file that cannot be read ({error})", "fetch the file again"
    return Problem("corrupt-file", found, "a video", mend, str(file), episode, None, camera)
