"""The trajectory store: append-only, memory-mapped, and so a dataset and a replay buffer in one.

A folder holds

    spec.json                  spaces, record layout, provenance, the list of segments, and a checksum of itself
    rows-00000.arrow           packed rows of the episodes of segment 0 (seqwm.data.segment)
    episodes-00000.arrow       one row an episode: length, ends, return, meta

Rows of an episode stand together: T transitions, then one row for the final observation where there is one. Episodes
gather in memory and are sealed into a segment when enough of them have come, at `flush`, `mark` and `close`. The
manifest (spec.json) is replaced atomically after the files it names are on disk, so whatever moment a process dies in,
the folder is a store that holds every episode sealed by then.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from seqwm.core.errors import DataError
from seqwm.core.files import file_sha256
from seqwm.core.spaces import space_from_json, space_to_json
from seqwm.core.types import Episode, Spaces
from seqwm.data import segment
from seqwm.data.episode_table import EpisodeTable
from seqwm.data.manifest import FORMAT_VERSION, read_manifest, write_manifest
from seqwm.data.problems import Problem
from seqwm.data.records import RecordLayout, read_episode, returns_to_go, write_episode
from seqwm.data.validate import check_episode

if TYPE_CHECKING:
    from seqwm.data.lane import Lane
    from seqwm.data.statistics import Statistics
    from seqwm.data.windows import Windows

ARENA_BYTES = 256 << 20
"""Rows gather in memory up to this size before they are sealed into a segment."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A point in the life of a store, to which `rewind` can return."""

    segments: int
    episodes: int


