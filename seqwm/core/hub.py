"""Requests to the Hub: repeated where that helps, explained where it does not, and what came checked by its hashes."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from seqwm.core.errors import HubError

T = TypeVar("T")

_TRIES = 3
_LONGEST_WAIT_SECONDS = 300

_NEXT_STEPS = {
    401: "the Hub does not accept the token: log in with `hf auth login`, or set HF_TOKEN to one that may {verb} it",
    403: "the token may not {verb} it: use one with that right, or a name under your own account",
    404: "there is no such repository or revision, or the token may not see it: check the name, or `hf auth login`",
    409: "something else is being done to it at this moment: try again in a minute",
    412: "somebody else committed to it meanwhile; nothing of yours was published: look at it, then publish again",
    413: "the Hub takes no more in one request: publish less, for example without replay.mp4",
    429: "too many requests: wait {wait}, then run the same command again; files that arrived are not sent again",
}
_SERVER = "the Hub itself failed: see https://status.huggingface.co, then run the same command again"
_NETWORK = "the connection broke: run the same command again; files that arrived whole are not sent again"


class DamagedFile(OSError):
    """A file that came whole and is not what the Hub announced."""


def patiently(what: Callable[[], T], place: str, verb: str) -> T:
    """The result of a request that may be repeated.

    Args:
        what: does it, see `insist`.
        place: the repository, as errors name it.
        verb: 'read' or 'write'.

    Raises:
        HubError: naming cause and next step.
    """
    try:
        return insist(what)
    except Exception as error:
        told = explained(error, verb)
        if told is None:
            raise
        raise HubError(f"{place}: {told[0]}; {told[1]}") from error


def insist(what: Callable[[], T]) -> T:
    """The result of `what`, run again after 429, 5xx, broken connections and damaged files, with the waits asked for.

    Raises:
        Exception: that of the last try.
    """
    for attempt in range(_TRIES):
        try:
            return what()
        except Exception as error:
            wait = _seconds_to_wait(error, attempt)
            if wait is None or attempt + 1 == _TRIES:
                raise
            time.sleep(wait)
    raise AssertionError("unreachable")


def snapshot(
    repository: str, kind: str, revision: str | None, wanted: Sequence[str], unwanted: Sequence[str] = ()
) -> Path:
    """The folder of what the Hub has now, or of what the cache has whole where the Hub cannot be reached.

    Its name is the commit. Files that are fetched are checked against the hashes that the Hub gave for them.

    Args:
        repository: 'user/name'.
        kind: 'model' or 'dataset'.
        revision: branch, tag or commit; the default branch when None.
        wanted, unwanted: patterns of names.

    Raises:
        DamagedFile: after removing what is not as the Hub announced it.
        Exception: whatever the client raises; `explained` knows it.
    """
    from huggingface_hub import snapshot_download

    began = time.time()
    folder = Path(
        snapshot_download(
            repository,
            repo_type=kind,
            revision=revision,
            allow_patterns=list(wanted),
            ignore_patterns=list(unwanted),
        )
    )
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.stat().st_mtime > began - 2:  # of a file system whose clock is coarse
            _check_hash(file)
    return folder


def explained(error: Exception, verb: str) -> tuple[str, str] | None:
    """Cause and next step, in words; None where the error is not the Hub's. `verb` is 'read' or 'write'."""
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    for cause in _causes(error):
        status = _status(cause)
        if status is not None:
            step = _NEXT_STEPS.get(status, _SERVER if status >= 500 else "mend what it says, then try again")
            wait = f"{_retry_after(cause) or 60:g} seconds"
            return f"the Hub answered {status}{_said(cause)}", step.format(verb=verb, wait=wait)
        if isinstance(cause, OfflineModeIsEnabled):
            return "not whole in the cache, and HF_HUB_OFFLINE is set", "unset it to fetch what is missing"
        if isinstance(cause, DamagedFile):
            return str(cause), "it was damaged on the way and has been removed: run the same command again"
        if isinstance(cause, HTTPError) or "Consistency check failed" in str(cause):
            return f"{type(cause).__name__} ({_first_line(cause)})", _NETWORK
    if isinstance(error, LocalEntryNotFoundError):
        return "not whole in the cache, and the Hub cannot be reached", "check the network"
    return None


def _check_hash(file: Path) -> None:
    """Remove a file whose content is not what the Hub announced; the cache keeps it under that hash."""
    blob = file.resolve()
    large = re.fullmatch(r"[0-9a-f]{64}", blob.name)
    if not large and not re.fullmatch(r"[0-9a-f]{40}", blob.name):
        return  # no symlinks on this system, so the hash was not kept
    digest = hashlib.sha256() if large else hashlib.sha1(b"blob %d\0" % blob.stat().st_size)
    with open(blob, "rb") as content:
        while part := content.read(1 << 20):
            digest.update(part)
    if digest.hexdigest() != blob.name:
        file.unlink()
        blob.unlink()
        raise DamagedFile(f"{file.name} has the hash {digest.hexdigest()[:12]}, the Hub said {blob.name[:12]}")


def _seconds_to_wait(error: Exception, attempt: int) -> float | None:
    """Until the next try; None where another one would not help."""
    from huggingface_hub.errors import HTTPError

    for cause in _causes(error):
        status = _status(cause)
        if status is not None:
            wait = _retry_after(cause) or 2.0**attempt
            return wait if (status == 429 or status >= 500) and wait <= _LONGEST_WAIT_SECONDS else None
        if isinstance(cause, (HTTPError, DamagedFile)):
            return 2.0**attempt
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, the innermost first: clients wrap what they could not do."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    from huggingface_hub.errors import HfHubHTTPError

    # A refusal that the client understood is wrapped around the bare HTTP error, which knows less.
    refusals = [cause for cause in chain if isinstance(cause, HfHubHTTPError)]
    yield from refusals or reversed(chain)


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _retry_after(error: BaseException) -> float | None:
    value = getattr(error, "response").headers.get("Retry-After", "")  # noqa: B009 - of several libraries' errors
    return float(value) if value.isdigit() else None


def _said(error: BaseException) -> str:
    """The Hub's own words where it gave some."""
    message = getattr(error, "server_message", None)
    return f" ({message})" if message else ""


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "no more was said")
