"""Parquet and Arrow data sets, and those of videos, local or on the Hugging Face Hub, downloaded or streamed.

A repository is pinned to the commit it stands at, and that commit goes into the provenance. Nothing of it is executed
or unpickled: a repository that holds neither Parquet nor Arrow nor videos is refused. Streaming reads row groups over
the network as they are needed, so that training can begin before a data set has arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from seqwm.core.errors import DataError
from seqwm.core.hub import explained, insist, snapshot
from seqwm.core.types import Episode, Scalar
from seqwm.data.problems import Findings, Problem
from seqwm.data.sources import Source, clips
from seqwm.data.sources.declaration import Declaration
from seqwm.data.sources.episode_rows import read_episodes
from seqwm.data.sources.inference import infer_spaces
from seqwm.data.sources.layout import find_layout
from seqwm.data.sources.shards import Shard, check_numbering, check_schemas, open_shard, pick_split
from seqwm.data.sources.step_rows import read_steps

SUFFIXES = (".parquet", ".arrow")


def open_source(location: str, findings: Findings, *, revision: str | None = None, streaming: bool = False) -> Source:
    """The data set of a Hub repository.

    Args:
        location: 'user/name', or 'user/name/folder' for one data set of a repository that holds several.
        findings: where problems go; strict ones raise.
        revision: branch, tag or commit; the default branch when None.
        streaming: read over the network as episodes are asked for, instead of downloading first; a LeRobot
            repository is downloaded all the same, as are videos.

    Raises:
        DataError: for a repository that cannot be reached, names a file outside of its folder or holds nothing that
            is read, and for files that are wrong.
    """
    user, _, rest = location.partition("/")
    name, _, folder = rest.partition("/")
    repository = f"{user}/{name}"
    commit, listed = list_repository(repository, revision)
    if outside := [file for file in listed if "\\" in file or {"..", "/"} & set(PurePosixPath(file).parts)]:
        mend = "whoever made this repository meant harm; use another"
        raise DataError([Problem("path-outside", repr(outside[0]), "names within the folder", mend, f"hf:{location}")])
    if "meta/info.json" in listed and not folder:
        from seqwm.data.sources import lerobot

        return lerobot.open_source(f"{repository}@{revision}" if revision else repository, findings)
    inside = [name for name in listed if name.startswith(f"{folder}/")] if folder else listed
    tables = [name for name in inside if name.endswith(SUFFIXES) and PurePosixPath(name).stem != "metadata"]
    if not tables and any(map(clips.is_video, inside)):
        names = _training_videos(inside, findings)
        root = download(repository, revision, names)
        files = tuple(root / file for file in names)
        return clips.from_files(f"hf:{location}", files, findings, {"revision": root.name})
    names = pick_split(_data_files(location, folder, inside), findings)
    check_numbering(names)
    if streaming:
        shards = [_open(file, partial(_open_remote, f"datasets/{repository}@{commit}/{file}"), True) for file in names]
        return _source(f"hf:{location}", shards, (), findings, {"revision": commit})
    snapshot = download(repository, revision, names)
    files = tuple(snapshot / file for file in names)
    shards = [_open(file, partial(Path, path), False) for file, path in zip(names, files, strict=True)]
    return _source(f"hf:{location}", shards, files, findings, {"revision": snapshot.name})


def open_files(paths: Sequence[Path], findings: Findings) -> Source:
    """The data set of local Parquet or Arrow files, or folders of them.

    Raises:
        DataError: for files that are wrong, and where one of a numbered set is missing.
    """
    found = [
        file
        for path in paths
        for file in (sorted(f for f in path.rglob("*") if f.suffix in SUFFIXES) if path.is_dir() else [path])
    ]
    if not found:
        mend = "name files, or a folder that holds some"
        raise DataError([Problem("empty-dataset", "no file", ".parquet or .arrow files", mend, str(paths[0]))])
    files = [Path(name) for name in pick_split([str(file) for file in found], findings)]
    check_numbering([str(file) for file in files])
    shards = [_open(str(file), partial(Path, file), False) for file in files]
    name = str(paths[0]) if len(paths) == 1 else str(files[0] if len(files) == 1 else files[0].parent)
    return _source(name, shards, tuple(files), findings, {})


def list_repository(repository: str, revision: str | None) -> tuple[str, list[str]]:
    """The commit at which a repository stands and the names of its files; as in the cache where the Hub is away.

    Raises:
        DataError: for a repository or revision that does not exist, or is neither cached nor reachable.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = insist(lambda: HfApi().dataset_info(repository, revision=revision))
        return str(info.sha), [sibling.rfilename for sibling in info.siblings or []]
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, ValueError) as error:
        raise DataError([_unreachable(repository, revision, error)]) from error
    except (HTTPError, OSError) as error:
        try:
            return revision or "main", _list_cached(repository, revision)
        except Exception:  # whatever the cache lacks, the cause is that the Hub is away
            raise DataError([_unreachable(repository, revision, error)]) from error


