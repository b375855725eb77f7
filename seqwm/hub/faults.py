"""What goes wrong between here and the Hub, said with its cause and the next step, and what is worth another try."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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


def patiently(what: Callable[[], T], place: str, verb: str) -> T:
    """The result of a request that may be repeated; the Hub's own waiting times are kept.

    Args:
        what: does it; run again after 429, 5xx and broken connections.
        place: the repository, as errors name it.
        verb: 'read' or 'write'.

    Raises:
        HubError: naming cause and next step.
    """
    for attempt in range(_TRIES):
        try:
            return what()
        except Exception as error:
            wait = _seconds_to_wait(error, attempt)
            if wait is None or attempt + 1 == _TRIES:
                told = explained(error, place, verb)
                if told is None:
                    raise
                raise told from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def explained(error: Exception, place: str, verb: str) -> HubError | None:
    """The error for people; None where it is not the Hub's."""
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    for cause in _causes(error):
        status = _status(cause)
        if status is not None:
            step = _NEXT_STEPS.get(status, _SERVER if status >= 500 else "mend what it says, then try again")
            wait = f"{_retry_after(cause) or 60} seconds"
            said = _said(cause)
            return HubError(f"{place}: the Hub answered {status}{said}; {step.format(verb=verb, wait=wait)}")
        if isinstance(cause, OfflineModeIsEnabled):
            return HubError(f"{place}: not whole in the cache, and HF_HUB_OFFLINE is set; unset it to fetch it")
        if isinstance(cause, HTTPError) or "Consistency check failed" in str(cause):
            return HubError(f"{place}: {type(cause).__name__} ({_first_line(cause)}); {_NETWORK}")
    if isinstance(error, LocalEntryNotFoundError):
        return HubError(f"{place}: not in the cache, and the Hub cannot be reached; check the network")
    return None


def _seconds_to_wait(error: Exception, attempt: int) -> float | None:
    """Until the next try; None where another one would not help."""
    from huggingface_hub.errors import HTTPError

    for cause in _causes(error):
        status = _status(cause)
        if status is not None:
            wait = _retry_after(cause) or 2.0**attempt
            return wait if (status == 429 or status >= 500) and wait <= _LONGEST_WAIT_SECONDS else None
        if isinstance(cause, HTTPError):
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
