"""How an episode ended, from whatever flags a log has: terminated, truncated, or a single `done` for both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from seqwm.core.types import Array
from seqwm.data.problems import Findings, Problem

Item = TypeVar("Item")

TIME_LIMITS = frozenset({50, 100, 150, 200, 250, 280, 300, 400, 500, 600, 700, 800, 999, 1000, 1600, 2000, 27000})
"""Steps after which the registered environments of Gymnasium, Gymnasium-Robotics, Meta-World and D4RL are cut."""


def time_limit(lengths: Iterable[int]) -> int | None:
    """The step count at which the episodes of a data set were cut: the longest length, if it is a known time limit."""
    longest = max(lengths, default=0)
    return longest if longest in TIME_LIMITS else None


def tell_inference(file: str, column: str, limit: int | None, findings: Findings) -> None:
    """Warn that one flag stands for two kinds of end, and say how it is read."""
    cut = (
        f"those of {limit} steps (the longest, a known time limit) are read as truncated, the others"
        if limit
        else "all"
    )
    findings.add(
        Problem(
            "end-kind-inferred",
            f"'{column}' alone, which may mark terminations and truncations alike",
            "'terminated' and 'truncated'",
            f"of the flagged episodes {cut} as terminated; add the two columns where that is wrong",
            file,
            column=column,
            severity="warning",
        )
    )


def open_tail(file: str, episode: int | str, length: int) -> Problem:
    """The warning for a log that stops within its last episode."""
    found, expected = "no end flag on the last step of the log", "terminated or truncated"
    mend = "nothing: it is kept as a tail without an end"
    return Problem("missing-end-flag", found, expected, mend, file, episode, length - 1, severity="warning")


def with_last(items: Iterator[Item]) -> Iterator[tuple[Item, bool]]:
    """Each item, and whether it is the last: only the last episode of a log may be open."""
    held: list[Item] = []
    for item in items:
        if held:
            yield held.pop(), False
        held.append(item)
    if held:
        yield held.pop(), True


def find_end(
    flags: Mapping[str, Array], length: int, limit: int | None, *, tail_allowed: bool, columns: Mapping[str, str]
) -> tuple[bool, bool] | Problem:
    """(terminated, truncated) of an episode of `length` transitions, or what is wrong with its flags.

    Where both are flagged at once the task did end, so terminated stands. A log that flags terminations alone says
    nothing about its other episodes: they are tails.

    Args:
        flags: bool [length] or [length + 1] (with a row for the final observation, where the flag may stand as well)
            by 'terminated', 'truncated' and 'done'; a log has some of them.
        length: transitions.
        limit: length at which a lone `done` means truncated.
        tail_allowed: whether an episode without any flag may be a tail.
        columns: names of the flags in the file.
    """
    for name, flag in flags.items():
        if (early := np.flatnonzero(flag[: length - 1])).size:
            found, expected = "an end flag in the middle", f"ends at the last step ({length - 1}) alone"
            mend = "give what follows another episode number"
            return Problem("end-in-middle", found, expected, mend, step=int(early[0]), column=columns[name])
    ended = {name: bool(flag[length - 1 :].any()) for name, flag in flags.items()}
    terminated, truncated, done = (ended.get(name) for name in ("terminated", "truncated", "done"))
    by_kind = bool(terminated) or bool(truncated)
    if done is not None and (terminated is not None or truncated is not None):
        both_kinds = terminated is not None and truncated is not None
        if (by_kind and not done) or (done and not by_kind and both_kinds):
            found = f"'{columns['done']}' {done} with " + " and ".join(
                f"'{columns[name]}' {ended[name]}" for name in ("terminated", "truncated") if name in ended
            )
            return Problem(
                "contradicting-flags",
                found,
                "done exactly where terminated or truncated",
                "correct the flags",
                step=length - 1,
                column=columns["done"],
            )
        if done and not by_kind:  # the one kind that is flagged is not this one's
            terminated, truncated, by_kind = truncated is not None, terminated is not None, True
    elif done:
        truncated, by_kind = length == limit, True
        terminated = not truncated
    cut_is_flagged = truncated is not None or done is not None
    if not by_kind and cut_is_flagged and not tail_allowed:
        found, expected = "no end flag on the last step", "terminated or truncated"
        mend = "flag a cut as truncated; a log that stops there may leave its last episode open"
        return Problem("missing-end-flag", found, expected, mend, step=length - 1, column=next(iter(columns.values())))
    return bool(terminated), bool(truncated) and not terminated
