"""What one episode must be before a store takes it: its leaves, their dtypes and shapes, their lengths, their values.

Every appended episode passes here, so the good case costs a minimum and a maximum a leaf, and not even that for images,
which cannot leave 0..255. NaN survives both reductions, so the same two numbers answer for finiteness and for the
space. Only an episode that fails is looked at entry by entry, to name the step and the column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium import spaces as gym_spaces
from numpy.typing import NDArray

from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.core.tree import flatten
from seqwm.core.types import Array, Episode, Spaces
from seqwm.data.problems import Problem, Severity

TOLERANCE = 1e-5
"""Share of a bounded range by which a value may lie outside: float32 logs of float64 bounds do."""

_LARGEST = float(np.finfo(np.float32).max)
_SAFE_REWARD = 1e28  # a sum of fewer than 10**10 such rewards fits float32


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a leaf must be: [rows, *shape] of `dtype`, every entry in its own [low, high] give or take its slack.

    A leaf that lies within the scalars [inner_low, inner_high] lies within all bounds; `full` says that every value of
    the dtype does.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    low: NDArray[Any]
    high: NDArray[Any]
    slack: NDArray[Any]
    inner_low: float
    inner_high: float
    full: bool
    image: bool


@dataclass(slots=True)
class _Report:
    """The problems of one episode."""

    file: str | None
    episode: int | str
    problems: list[Problem] = field(default_factory=list)

    def add(
        self,
        check: str,
        found: str,
        expected: str,
        mend: str,
        column: str | None = None,
        step: int | None = None,
        severity: Severity = "error",
    ) -> None:
        self.problems.append(Problem(check, found, expected, mend, self.file, self.episode, step, column, severity))


def check_episode(
    episode: Episode, spaces: Spaces, *, rewards: bool, number: int | str, file: str | None = None
) -> list[Problem]:
    """What is wrong with an episode; empty when nothing is.

    Args:
        episode: as read from a source, its dtypes kept.
        spaces: what each step should look like.
        rewards: whether the set has rewards.
        number, file: the place that problems name.
    """
    report = _Report(file, number)
    observations = flatten(episode.observations)
    actions = flatten(episode.actions) if episode.actions is not None else {}
    observation_rules = _rules(spaces.observation)
    action_rules = _rules(spaces.action) if spaces.action is not None else {}
    _check_names("observations", observations, observation_rules, report)
    _check_names("actions", actions, action_rules, report)
    if (episode.rewards is not None) != rewards:
        found, expected = ("no rewards", "rewards") if rewards else ("rewards", "none")
        mend = "rewards stand in all episodes of a set or in none"
        report.add("missing-column", found, f"{expected}, as in the rest of the set", mend, "rewards")
    if report.problems:
        return report.problems

    steps = {_column("actions", path): leaf for path, leaf in actions.items()}
    if episode.rewards is not None:
        steps["rewards"] = episode.rewards
    _check_lengths({_column("observations", path): leaf for path, leaf in observations.items()}, steps, episode, report)
    if report.problems:
        return report.problems

    if episode.terminated and episode.truncated:
        mend = "an episode whose task ended at the time limit is terminated alone"
        report.add("contradicting-flags", "terminated and truncated", "one of them at most", mend)
    for path, leaf in observations.items():
        _check_leaf("observations", path, leaf, observation_rules[path], report)
    for path, leaf in actions.items():
        _check_leaf("actions", path, leaf, action_rules[path], report)
    if episode.rewards is not None:
        before = len(report.problems)
        _check_leaf("rewards", "", episode.rewards, _REWARD, report)
        if len(report.problems) == before:
            _check_return(episode.rewards, report)
    return report.problems


def check_final_observation(
    episode: Episode, expected: bool, *, number: int | str, file: str | None = None
) -> list[Problem]:
    """What is wrong with an episode that keeps its final observation in a set that does not, or the reverse.

    A tail without an end may lack it: the log stops there.
    """
    if episode.final_observation == expected or not (episode.terminated or episode.truncated):
        return []
    kept = ("none", "one")
    mend = "keep the final observation of all episodes or of none"
    found, wanted = kept[episode.final_observation], f"{kept[expected]}, as in the first episode"
    return [Problem("mixed-final-observation", found, wanted, mend, file, number, len(episode), "observations")]


def _check_names(kind: str, leaves: Mapping[str, Any], rules: Mapping[str, _Rule], report: _Report) -> None:
    if leaves.keys() == rules.keys():
        for path, leaf in leaves.items():
            if not isinstance(leaf, np.ndarray) or leaf.ndim == 0:
                found, expected = f"a {type(leaf).__name__}", "an array [rows, ...]"
                report.add("wrong-type", found, expected, "stack the steps into one array", _column(kind, path))
        return
    for path in sorted(rules.keys() - leaves.keys()):
        mend = "log every part of the space at every step"
        report.add("missing-column", "no such column", f"an array of {rules[path].dtype}", mend, _column(kind, path))
    for path in sorted(leaves.keys() - rules.keys()):
        mend = "drop it, or name it in the space"
        report.add("unknown-column", "a column that the space does not name", "none", mend, _column(kind, path))


def _check_lengths(
    observations: Mapping[str, Array], steps: Mapping[str, Array], episode: Episode, report: _Report
) -> None:
    """T rows in every column, T+1 (or T, where the final observation was not logged) in the observations."""
    rows = {len(leaf) for leaf in observations.values()}
    counts = {len(leaf) for leaf in steps.values()}
    final = int(episode.final_observation)
    if len(rows) == 1 and len(counts) <= 1:
        (observed,) = rows
        length = counts.pop() if counts else observed - final
        if observed == length + final and length > 0:
            if length == 1 and not final:
                mend = "drop it: nothing follows its only action"
                report.add("no-transition", "one step without a final observation", "at least one transition", mend)
            return
        if length <= 0 and observed <= 1:
            report.add("empty-episode", f"{observed} observations, no step", "at least one transition", "drop it")
            return
        column = next(iter(observations))
        expected = f"{length + final} ({length} steps{', and the final observation' if final else ''})"
        mend = "log every column at every step, and the final observation in all episodes or in none"
        report.add("observation-length", f"{observed} rows", expected, mend, column, min(observed, length + final))
        return
    everything = {column: len(leaf) - final for column, leaf in observations.items()}
    everything |= {column: len(leaf) for column, leaf in steps.items()}
    lengths = list(everything.values())
    length = max(lengths, key=lambda value: (lengths.count(value), value))
    for column, found in everything.items():
        if found != length:
            extra = final if column in observations else 0
            mend = "log every column at every step"
            step = min(found, length) + extra
            report.add("ragged-episode", f"{found + extra} rows", f"{length + extra}", mend, column, step)


def _check_leaf(kind: str, path: str, leaf: Array, rule: _Rule, report: _Report) -> None:
    if leaf.shape[1:] != rule.shape:
        _tell_shape(_column(kind, path), leaf, rule, report)
        return
    if leaf.dtype != rule.dtype and not _castable(_column(kind, path), leaf, rule, report):
        return
    if rule.full and leaf.dtype == rule.dtype:
        return
    if leaf.size and not (rule.inner_low <= leaf.min() and leaf.max() <= rule.inner_high):
        _locate(kind, path, leaf, rule, report)


def _tell_shape(column: str, leaf: Array, rule: _Rule, report: _Report) -> None:
    shape = leaf.shape[1:]
    check, mend = "wrong-shape", "log what the space says, or correct the space"
    if rule.image:
        check, mend = "image-shape", "log every frame with one shape, the channel last"
        if len(shape) == 3 and (*shape[1:], shape[0]) == rule.shape:
            check, mend = "channel-order", "transpose the frames to H, W, C"
    report.add(check, f"steps of shape {shape}", f"{rule.shape}", mend, column)


def _castable(column: str, leaf: Array, rule: _Rule, report: _Report) -> bool:
    """Whether values of the leaf's dtype may become the rule's; what is lost on the way is told."""
    found, expected = leaf.dtype, rule.dtype
    if found.kind == expected.kind == "f":
        if found.itemsize > expected.itemsize:
            mend = "nothing: it is rounded on the way in"
            report.add("narrowing-cast", f"{found}", f"{expected}", mend, column, severity="warning")
        return True
    if found.kind in "iub" and expected.kind in "iub":
        least, greatest = _limits(expected)
        if leaf.size and not (least <= leaf.min() and leaf.max() <= greatest):
            wrong = (leaf < least) | (leaf > greatest)
            step, place = _first(wrong)
            value = leaf[(step, *place)]
            report.add(
                "wrong-type", f"{value} in {found}", f"{expected}", "correct the space", _entry(column, place), step
            )
            return False
        return True
    check, mend = "wrong-type", f"log it as {expected}, or correct the space"
    if rule.image and found.kind == "f":
        check, mend = "image-dtype", "store frames as uint8, 0 to 255"
    report.add(check, f"{found}", f"{expected}", mend, column)
    return False


def _locate(kind: str, path: str, leaf: Array, rule: _Rule, report: _Report) -> None:
    """Name the first entry that is not finite and the first outside the space, if there are such."""
    column = _column(kind, path)
    broken = np.zeros(leaf.shape, np.bool_)
    if leaf.dtype.kind == "f":
        broken = ~np.isfinite(leaf)
        if leaf.dtype.itemsize > rule.dtype.itemsize:
            broken |= np.abs(leaf) > float(np.finfo(rule.dtype).max)  # inf once it is cast
        if broken.any():
            step, place = _first(broken)
            found = f"{leaf[(step, *place)]}{_more(broken)}"
            mend = "drop the episode, or mend the values where they were logged"
            report.add("not-finite", found, f"finite {rule.dtype}", mend, _entry(column, place), step)
    with np.errstate(over="ignore"):
        outside = ~broken & ((leaf < rule.low - rule.slack) | (leaf > rule.high + rule.slack))
    if outside.any():
        step, place = _first(outside)
        low, high = (np.broadcast_to(bound, rule.shape)[place] for bound in (rule.low, rule.high))
        severity: Severity = "error" if kind == "actions" else "warning"
        mend = "correct the space, or drop the episode" if kind == "actions" else "correct the space, or leave it so"
        expected = f"a value in [{low:g}, {high:g}]"
        found = f"{leaf[(step, *place)]}{_more(outside)}"
        report.add("outside-space", found, expected, mend, _entry(column, place), step, severity)


def _check_return(rewards: Array, report: _Report) -> None:
    """Rewards so large that their sum is no float32 any more."""
    if not rewards.size or max(-float(rewards.min()), float(rewards.max())) < _SAFE_REWARD:
        return
    to_go = np.cumsum(rewards[::-1], dtype=np.float64)[::-1]
    if (wrong := np.flatnonzero(np.abs(to_go) > _LARGEST)).size:
        step = int(wrong[-1])
        found = f"a return-to-go of {to_go[step]:.3g}"
        report.add("not-finite", found, "one that float32 can hold", "scale the rewards", "rewards", step)


def _first(mask: NDArray[np.bool_]) -> tuple[int, tuple[int, ...]]:
    """Step and place within the step of the first True."""
    step, *place = np.unravel_index(int(np.argmax(mask)), mask.shape)
    return int(step), tuple(int(index) for index in place)


def _more(mask: NDArray[np.bool_]) -> str:
    others = int(np.count_nonzero(mask)) - 1
    return f" (and {others} more)" if others else ""


def _column(kind: str, path: str) -> str:
    return f"{kind}/{path}" if path else kind


def _entry(column: str, place: tuple[int, ...]) -> str:
    return f"{column}[{', '.join(map(str, place))}]" if place else column


def _rule(space: Space[Any]) -> _Rule:
    dtype = np.dtype(space.dtype)
    slack: NDArray[Any] = np.zeros(())
    if isinstance(space, gym_spaces.Box):
        low, high = space.low, space.high
        if dtype.kind == "f":
            low, high = low.astype(np.float64), high.astype(np.float64)
            with np.errstate(over="ignore"):
                span = high - low
            slack = TOLERANCE * np.where(np.isfinite(span), span, 0.0)
    elif isinstance(space, gym_spaces.Discrete):
        low, high = np.asarray(space.start), np.asarray(space.start + space.n - 1)
    else:
        assert isinstance(space, gym_spaces.MultiDiscrete)
        low, high = np.asarray(space.start), space.start + space.nvec - 1
    least, greatest = _limits(dtype)
    inner_low, inner_high = ((low - slack).max(), (high + slack).min()) if low.size else (least, greatest)
    return _Rule(
        shape=tuple(space.shape or ()),
        dtype=dtype,
        low=low,
        high=high,
        slack=slack,
        inner_low=max(inner_low, least),
        inner_high=min(inner_high, greatest),
        full=dtype.kind != "f" and bool(inner_low <= least and inner_high >= greatest),
        image=is_image(space),
    )


def _limits(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """The least and greatest finite value of a dtype."""
    if dtype.kind == "b":
        return 0, 1
    limits: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return limits.min, limits.max


_REWARD = _rule(gym_spaces.Box(-np.inf, np.inf, (), np.float32))

_known: dict[int, tuple[Space[Any], dict[str, _Rule]]] = {}


def _rules(space: Space[Any]) -> dict[str, _Rule]:
    """Rules by leaf path, made once for each space object: spaces cannot be hashed, so they are told by identity."""
    known = _known.get(id(space))
    if known is not None and known[0] is space:
        return known[1]
    if len(_known) >= 64:
        _known.clear()
    rules = {path: _rule(leaf) for path, leaf in leaf_spaces(space).items()}
    _known[id(space)] = (space, rules)  # holding the space keeps its identity from being given away
    return rules
