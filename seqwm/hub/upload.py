"""A folder to a Hub repository in one commit: all of it or nothing, the same again when it is already there.

Large files go first, by hash, and those that the Hub holds already are not sent again, so a second try goes on where
the first one stopped. Only then are they named, by a commit that fails where somebody else has committed meanwhile.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from seqwm.core.errors import HubError
from seqwm.core.hub import patiently


def upload_folder(
    folder: Path,
    repository: str,
    *,
    kind: str = "model",
    private: bool = False,
    revision: str | None = None,
    message: str,
    owned: Sequence[str] = (),
) -> str:
    """Make `repository` hold the files of `folder`; the address of the commit is returned.

    Args:
        folder: every file in it is sent under its own name.
        repository: 'user/name', made where it is not there.
        kind: 'model' or 'dataset'.
        private: whether a repository that is made is private; one that is there stays as it is.
        revision: a branch, made from `main` where it is not there; `main` when None.
        message: of the commit.
        owned: patterns of names; files there that match and are not in `folder` are left from an earlier time and go.

    Raises:
        HubError: naming cause and next step; nothing has changed there then.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    api = HfApi()
    place = f"{repository}{f'@{revision}' if revision else ''}"
    try:
        patiently(lambda: api.create_repo(repository, repo_type=kind, private=private, exist_ok=True), place, "write")
    except HFValidationError as error:
        raise HubError(f"{repository}: no name for a repository ({error}); expected user/name") from None
    if revision:
        patiently(lambda: api.create_branch(repository, branch=revision, repo_type=kind, exist_ok=True), place, "write")
    return patiently(lambda: _commit(folder, repository, kind, revision, message, owned), place, "write")


def put_aside(folder: Path, target: Path) -> Path:
    """What would be sent, copied to `target` for a look; HubError where that holds files already."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise HubError(f"{target}: holds something already, expected a new or empty folder for the dry run")
    shutil.copytree(folder, target, dirs_exist_ok=True)
    return target


def _commit(folder: Path, repository: str, kind: str, revision: str | None, message: str, owned: Sequence[str]) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    there = api.repo_info(repository, repo_type=kind, revision=revision)
    names = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    old = [sibling.rfilename for sibling in there.siblings or []]
    stale = [name for name in old if name not in names and any(fnmatch(name, pattern) for pattern in owned)]
    operations = [CommitOperationAdd(name, file) for name, file in names.items()]
    done = api.create_commit(
        repository,
        [*operations, *(CommitOperationDelete(name) for name in stale)],
        commit_message=message,
        repo_type=kind,
        revision=revision,
        parent_commit=there.sha,
    )
    return str(done.commit_url)
