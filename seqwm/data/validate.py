"""Everything that can be said about logged data before anyone learns from it: what `seqwm data validate` runs.

Readers name what is wrong with files, `check_episode` what is wrong with an episode, and here is what only the whole
set can show. Import refuses the same errors one by one; this collects them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium import spaces as gym_spaces

from seqwm.core.errors import DataError, SpaceError
from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.core.tree import flatten
from seqwm.core.types import Array, Episode, Spaces
from seqwm.data.checks import CHECKS
from seqwm.data.episode_check import check_episode, check_final_observation
from seqwm.data.problems import Findings, Problem
from seqwm.data.sources import Source, open_source

__all__ = ["CHECKS", "Summary", "check_episode", "summarise", "validate"]


@dataclass(frozen=True, slots=True)
class Summary:
    """Problems of one kind: the first of them, and how many there are."""

    first: Problem
    count: int

    def __str__(self) -> str:
        more = f" ({self.count} such)" if self.count > 1 else ""
        return f"{self.first}{more}"


def summarise(problems: Iterable[Problem]) -> list[Summary]:
    """Problems of one check, severity and column as one, errors first, so that 1000 equal warnings are one line."""
    groups: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        column = (problem.column or "").partition("[")[0]  # entries of one column belong together
        groups.setdefault((problem.severity, problem.check, column), []).append(problem)
    summaries = [Summary(group[0], len(group)) for group in groups.values()]
    return sorted(summaries, key=lambda summary: summary.first.severity != "error")


def validate(source: str | Path) -> Findings:
    """Every problem of a source or a store; `errors` of the result is empty exactly where it can be imported.

    Args:
        source: what `seqwm.load` takes.
    """
    from seqwm.data.store import TrajectoryStore

    findings = Findings(strict=False)
    try:
        if TrajectoryStore.is_store(source):
            store = TrajectoryStore.open(source)
            findings.extend(store.verify())
            if not findings.errors:
                _check_set(Source(str(source), store.spaces, store.episodes, count=len(store)), findings, stored=True)
        else:
            _check_set(open_source(str(source), findings), findings)
    except DataError as error:
        findings.extend([problem for problem in error.problems if problem not in findings.problems])
    except SpaceError as error:
        mend = "log spaces of these kinds, or flatten them"
        expected = "Box, Discrete, MultiDiscrete or Dict"
        findings.add(Problem("unsupported-space", str(error), expected, mend, str(source)))
    return findings


def _check_set(source: Source, findings: Findings, *, stored: bool = False) -> None:
    """Each episode, and what they are together."""
    file = source.place
    findings.extend(_channel_order(source.spaces, file))
    ranges = _Ranges(source.spaces)
    rewards: bool | None = None
    final_observation: bool | None = None
    count = cut = 0
    for position, episode in enumerate(source.episodes()):
        number = position if stored else episode.meta.get("episode_index", position)
        assert isinstance(number, int | str)
        if rewards is None or final_observation is None:
            rewards, final_observation = episode.rewards is not None, episode.final_observation
        problems = check_episode(episode, source.spaces, rewards=rewards, number=number, file=file)
        problems += check_final_observation(episode, final_observation, number=number, file=file)
        findings.extend(problems)
        if not any(problem.severity == "error" for problem in problems):
            ranges.add(episode)
        count += 1
        cut += episode.truncated
    if not count and not findings.errors:
        mend = "name a source that holds episodes, or loosen what filters them"
        findings.add(Problem("empty-dataset", "no episode", "at least one", mend, file))
    if cut and rewards:
        found = f"{cut} of {count} episodes cut by truncation"
        mend = "nothing: their returns and returns-to-go are those of the log, and labelled so"
        findings.add(Problem("cut-return", found, "episodes that end by themselves", mend, file, severity="warning"))
    findings.extend(replace(problem, file=file) for problem in ranges.constant_columns())


class _Ranges:
    """Least and greatest value of each entry of the leaves that are no images, final observations included."""

    def __init__(self, spaces: Spaces) -> None:
        self.seen: dict[str, tuple[Array, Array]] = {}
        kinds = [("observations", spaces.observation), ("actions", spaces.action)]
        self.leaves = {kind: _plain_leaves(space) for kind, space in kinds if space is not None}

    def add(self, episode: Episode) -> None:
        for kind, tree in (("observations", episode.observations), ("actions", episode.actions)):
            if tree is None:
                continue
            for path, leaf in flatten(tree).items():
                if path in self.leaves[kind]:
                    name = f"{kind}/{path}" if path else kind
                    low, high = leaf.min(axis=0), leaf.max(axis=0)
                    if name in self.seen:
                        low, high = np.minimum(low, self.seen[name][0]), np.maximum(high, self.seen[name][1])
                    self.seen[name] = low, high

    def constant_columns(self) -> Iterator[Problem]:
        for name, (low, high) in self.seen.items():
            same = np.argwhere(low == high)
            if not len(same):
                continue
            found = "one value throughout"
            if low.ndim:
                places = ", ".join(str(place[0] if len(place) == 1 else tuple(place)) for place in same[:8].tolist())
                found += f" in {len(same)} of {low.size} entries: {places}{', ...' if len(same) > 8 else ''}"
            mend, expected = "nothing: normalising leaves them as they are", "values that vary"
            yield Problem("constant-column", found, expected, mend, column=name, severity="warning")


def _plain_leaves(space: Space[Any]) -> set[str]:
    return {path for path, leaf in leaf_spaces(space).items() if not is_image(leaf)}


def _channel_order(spaces: Spaces, file: str) -> Iterator[Problem]:
    """Frames that nothing downstream will see as images, because their channel stands first."""
    for path, leaf in leaf_spaces(spaces.observation).items():
        shape = leaf.shape or ()
        if isinstance(leaf, gym_spaces.Box) and leaf.dtype == np.uint8 and len(shape) == 3 and not is_image(leaf):
            mend = "log frames as H, W, C; these are stored, but as plain numbers"
            name = f"observations/{path}" if path else "observations"
            found, expected = f"uint8 steps of shape {shape}", "[H, W, C] with 1, 3 or 4 channels"
            yield Problem("channel-order", found, expected, mend, file, column=name, severity="warning")