class TrajectoryStore:
    """Logged episodes as one array of packed rows.

    Open one with `seqwm.load(source)`, `TrajectoryStore.open(folder)` or `TrajectoryStore.create(folder, spaces)`.
    """

    def __init__(self, path: Path | None, spaces: Spaces, provenance: Mapping[str, Any], rewards: bool) -> None:
        self.path = path
        self.spaces = spaces
        self.provenance = dict(provenance)
        self.layout = RecordLayout.of(spaces, rewards)
        self.parts: list[segment.Rows] = []  # sealed segments in order, then the arena while it holds rows
        self._manifest: list[dict[str, Any]] = []
        self._arena: segment.Rows | None = None
        self._arena_used = 0
        self._sealed_episodes = 0
        self._table = EpisodeTable()
        self._cached_statistics: tuple[int, Statistics] | None = None

    # -- open and create --------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: Path | str | None,
        spaces: Spaces,
        *,
        provenance: Mapping[str, Any] | None = None,
        rewards: bool = True,
    ) -> Self:
        """A new, empty store in a folder that does not exist yet, or in memory where `path` is None.

        Args:
            path: the folder to make.
            spaces: what one step looks like.
            provenance: JSON scalars kept with the store: source, revision, environment id.
            rewards: whether episodes have rewards.
        """
        path = Path(path) if path is not None else None
        if path is not None:
            if path.exists() and any(path.iterdir()):
                found = "a folder with files in it"
                raise DataError(
                    [Problem("store-exists", found, "a new folder", "name another or remove it", str(path))]
                )
            path.mkdir(parents=True, exist_ok=True)
        store = cls(path, spaces, provenance or {}, rewards)
        store._write_manifest()
        return store

    @classmethod
    def open(cls, path: Path | str) -> TrajectoryStore:
        """Map an existing store; milliseconds, whatever its size. `verify` checks every byte."""
        path = Path(path)
        spec = read_manifest(path / "spec.json")
        spaces = Spaces(
            space_from_json(spec["observation_space"]),
            space_from_json(spec["action_space"]) if spec["action_space"] else None,
        )
        store = cls(path, spaces, spec["provenance"], spec["rewards"])
        for entry in spec["segments"]:
            first_row, rows = store._total_rows, entry["rows"]
            store.parts.append(segment.open_rows(path / entry["rows_file"], store.layout, rows))
            store._table.read(path / entry["episodes_file"], entry["episodes"], first_row, rows)
        store._manifest = list(spec["segments"])
        store._sealed_episodes = len(store)
        return store

    @staticmethod
    def is_store(path: Path | str) -> bool:
        """Whether a folder is a store."""
        return (Path(path) / "spec.json").is_file()

    # -- what it holds ----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """The number of episodes."""
        return len(self._table)

    @property
    def rows(self) -> int:
        """The number of transitions."""
        return self._table.transitions

    @property
    def has_actions(self) -> bool:
        """Whether actions were logged."""
        return self.layout.actions

    @property
    def has_rewards(self) -> bool:
        """Whether rewards were logged."""
        return self.layout.rewards

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Transitions of each episode, [N]."""
        return self._table["length"]

    @property
    def ends(self) -> NDArray[np.int64]:
        """Cumulative transitions up to and with each episode, [N]."""
        return self._table["end"]

    @property
    def first_rows(self) -> NDArray[np.int64]:
        """Row at which each episode begins, final-observation rows counted, [N]."""
        return self._table["first_row"]

    @property
    def returns(self) -> NDArray[np.float64]:
        """Undiscounted return of each episode, [N]; NaN where rewards were not logged."""
        return self._table["return"]

    @property
    def terminated(self) -> NDArray[np.bool_]:
        """Whether each episode ended by its task, [N]."""
        return self._table["terminated"]

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """Whether each episode was cut, [N]."""
        return self._table["truncated"]

    @property
    def final_observations(self) -> NDArray[np.bool_]:
        """Whether each episode was logged with the observation behind its last action, [N]."""
        return self._table["final_observation"]

    def episode(self, number: int) -> Episode:
        """Episode `number` (0 first), copied out."""
        if not -len(self) <= number < len(self):
            raise IndexError(f"episode {number}: the store has {len(self)}")
        number %= len(self)
        length, first = int(self.lengths[number]), int(self.first_rows[number])
        rows = length + int(self._table["final_observation"][number])
        part, offset = self._part_of(first)
        span = slice(first - offset, first - offset + rows)
        return read_episode(
            self.layout,
            part.records[span],
            {name: array[span] for name, array in part.images.items()},
            length,
            terminated=bool(self.terminated[number]),
            truncated=bool(self.truncated[number]),
            meta=json.loads(self._table.meta[number]),
        )

    def episodes(self) -> Iterator[Episode]:
        """Every episode in order."""
        return (self.episode(number) for number in range(len(self)))

    @property
    def statistics(self) -> Statistics:
        """Means, deviations and return quantiles of what the store holds now."""
        from seqwm.data.statistics import compute_statistics

        if self._cached_statistics is None or self._cached_statistics[0] != len(self):
            self._cached_statistics = (len(self), compute_statistics(self))
        return self._cached_statistics[1]

    @property
    def fingerprint(self) -> str:
        """Hex sha256 that names the content: of the checksums of the sealed files, or of the rows where there are none.

        Seals what is in memory first, so that the name stands for everything the store holds.
        """
        self.flush()
        digest = hashlib.sha256(json.dumps(self._description(), sort_keys=True).encode())
        for entry in self._manifest:
            digest.update(f"{entry['rows_sha256']}{entry['episodes_sha256']}".encode())
        if self.path is None:
            for part in self.parts:
                for array in (part.records, *part.images.values()):
                    digest.update(np.ascontiguousarray(array).view(np.uint8).data)
            for name in ("length", "terminated", "truncated", "final_observation"):
                digest.update(self._table[name].tobytes())
        return digest.hexdigest()

    def described(self) -> dict[str, Any]:
        """What a model's configuration says of the data that it learned from, by the names of its fields."""
        action = self.spaces.action
        return {
            "observation_space": space_to_json(self.spaces.observation),
            "action_space": None if action is None else space_to_json(action),
            "dataset": self.provenance.get("source"),
            "dataset_fingerprint": self.fingerprint,
            "environment": self.provenance.get("environment"),
        }

    def windows(
        self,
        length: int = 20,
        batch_size: int = 64,
        seed: int = 0,
        *,
        episodes: Sequence[int] | None = None,
        discount: float = 1.0,
        end_reward: float | None = None,
        overrun: int = 0,
        following: bool = False,
        ends: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> Windows:
        """Batches of windows in an order that is a pure function of (seed, step) and the rows.

        Args:
            length: rows of a window, T.
            batch_size: windows of a batch over all processes together.
            seed: names the order.
            episodes: draw from these only (the best tenth, say); all when None.
            discount: of `Batch.returns_to_go`; 1 is the plain sum.
            end_reward: taken as the last reward of episodes that terminated, in rewards and returns; None leaves it.
            overrun: rows behind a termination that windows may still end at, less than `length`.
            following: with the observation that follows each window, `Batch.following`.
            ends: share of the windows of a batch that end where an episode does.
            rank, world_size: this process draws its share of every batch.
        """
        from seqwm.data.windows import Windows

        return Windows(
            self,
            length,
            batch_size,
            seed,
            episodes,
            discount,
            end_reward,
            overrun,
            following,
            ends,
            rank,
            world_size,
        )

    # -- growing ----------------------------------------------------------------------------------------------------

    def append(self, episode: Episode) -> int:
        """Add a finished episode; returns its number. Raises DataError, and adds nothing, when it is malformed."""
        number = len(self)
        problems = check_episode(episode, self.spaces, rewards=self.has_rewards, number=number)
        errors = [problem for problem in problems if problem.severity == "error"]
        if errors:
            raise DataError(errors)
        rows = len(episode) + int(episode.final_observation)
        target, start = self._room(rows)
        span = slice(start, start + rows)
        images = {name: array[span] for name, array in target.images.items()}
        write_episode(self.layout, episode, target.records[span], images)
        first_row = self._total_rows
        self._arena_used += rows
        self._show_arena()
        self._table.append(episode, first_row)
        return number

    def lane(self) -> Lane:
        """A running environment's way in: its steps become an episode here when it ends."""
        from seqwm.data.lane import Lane

        return Lane(self)

    def flush(self) -> None:
        """Seal the episodes gathered in memory; after it they survive the process."""
        if self._arena is None or not self._arena_used:
            return
        sealed = _head(self._arena, self._arena_used)
        if self.path is not None:
            sealed = self._write_segment(sealed)
        self.parts[-1] = sealed
        self._arena, self._arena_used = None, 0
        self._sealed_episodes = len(self)

    def close(self) -> None:
        """Seal what is in memory."""
        self.flush()

    def mark(self) -> Mark:
        """Seal, and name this point for a later `rewind`."""
        self.flush()
        return Mark(len(self.parts), len(self))

    def rewind(self, mark: Mark) -> None:
        """Forget everything that came after a mark, so that a resumed run sees no data from its own future."""
        self.flush()
        if mark.segments > len(self.parts) or mark.episodes > len(self):
            raise DataError([_lost(self.path, f"{len(self)} episodes", f"at least {mark.episodes}")])
        dropped = self._manifest[mark.segments :]
        self.parts, self._manifest = self.parts[: mark.segments], self._manifest[: mark.segments]
        self._table.shrink(mark.episodes)
        self._sealed_episodes = mark.episodes
        self._cached_statistics = None
        if self.path is not None:
            self._write_manifest()
            for entry in dropped:
                (self.path / entry["rows_file"]).unlink(missing_ok=True)
                (self.path / entry["episodes_file"]).unlink(missing_ok=True)

    def delete(self) -> None:
        """Remove the folder."""
        if self.path is not None:
            shutil.rmtree(self.path)

    # -- checking ---------------------------------------------------------------------------------------------------

    def verify(self) -> list[Problem]:
        """Read every byte and compare with the checksums; an empty list means that nothing has changed on disk."""
        problems = []
        for entry in self._manifest:
            assert self.path is not None
            for name in ("rows", "episodes"):
                file = self.path / entry[f"{name}_file"]
                expected = entry[f"{name}_sha256"]
                found = file_sha256(file) if file.is_file() else "no file"
                if found != expected:
                    mend = "the file is damaged: convert or collect the data again"
                    problem = Problem(
                        "checksum-mismatch", f"sha256 {found}", f"sha256 {expected}", mend, file=str(file)
                    )
                    problems.append(problem)
        return problems

    # -- inside -----------------------------------------------------------------------------------------------------

    @property
    def _total_rows(self) -> int:
        return sum(len(part) for part in self.parts)

    def _part_of(self, row: int) -> tuple[segment.Rows, int]:
        offset = 0
        for part in self.parts:
            if row < offset + len(part):
                return part, offset
            offset += len(part)
        raise IndexError(row)

    def _room(self, rows: int) -> tuple[segment.Rows, int]:
        """The arena and the first free row in it, a new arena where the episode does not fit."""
        if self._arena is not None and self._arena_used + rows > len(self._arena):
            self.flush()
        if self._arena is None:
            # Untouched pages of a fresh array cost nothing, so the whole capacity is asked for at once.
            capacity = max(rows, ARENA_BYTES // self.layout.row_bytes)
            images = {name: np.empty((capacity, *shape), np.uint8) for name, shape in self.layout.images.items()}
            self._arena = segment.Rows(np.zeros(capacity, self.layout.record), images)
            self._arena_used = 0
        return self._arena, self._arena_used

    def _show_arena(self) -> None:
        assert self._arena is not None
        visible = _head(self._arena, self._arena_used)
        if len(self) > self._sealed_episodes:
            self.parts[-1] = visible
        else:
            self.parts.append(visible)

    def _write_segment(self, rows: segment.Rows) -> segment.Rows:
        assert self.path is not None
        number = len(self._manifest)
        names = f"rows-{number:05d}.arrow", f"episodes-{number:05d}.arrow"
        entry = {
            "rows_file": names[0],
            "rows": len(rows),
            "rows_sha256": segment.write_rows(self.path / names[0], self.layout, rows),
            "episodes_file": names[1],
            "episodes": len(self) - self._sealed_episodes,
            "episodes_sha256": self._table.write(self.path / names[1], self._sealed_episodes),
        }
        self._manifest.append(entry)
        self._write_manifest()
        return segment.open_rows(self.path / names[0], self.layout, len(rows))

    def _description(self) -> dict[str, Any]:
        return {
            "format": "seqwm-store",
            "version": FORMAT_VERSION,
            "observation_space": space_to_json(self.spaces.observation),
            "action_space": space_to_json(self.spaces.action) if self.spaces.action is not None else None,
            "rewards": self.layout.rewards,
            "record": self.layout.describe(),
        }

    def _write_manifest(self) -> None:
        if self.path is None:
            return
        body = self._description() | {"provenance": self.provenance, "segments": self._manifest}
        write_manifest(self.path / "spec.json", body)


def discounted_returns(store: TrajectoryStore, discount: float, end_reward: float | None = None) -> NDArray[np.float32]:
    """Discounted return-to-go of every row of the store, float32 [all rows], zero at final-observation rows.

    `end_reward` stands for the last reward of episodes that terminated, where it is given.
    """
    out = np.zeros(store._total_rows, np.float32)
    for first, length, terminated in zip(store.first_rows, store.lengths, store.terminated, strict=True):
        part, offset = store._part_of(int(first))
        rewards = part.records["reward"][first - offset : first - offset + length]
        if terminated and end_reward is not None:
            rewards = np.append(rewards[:-1], np.float32(end_reward))
        out[first : first + length] = returns_to_go(rewards, discount)
    return out


def _head(rows: segment.Rows, count: int) -> segment.Rows:
    return segment.Rows(rows.records[:count], {name: array[:count] for name, array in rows.images.items()}, rows.mapped)


def _lost(path: Path | None, found: str, expected: str) -> Problem:
    return Problem("damaged-store", found, expected, "data was removed: collect or convert it again", str(path))
