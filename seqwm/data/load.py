"""`seqwm.load`: any source to a store, converted once and found again by content, or read as a stream.

A source is read and checked into a temporary folder, which is renamed into the cache when every episode has passed, so
nothing half is ever there. The cache is keyed by what the files contain (a file's digest is remembered by its path,
size and modification time, so that opening again takes milliseconds). It lies in SEQWM_CACHE, or ~/.cache/seqwm.

A stream is read as far as it is asked for, into a store in a temporary folder that goes when the store does. Episodes
come in the order of the source, so what the store holds is a pure function of how far it was asked to grow, and not of
the network's speed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from seqwm.core.errors import DataError
from seqwm.core.files import aside, file_sha256, sync_folder
from seqwm.core.types import Episode
from seqwm.data.episode_check import check_final_observation
from seqwm.data.problems import Findings, Problem
from seqwm.data.sources import Source, open_source
from seqwm.data.store import TrajectoryStore

Store = TypeVar("Store", bound=TrajectoryStore)

IMPORTER_VERSION = 1
"""Part of the cache key; raised when a reader changes what it makes of the same files."""


FIRST_ROWS = 100_000
FIRST_BYTES = 64 << 20
"""What is read of a stream at once, whichever is less: enough for normalisation, which a model takes from it."""


class StreamedStore(TrajectoryStore):
    """A store that grows from a stream; it holds the first FIRST_ROWS or FIRST_BYTES to begin with."""

    _arrivals: Iterator[TrajectoryStore]
    _broken: DataError | None = None

    def grow(self, rows: int) -> None:
        """Read on until the store holds at least `rows` transitions or the stream has ended; whole episodes only.

        Raises:
            DataError: the stream broke off, or an episode is refused; what came before stays, and every later call
                raises it again, so that a stream which was cut is never taken for a short one.
        """
        if self._broken is not None:
            raise self._broken
        try:
            while self.rows < rows and next(self._arrivals, None) is not None:
                pass
        except DataError as error:
            self._broken = error
            raise


def load(source: str | Path, *, cache: bool = True, streaming: bool = False, progress: bool = False) -> TrajectoryStore:
    """The store of a source: 'minari:ID', 'hf:user/name', 'lerobot:...', 'd4rl:file.hdf5', or a path.

    Args:
        source: see `seqwm.data.sources`; a folder that is a store is opened as it is.
        cache: keep the converted store for next time; a temporary folder otherwise.
        streaming: of an 'hf:' source, a `StreamedStore`, which fetches more when it is asked to `grow`.
        progress: show a progress bar while converting.

    Raises:
        DataError: naming file, episode, step, column and the mend of what is wrong; nothing is written then.
    """
    if streaming:
        return _streamed(str(source))
    if TrajectoryStore.is_store(source):
        return TrajectoryStore.open(source)
    opened = open_source(str(source), Findings(strict=True))
    if not cache:
        return convert(opened, Path(tempfile.mkdtemp(prefix="seqwm-")) / "store", progress=progress)
    home = cache_folder() / "stores" / _content_key(opened)
    if not TrajectoryStore.is_store(home):
        _write_whole(opened, home, progress, Findings())
    return TrajectoryStore.open(home)


def convert(source: Source, out: Path, *, findings: Findings | None = None, progress: bool = False) -> TrajectoryStore:
    """Write a source into a new store at `out`; all of it or, when an episode is refused, nothing.

    Args:
        source: opened with the same `findings`.
        out: the folder to make.
        findings: where problems go; under ones that are not strict, episodes that are wrong are left out.
        progress: show a bar.

    Raises:
        DataError: `out` holds something, or an episode is wrong.
    """
    if out.exists() and any(out.iterdir()):
        mend = "name another folder or remove it"
        raise DataError([Problem("store-exists", "a folder with files in it", "a new folder", mend, str(out))])
    _write_whole(source, out, progress, findings or Findings())
    return TrajectoryStore.open(out)


def _write_whole(source: Source, out: Path, progress: bool, findings: Findings) -> None:
    """Write the store aside and put it in place; a store that another writer put there meanwhile stays."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _fill(source, partial, progress, findings)
        if out.exists():
            out.rmdir()
        os.rename(partial, out)
    except OSError:
        if not TrajectoryStore.is_store(out):
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(out.parent)


