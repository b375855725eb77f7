"""Readers of logged trajectories, one file an origin; each turns its files into `Episode`s and refuses bad input.

`open_source` picks the reader by the form of the name:

    minari:hopper/medium-v0          a Minari id, local under MINARI_DATASETS_PATH or downloaded through Minari
    hf:user/name[@revision]          a Hugging Face dataset (Parquet), one row an episode or one row a step
    lerobot:user/name or lerobot:DIR LeRobot v3
    d4rl:file.hdf5                   D4RL's flat HDF5
    a path                           a store of ours, a Minari folder, a LeRobot folder, Parquet or Arrow files
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

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


def open_source(name: str, findings: Findings, *, streaming: bool = False) -> Source:
    """The reader for a name (see the module's list), its files found but its episodes not yet read.

    Args:
        name: a scheme and a location, or a path.
        findings: where problems go; strict ones raise.
        streaming: read a Hub dataset over the network instead of downloading it first.

    Raises:
        DataError: for a name that fits no reader, or files that are not what they should be.
    """
    from seqwm.data.sources import d4rl, hub, lerobot, minari

    scheme, colon, location = name.partition(":")
    if colon and scheme in ("minari", "hf", "lerobot", "d4rl"):
        if scheme == "minari":
            return minari.open_source(location, findings)
        if scheme == "lerobot":
            return lerobot.open_source(location, findings)
        if scheme == "d4rl":
            return d4rl.open_source(location, findings)
        repository, _, revision = location.partition("@")
        return hub.open_source(repository, findings, revision=revision or None, streaming=streaming)

    path = Path(name)
    if not path.exists():
        raise DataError([_unknown(name, "no such file or folder")])
    if (path / "data" / "metadata.json").is_file() or (path / "metadata.json").is_file():
        return minari.open_source(name, findings)
    if (path / "meta" / "info.json").is_file():
        return lerobot.open_source(name, findings)
    if path.suffix in (".hdf5", ".h5"):
        return d4rl.open_source(name, findings)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".parquet", ".arrow"))
    if files and all(file.suffix in (".parquet", ".arrow") for file in files):
        return hub.open_files(files, findings)
    raise DataError([_unknown(name, f"a {'file' if path.is_file() else 'folder'} that no reader knows")])


def _unknown(name: str, found: str) -> Problem:
    expected = "minari:ID, hf:USER/NAME, lerobot:PATH, d4rl:FILE.hdf5, or the path of a store, Minari folder or Parquet"
    return Problem("unknown-source", found, expected, "check the spelling; `seqwm data --help` has examples", file=name)