def download(repository: str, revision: str | None, names: Sequence[str]) -> Path:
    """The snapshot of a data set that holds the files `names` (or patterns), fetched where the cache lacks them.

    Its name is the commit.

    Raises:
        DataError: where they cannot be fetched.
    """
    from huggingface_hub.errors import HTTPError

    try:
        return insist(lambda: snapshot(repository, "dataset", revision, names))
    except (HTTPError, OSError, ValueError) as error:
        raise DataError([_unreachable(repository, revision, error)]) from error


def _source(
    name: str, shards: Sequence[Shard], files: tuple[Path, ...], findings: Findings, provenance: dict[str, Any]
) -> Source:
    check_schemas(shards)
    declared = Declaration.from_schema(shards[0].schema, shards[0].name)
    videos = clips.video_column(shards[0].schema) if declared is None else None
    if videos is not None:
        return replace(clips.from_rows(name, shards, videos, findings, provenance), files=files)
    layout = find_layout(shards[0], declared, findings)
    spaces = declared.spaces if declared is not None else infer_spaces(shards, layout)
    read: Callable[..., Iterator[Episode]] = read_steps if layout.rows == "step" else read_episodes
    count = None
    if all(shard.parquet is not None for shard in shards) and (layout.ours or layout.rows == "episode"):
        footers = [shard.parquet for shard in shards if shard.parquet is not None]
        count = sum(footer.num_row_groups if layout.ours else footer.num_rows for footer in footers)
    return Source(
        name=name,
        spaces=spaces,
        episodes=lambda: read(shards, layout, spaces, findings),
        files=files,
        provenance={**(_inherited(declared.provenance) if declared is not None else {}), **provenance},
        count=count,
    )


def _inherited(provenance: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The provenance of an export as that of its copy: where it was first read from has a name of its own."""
    kept = {name: value for name, value in provenance.items() if name not in ("source", "revision")}
    if "source" in provenance:
        revision = provenance.get("revision")
        kept.setdefault("exported_from", f"{provenance['source']}{f'@{revision}' if revision else ''}")
    return kept


def _open(name: str, source: Callable[[], Any], remote: bool) -> Shard:
    return open_shard(name, source, arrow=name.endswith(".arrow"), remote=remote)


def _open_remote(path: str) -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem().open(path, "rb", cache_type="none")  # Arrow asks for whole runs of row groups at once


def _list_cached(repository: str, revision: str | None) -> list[str]:
    """Files of a repository as it stood when it was last downloaded."""
    import huggingface_hub

    if hasattr(huggingface_hub, "get_cached_repo_tree"):  # since 2.0, and it knows what was not downloaded
        tree = huggingface_hub.get_cached_repo_tree(repository, repo_type="dataset", revision=revision)
        return [file.path for file in tree]
    options = {"repo_type": "dataset", "revision": revision, "local_files_only": True}
    folder = Path(huggingface_hub.snapshot_download(repository, **options))
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


def _training_videos(inside: Sequence[str], findings: Findings) -> list[str]:
    """The video files under a folder named 'train' where there is one, or all, in the order of their names."""
    videos = sorted(filter(clips.is_video, inside))
    chosen = [name for name in videos if "train" in PurePosixPath(name).parts[:-1]]
    if chosen and len(chosen) < len(videos):
        found = f"{len(videos) - len(chosen)} videos beside those of the split 'train'"
        left = next(name for name in videos if name not in chosen)
        mend = "name their folder to read them instead"
        findings.add(Problem("split-left-out", found, "one split", mend, left, severity="warning"))
    return chosen or videos


def _data_files(location: str, folder: str, inside: Sequence[str]) -> list[str]:
    """The Parquet or Arrow files of one data set among those of a repository, or of a folder in it."""
    names = [name for name in inside if name.endswith(SUFFIXES)]
    if not names:
        shown = ", ".join(sorted(inside)[:6]) or "no file"
        mend = (
            f"scripts and pickles are never run; try 'hf:{location}@refs/convert/parquet', where the Hub keeps its own "
            "Parquet copy of many data sets, or ask the author for Parquet"
        )
        raise DataError([Problem("no-parquet", shown, "Parquet or Arrow files", mend, f"hf:{location}")])
    depth = len(PurePosixPath(folder).parts) if folder else 0
    tops = {parts[depth] if len(parts := PurePosixPath(name).parts) > depth + 1 else "" for name in names}
    if len(tops) > 1:
        shown = ", ".join(sorted(top or "files beside them" for top in tops)[:8])
        mend = f"name one: 'hf:{location}/{min(top for top in tops if top)}'"
        found = f"{len(tops)} data sets ({shown}{', ...' if len(tops) > 8 else ''})"
        raise DataError([Problem("several-datasets", found, "one", mend, f"hf:{location}")])
    return names


def _unreachable(repository: str, revision: str | None, error: Exception) -> Problem:
    place = f"hf:{repository}{f'@{revision}' if revision else ''}"
    first = next((line for line in str(error).splitlines() if line.strip()), "no more was said")
    mend = "check the name, the revision and the network; a private or gated one needs `hf auth login`"
    found, mend = explained(error, "read") or (f"{type(error).__name__}: {first}", mend)
    return Problem("unreachable", found, "a data set that can be read", mend, place)
