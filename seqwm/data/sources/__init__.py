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

from seqwm.core.types import Episode, Scalar, Spaces


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
