"""Minari data sets in all three of its storages, read directly.

Minari's own reader passes NaN, wrong dtypes and lengths, builds the environment that a data set names, and takes ten
times as long on Arrow. Minari itself is asked for one thing: to download what is not local.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np

from seqwm.core.errors import DataError, MissingPackageError
from seqwm.core.types import Array, Episode, Spaces
from seqwm.data.problems import Findings, Problem
from seqwm.data.sources import Source
from seqwm.data.sources.columns import UnreadableColumn
from seqwm.data.sources.ends import find_end, open_tail
from seqwm.data.sources.minari_hdf5 import FILE_NAME as HDF5_FILE
from seqwm.data.sources.minari_hdf5 import Hdf5Episodes, open_hdf5_episodes
from seqwm.data.sources.minari_metadata import FILE_NAME as METADATA_FILE
from seqwm.data.sources.minari_metadata import LoggedEpisode, Metadata, read_metadata
from seqwm.data.sources.minari_tables import TableEpisodes, open_table_episodes, table_files
from seqwm.data.sources.observed_spaces import observe, space_of

_ID = re.compile(r"(?:[\w-]+/)*[\w-]+-v\d+")
_FLAGS = {"terminated": "terminations", "truncated": "truncations"}


def open_source(location: str, findings: Findings) -> Source:
    """The data set of an id ('hopper/medium-v0') or of a folder.

    An id is looked up under MINARI_DATASETS_PATH (or ~/.minari/datasets) and downloaded through Minari where it is not
    there.

    Raises:
        DataError: for an id that cannot be had, and for files that are not what they should be.
    """
    folder = datasets_folder() / location
    is_id = _ID.fullmatch(location) is not None
    if is_id and not _is_dataset(folder) and not _is_dataset(Path(location)):
        _download(location)
    if is_id and _is_dataset(folder):
        return _open(folder / "data", findings)
    return open_folder(Path(location), findings)


def open_folder(path: Path, findings: Findings) -> Source:
    """The data set of a folder: the one with `data` in it, or `data` itself.

    Raises:
        DataError: for a folder that holds no data set, and for files that are not what they should be.
    """
    data = path / "data" if (path / "data" / METADATA_FILE).is_file() else path
    if not (data / METADATA_FILE).is_file():
        expected, mend = "a Minari id such as hopper/medium-v0, or a Minari folder", "check the name"
        raise DataError([Problem("unknown-source", "no data/metadata.json", expected, mend, str(path))])
    return _open(data, findings)


def datasets_folder() -> Path:
    """Where Minari keeps its data sets."""
    stated = os.environ.get("MINARI_DATASETS_PATH")
    return Path(stated) if stated else Path.home() / ".minari" / "datasets"


def _open(data: Path, findings: Findings) -> Source:
    metadata = read_metadata(data / METADATA_FILE, findings)
    with _container(metadata) as container:
        numbers = sorted(container.numbers)
    _check_numbers(metadata, numbers)
    if metadata.observation_space is None or metadata.action_space is None:
        metadata = _infer_spaces(metadata, findings)
    assert metadata.observation_space is not None
    name = f"minari:{metadata.dataset_id}" if metadata.dataset_id else str(data.parent)
    return Source(
        name=name,
        spaces=Spaces(metadata.observation_space, metadata.action_space),
        episodes=lambda: _episodes(metadata, findings),
        files=tuple(_files(metadata, numbers)),
        provenance=dict(metadata.provenance),
        count=len(numbers),
    )


def _container(metadata: Metadata) -> AbstractContextManager[Hdf5Episodes | TableEpisodes]:
    return open_hdf5_episodes(metadata) if metadata.format == "hdf5" else open_table_episodes(metadata)


def _files(metadata: Metadata, numbers: list[int]) -> Iterator[Path]:
    yield metadata.file
    if metadata.format == "hdf5":
        yield metadata.folder / HDF5_FILE
        return
    for number in numbers:
        folder = metadata.folder / str(number)
        yield from table_files(folder, metadata.format)
        if (folder / METADATA_FILE).is_file():
            yield folder / METADATA_FILE


def _check_numbers(metadata: Metadata, numbers: list[int]) -> None:
    """Episodes are numbered 0, 1, ... without gaps, as many as the metadata says."""
    file = str(metadata.file)
    if not numbers:
        mend = "name a data set that holds episodes"
        raise DataError([Problem("empty-dataset", "no episode", "at least one", mend, file)])
    gap = next((place for place, number in enumerate(numbers) if place != number), None)
    if gap is not None:
        mend = "fetch the data set again, or number the episodes without gaps"
        expected = f"episodes 0 to {len(numbers) - 1} without a gap"
        raise DataError([Problem("missing-episode", f"no episode {gap}", expected, mend, file, gap)])
    stated = metadata.episodes
    if stated is not None and stated != len(numbers):
        mend = "correct total_episodes, or fetch the data set again"
        raise DataError([Problem("totals-differ", f"{len(numbers)} episodes", f"{stated}, as stated", mend, file)])


def _episodes(metadata: Metadata, findings: Findings) -> Iterator[Episode]:
    """Every episode in order; what is wrong goes to `findings`, and the episode is passed over."""
    identities: dict[int, int] = {}
    steps, whole = 0, True
    with _container(metadata) as container:
        last = max(container.numbers)
        for number in sorted(container.numbers):
            file = str(container.file(number))
            try:
                logged = container.read(number)
            except UnreadableColumn as problem:
                findings.add(problem.problem(file, number))
                whole = False
                continue
            episode = _assemble(number, logged, identities, is_last=number == last)
            if isinstance(episode, Problem):
                findings.add(replace(episode, file=file, episode=number))
                whole = False
                continue
            if not (episode.terminated or episode.truncated):
                findings.add(open_tail(file, number, len(logged.rewards)))
            steps += len(logged.rewards)
            yield episode
    if whole and metadata.steps is not None and metadata.steps != steps:
        mend = "correct total_steps, or fetch the data set again"
        found, expected = f"{steps} steps", f"{metadata.steps}, as stated"
        findings.add(Problem("totals-differ", found, expected, mend, str(metadata.file)))


def _assemble(number: int, logged: LoggedEpisode, identities: dict[int, int], *, is_last: bool) -> Episode | Problem:
    """The episode of what was logged, or what is wrong with it; values are for the store's own check."""
    if logged.identity is not None and identities.setdefault(logged.identity, number) != number:
        found = f"id {logged.identity}, which episode {identities[logged.identity]} has"
        return Problem("duplicate-episode", found, f"{number}", "give every episode its own id")
    for column in ("rewards", "terminations", "truncations"):
        values: Array = getattr(logged, column)
        if values.ndim != 1:
            found, mend = f"steps of shape {values.shape[1:]}", "log one number a step"
            return Problem("wrong-shape", found, "single numbers", mend, column=column)
    length = len(logged.rewards)
    if length == 0:
        return Problem("empty-episode", "no step", "at least one transition", "drop the episode", column="rewards")
    flags: dict[str, Array] = {}
    for kind, column in _FLAGS.items():
        flag: Array = getattr(logged, column)
        if len(flag) != length:
            found, mend = f"{len(flag)} flags", "log every column at every step"
            step = min(len(flag), length)
            return Problem("ragged-episode", found, f"{length}, as rewards", mend, step=step, column=column)
        if (wrong := np.flatnonzero((flag != 0) & (flag != 1))).size:
            found, step = f"{flag[wrong[0]]}", int(wrong[0])
            return Problem("wrong-type", found, "true or false", "log flags as booleans", step=step, column=column)
        flags[kind] = flag.astype(np.bool_)
    if logged.steps is not None and logged.steps != length:
        mend = "correct total_steps of the episode, or log it again"
        return Problem("totals-differ", f"{length} rewards", f"{logged.steps}, as stated", mend, column="rewards")
    end = find_end(flags, length, None, tail_allowed=is_last, columns=_FLAGS)
    if isinstance(end, Problem):
        return end
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes an infinity, which is named with its step
        rewards = logged.rewards.astype(np.float32, copy=False)
    return Episode(
        observations=logged.observations,
        actions=logged.actions,
        rewards=rewards,
        terminated=end[0],
        truncated=end[1],
        meta={"episode_index": number, **logged.meta},
    )