def cache_folder() -> Path:
    """Where converted stores and downloads are kept."""
    return Path(os.environ.get("SEQWM_CACHE") or Path.home() / ".cache" / "seqwm")


def _streamed(name: str) -> StreamedStore:
    if not name.startswith("hf:"):
        mend = "leave streaming out; what lies on this machine is mapped and not read into memory either"
        raise DataError([Problem("not-a-stream", "streaming asked for", "a source 'hf:user/name'", mend, name)])
    source = open_source(name, Findings(strict=True), streaming=True)
    folder = Path(tempfile.mkdtemp(prefix="seqwm-stream-"))
    arrivals = _growing(source, source.episodes(), folder / "store", StreamedStore, Findings())
    try:
        store = next(arrivals)
        store._arrivals = arrivals
        store.grow(min(FIRST_ROWS, FIRST_BYTES // store.layout.row_bytes))
    except BaseException:
        shutil.rmtree(folder)
        raise
    weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
    return store


def _fill(source: Source, folder: Path, progress: bool, findings: Findings) -> None:
    episodes = _with_progress(source) if progress else source.episodes()
    for store in _growing(source, episodes, folder, TrajectoryStore, findings):  # noqa: B007 - the last is the whole one
        pass
    store.close()


def _growing(
    source: Source, episodes: Iterator[Episode], folder: Path, kind: type[Store], findings: Findings
) -> Iterator[Store]:
    """The one new store in `folder`, again after each episode that went into it."""
    first = next(episodes, None)
    if first is None:
        mend = "name a source that holds episodes, or loosen what filters them"
        raise DataError([Problem("empty-dataset", "no episode", "at least one", mend, source.name)])
    provenance = {"source": source.name, **source.provenance}
    store = kind.create(folder, source.spaces, provenance=provenance, rewards=first.rewards is not None)
    for place, episode in enumerate(itertools.chain([first], episodes)):
        number = episode.meta.get("episode_index", place)
        assert isinstance(number, int | str)
        if mixed := check_final_observation(episode, first.final_observation, number=number, file=source.place):
            findings.extend(mixed)
            continue
        try:
            store.append(episode)
        except DataError as error:  # which names the store's own number of the episode
            findings.extend([replace(problem, file=source.place, episode=number) for problem in error.problems])
            continue
        yield store
    if not len(store):  # every episode was left out
        store.close()
        raise DataError(findings.errors)


def _with_progress(source: Source) -> Iterator[Episode]:
    from tqdm import tqdm

    label = f"reading {source.name}"
    with tqdm(total=source.count, desc=label, unit=" episodes", disable=None, delay=1.0) as bar:
        for episode in source.episodes():
            yield episode
            bar.update()


def _content_key(source: Source) -> str:
    digest = hashlib.sha256(f"{IMPORTER_VERSION} {source.name}".encode())
    for file in source.files:
        digest.update(f"{file.name} {_remembered(file)}".encode())
    digest.update(json.dumps(source.provenance, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def _remembered(file: Path, digest: Callable[[Path], str] = file_sha256) -> str:
    """The digest of a file, computed once for each (path, size, modification time)."""
    status = file.stat()
    name = hashlib.sha256(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:32]
    note = cache_folder() / "digests" / name
    if note.is_file() and len(known := note.read_text()) == 64:
        return known
    note.parent.mkdir(parents=True, exist_ok=True)
    found = digest(file)
    partial = aside(note)
    partial.write_text(found)  # not synced: a note that is lost is made again, and a set may have thousands of files
    os.replace(partial, note)
    return found
