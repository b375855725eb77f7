"""Minari's default storage: one HDF5 file, one group an episode, one data set a leaf."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from gymnasium import Space
from gymnasium import spaces as gym_spaces

from seqwm.core.types import Array, Tree
from seqwm.data.sources.columns import UnreadableColumn
from seqwm.data.sources.hdf5 import Hdf5File, open_group, open_hdf5, read_array, read_attributes, read_byte_strings
from seqwm.data.sources.minari_metadata import LoggedEpisode, Metadata, decode_jpeg, is_jpeg, scalars

FILE_NAME = "main_data.hdf5"


@dataclass(frozen=True, slots=True)
class Hdf5Episodes:
    """The episodes of one open file; `numbers` says which there are."""

    metadata: Metadata
    content: Hdf5File
    numbers: frozenset[int]

    def file(self, number: int) -> Path:
        """The file that holds an episode."""
        return self.metadata.folder / FILE_NAME

    def read(self, number: int) -> LoggedEpisode:
        """One episode.

        Raises:
            UnreadableColumn: for a column that is missing, damaged, or holds anything but numbers.
        """
        name = f"episode_{number}"
        group = open_group(self.content.root, name)
        stated = scalars(read_attributes(group))
        identity, steps = stated.pop("id", None), stated.pop("total_steps", None)
        return LoggedEpisode(
            observations=self._tree(group, name, "observations", self.metadata.observation_space),
            actions=self._tree(group, name, "actions", self.metadata.action_space),
            rewards=_named(read_array, group, "rewards"),
            terminations=_named(read_array, group, "terminations"),
            truncations=_named(read_array, group, "truncations"),
            identity=identity if isinstance(identity, int) else None,
            steps=steps if isinstance(steps, int) else None,
            meta=stated,
        )

    def _tree(self, group: Any, episode: str, path: str, space: Space[Any] | None) -> Tree:
        if isinstance(space, gym_spaces.Dict):
            return {name: self._tree(group, episode, f"{path}/{name}", sub) for name, sub in space.spaces.items()}
        if space is None and (names := self.content.children(f"{episode}/{path}")):
            return {name: self._tree(group, episode, f"{path}/{name}", None) for name in names}
        if space is not None and self.metadata.jpeg and is_jpeg(space):
            return _named(partial(_read_jpeg, space), group, path)
        return _named(read_array, group, path)


@contextmanager
def open_hdf5_episodes(metadata: Metadata) -> Iterator[Hdf5Episodes]:
    """Open the file of a data set.

    Raises:
        DataError: where there is none, or it cannot be read, or leads out of itself.
    """
    with open_hdf5(metadata.folder / FILE_NAME) as content:
        groups = [name.removeprefix("episode_") for name in content.children("") if name.startswith("episode_")]
        yield Hdf5Episodes(metadata, content, frozenset(int(name) for name in groups if name.isdecimal()))


def _read_jpeg(space: Space[Any], group: Any, path: str) -> Array:
    return decode_jpeg(pa.array(read_byte_strings(group, path), pa.binary()), space)


def _named(read: Callable[[Any, str], Array], group: Any, path: str) -> Array:
    try:
        return read(group, path)
    except UnreadableColumn as problem:
        problem.column = path
        raise
