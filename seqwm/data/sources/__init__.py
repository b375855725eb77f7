"""Readers of logged trajectories, one file an origin; each turns its files into `Episode`s and refuses bad input.

`open_source` picks the reader by the form of the name:

    minari:hopper/medium-v0          a Minari id, local under MINARI_DATASETS_PATH or downloaded through Minari
    hf:user/name[@revision]          a Hugging Face dataset (Parquet), one row an episode or one row a step; or videos
    lerobot:user/name or lerobot:DIR LeRobot v3
    d4rl:file.hdf5                   D4RL's flat HDF5
    video:DIR                        video files, each an episode of frames without actions
    a path                           a store of ours, a Minari folder, a LeRobot folder, Parquet or Arrow files
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqwm.core.errors import DataError
from seqwm.core.types import Episode, Scalar, Spaces
from seqwm.data.problems import Findings, Problem


@dataclass(frozen=True, slots=True)
class Source:
    """An opened origin of episodes.

    Attributes:
        name: canonical name, for example 'minari:hopper/medium-v0'; what a card quotes.
        spaces: what one step looks like, as declared by the source or read from its columns.
        episodes: a fresh pass over the episodes, in the order of the source.
        files: every file that the content depends on; the cache hashes them.
        provenance: JSON scalars worth keeping: revision, environment id, licence, dataset version.
        count: number of episodes where the source says so, for progress.
    """

    name: str
    spaces: Spaces
    episodes: Callable[[], Iterator[Episode]]
    files: tuple[Path, ...] = ()
    provenance: dict[str, Scalar] = field(default_factory=dict)
    count: int | None = None

    @property
    def place(self) -> str:
        """What a problem of an episode names as its file: the file, the folder of several, or the name of a stream."""
        return os.path.commonpath(self.files) if self.files else self.name


def open_source(name: str, findings: Findings, *, streaming: bool = False) -> Source:
    """The reader for a name (see the module's list), its files found but its episodes not yet read.

    Args:
        name: a scheme and a location, or a path.
        findings: where problems go; strict ones raise.
        streaming: read a Hub dataset over the network instead of downloading it first.

    Raises:
        DataError: for a name that fits no reader, or files that are not what they should be.
    """
    scheme, colon, location = name.partition(":")
    if colon and scheme == "video":
        return _opened(_reader("clips").open_folder(location, findings))
    if colon and scheme in ("minari", "lerobot", "d4rl"):
        return _opened(_reader(scheme).open_source(location, findings))
    if colon and scheme == "hf":
        repository, _, revision = location.partition("@")
        return _opened(_reader("hub").open_source(repository, findings, revision=revision or None, streaming=streaming))

    path = Path(name)
    if not path.exists():
        raise DataError([_unknown(name, "no such file or folder")])
    if (path / "data" / "metadata.json").is_file() or (path / "metadata.json").is_file():
        return _opened(_reader("minari").open_folder(path, findings))
    if (path / "meta" / "info.json").is_file():
        return _opened(_reader("lerobot").open_source(name, findings))
    if path.suffix in (".hdf5", ".h5"):
        return _opened(_reader("d4rl").open_source(name, findings))
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".parquet", ".arrow"))
    if files and all(file.suffix in (".parquet", ".arrow") for file in files):
        return _opened(_reader("hub").open_files(files, findings))
    raise DataError([_unknown(name, f"a {'file' if path.is_file() else 'folder'} that no reader knows")])


def _reader(name: str) -> Any:
    """A reader's module, imported when it is used: each needs its own packages."""
    return importlib.import_module(f"seqwm.data.sources.{name}")


def _opened(source: Any) -> Source:
    assert isinstance(source, Source)
    return source


def _unknown(name: str, found: str) -> Problem:
    expected = (
        "minari:ID, hf:USER/NAME, lerobot:PATH, d4rl:FILE.hdf5, video:FOLDER, or the path of a store, Minari folder or "
        "Parquet"
    )
    return Problem("unknown-source", found, expected, "check the spelling; `seqwm data --help` has examples", file=name)