def _infer_spaces(metadata: Metadata, findings: Findings) -> Metadata:
    """Spaces off the data where they are not stated; the environment that would know them is never built."""
    spaces = {"observations": metadata.observation_space, "actions": metadata.action_space}
    for column, space in spaces.items():
        if space is not None:
            continue
        with _container(metadata) as container:
            leaves = observe(getattr(logged, column) for logged in _readable(container))
        if not leaves:
            mend = "state the space in metadata.json"
            raise DataError([Problem("missing-column", "no array", "some", mend, str(metadata.file), column=column)])
        spaces[column] = space_of(leaves, findings, str(metadata.file), column, action=column == "actions")
        found, mend = "no space in metadata.json", "nothing, or state the space there"
        expected = f"its space; {spaces[column]} is read off the data"
        place = (str(metadata.file), None, None, column)
        findings.add(Problem("space-inferred", found, expected, mend, *place, severity="warning"))
    return replace(metadata, observation_space=spaces["observations"], action_space=spaces["actions"])


def _readable(container: Hdf5Episodes | TableEpisodes) -> Iterator[LoggedEpisode]:
    for number in sorted(container.numbers):
        try:
            yield container.read(number)
        except UnreadableColumn:  # told with its place when the episodes are read
            continue


def _is_dataset(folder: Path) -> bool:
    return (folder / "data" / METADATA_FILE).is_file()


def _download(dataset: str) -> None:
    try:
        import minari
    except ImportError:
        raise MissingPackageError("minari", f"downloading minari:{dataset}") from None
    try:
        with redirect_stdout(sys.stderr):  # Minari prints; what we print may be JSON
            minari.download_dataset(dataset)
    except Exception as error:  # of the network, of Minari, of its version check
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        found = f"{type(error).__name__}: {first}"
        mend = f"check the id and the network, or put the data set under {datasets_folder()}"
        expected = "a data set that is local or can be downloaded"
        raise DataError([Problem("unreachable", found, expected, mend, f"minari:{dataset}")]) from error
