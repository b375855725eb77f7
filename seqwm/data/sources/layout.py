"""Which column of a Parquet or Arrow data set means what, and what one step of it looks like.

Two layouts are found in the wild: one row an episode, every column a list over its steps (Decision Transformer's
replay sets, JAT), and one row a step with the episode's number beside it (LeRobot, RLDS exports, our own).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from seqwm.core.errors import DataError
from seqwm.data.problems import Findings, Problem
from seqwm.data.sources.columns import depth, is_image_type, is_list, is_numeric, value_type
from seqwm.data.sources.declaration import Declaration
from seqwm.data.sources.shards import Shard

OBSERVATION = ("observation", "observations", "obs")
ACTION = ("action", "actions")
REWARD = ("next.reward", "reward", "rewards")
TERMINATED = ("next.terminated", "terminated", "terminations", "terminals", "terminal", "is_terminal")
TRUNCATED = ("next.truncated", "truncated", "truncations", "timeouts", "timeout")
DONE = ("next.done", "done", "dones")
EPISODE = ("episode_index", "episode_id", "episode")
FRAME = ("frame_index", "step_index", "timestep")
FINAL = ("is_final_observation", "is_last")
_BOOKKEEPING = {"timestamp", "index", "task_index", "is_first", "discount"}


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns by their meaning.

    Attributes:
        rows: what a row is.
        observations, actions: column of each leaf by its path ('' where there is one alone); no actions, no entry.
        reward, terminated, truncated, done: columns, where there are such.
        episode, frame: number of the episode and of the step within it; only where a row is a step.
        final: marks the row that holds nothing but the observation after the last action.
        meta: JSON of the episode's meta, and `task` a number of the task: the same in all rows of an episode.
        tails: an episode without an end flag is a tail, not a mistake.
        ours: written by `seqwm.data.export`, a row group an episode.
    """

    rows: Literal["step", "episode"]
    observations: Mapping[str, str]
    actions: Mapping[str, str]
    reward: str | None
    terminated: str | None
    truncated: str | None
    done: str | None
    episode: str | None = None
    frame: str | None = None
    final: str | None = None
    meta: str | None = None
    task: str | None = None
    tails: bool = False
    ours: bool = False

    @property
    def columns(self) -> list[str]:
        """Every column that is read."""
        single = (self.reward, self.terminated, self.truncated, self.done, self.episode, self.frame)
        named = [*self.observations.values(), *self.actions.values(), *single, self.final, self.meta, self.task]
        return [name for name in named if name is not None]

    @property
    def flags(self) -> dict[str, str]:
        """Columns of the end flags by 'terminated', 'truncated' and 'done'."""
        named = {"terminated": self.terminated, "truncated": self.truncated, "done": self.done}
        return {name: column for name, column in named.items() if column is not None}


def find_layout(shard: Shard, declared: Declaration | None, findings: Findings) -> Layout:
    """The layout of a file by the names and types of its columns.

    Raises:
        DataError: where no column can be the observations, or the episode's number is missing.
    """
    types = {column.name: column.type for column in shard.schema}
    if declared is not None:
        return Layout(
            rows="step",
            observations=declared.observations,
            actions=declared.actions,
            reward="next.reward" if declared.rewards else None,
            terminated="next.terminated",
            truncated="next.truncated",
            done=None,
            episode="episode_index",
            frame="frame_index",
            final="is_final_observation",
            meta="episode_meta",
            tails=True,
            ours=True,
        )
    episode, reward, done = (_first(names, types) for names in (EPISODE, REWARD, DONE))
    observations, actions = _leaves(types, OBSERVATION), _leaves(types, ACTION)
    by_episode = episode is None or any(name is not None and is_list(types[name]) for name in (reward, done))
    layout = Layout(
        rows="episode" if by_episode else "step",
        observations=observations,
        actions=actions,
        reward=reward,
        terminated=_first(TERMINATED, types),
        truncated=_first(TRUNCATED, types),
        done=done,
        episode=None if by_episode else episode,
        frame=None if by_episode else _first(FRAME, types),
        final=None if by_episode else _first(FINAL, types),
        meta="episode_meta" if types.get("episode_meta") == pa.string() and not by_episode else None,
        task="task_index" if "task_index" in types and not by_episode else None,
    )
    if not observations:
        listed, mend = ", ".join(sorted(types)) or "none", "rename the column"
        expected = "a column 'observation', 'observations' or 'observation.*'"
        raise DataError([Problem("missing-column", f"the columns {listed}", expected, mend, shard.name)])
    check_layout(layout, shard, findings)
    return layout


def check_layout(layout: Layout, shard: Shard, findings: Findings) -> None:
    """Warn of what a layout lacks.

    Raises:
        DataError: for columns whose type cannot be what they are taken for.
    """
    types = {column.name: column.type for column in shard.schema}
    _refuse_unusable(layout, types, shard)
    for check, found, expected, mend in _missing(layout, types):
        findings.add(Problem(check, found, expected, mend, shard.name, severity="warning"))


def _leaves(types: Mapping[str, pa.DataType], names: tuple[str, ...]) -> dict[str, str]:
    """Columns by leaf path: 'observation', 'observation.state' or 'continuous_observations'."""
    if (whole := _first(names, types)) is not None:
        return {"": whole}
    singular, plural = names[0], names[1]
    found = {column[len(singular) + 1 :]: column for column in types if column.startswith(f"{singular}.")}
    found |= {column[: -len(plural) - 1]: column for column in types if column.endswith(f"_{plural}")}
    found = {path: column for path, column in found.items() if _usable(types[column])}
    return {"": next(iter(found.values()))} if len(found) == 1 else found


def _usable(kind: pa.DataType) -> bool:
    return is_image_type(value_type(kind)) or is_numeric(value_type(kind))


def _first(names: Sequence[str], types: Mapping[str, Any]) -> str | None:
    return next((name for name in names if name in types), None)


def _refuse_unusable(layout: Layout, types: Mapping[str, pa.DataType], shard: Shard) -> None:
    listed = ", ".join(sorted(types)) or "none"

    def refuse(check: str, expected: str, mend: str, column: str | None = None, found: str | None = None) -> None:
        raise DataError([Problem(check, found or f"the columns {listed}", expected, mend, shard.name, column=column)])

    if layout.rows == "episode":
        single = [layout.reward, *layout.actions.values()]
        if any(column is not None and not is_list(types[column]) for column in single):
            mend = "add the number of the episode to every row"
            refuse("missing-column", "a column 'episode_index', as a row is a step", mend, "episode_index")
    levels = 1 if layout.rows == "episode" else 0
    for column in [*layout.observations.values(), *layout.actions.values(), layout.reward]:
        if column is None:
            continue
        kind = types[column]
        if not _usable(kind) or depth(kind) < levels or (column == layout.reward and depth(kind) > levels):
            values, unit = (
                "numbers" if column == layout.reward else "numbers or images",
                "a list" if levels else "a step",
            )
            expected = f"{values}, {unit} a row"
            refuse("wrong-type", expected, "write the column as numbers", column, str(kind))
    for column in layout.flags.values():
        if value_type(types[column]) != pa.bool_() and not pa.types.is_integer(value_type(types[column])):
            refuse("wrong-type", "booleans", "write the column as booleans", column, str(types[column]))


def _missing(layout: Layout, types: Mapping[str, pa.DataType]) -> Iterator[tuple[str, str, str, str]]:
    if not layout.actions:
        yield (
            "no-actions",
            "no action column",
            "'action' or 'actions'",
            "only methods that need no actions can learn from it",
        )
    if layout.reward is None:
        yield (
            "no-rewards",
            "no reward column",
            "'reward' or 'rewards'",
            "only methods that need no rewards can learn from it",
        )
    if not layout.flags:
        mend = "every episode is kept as a tail without an end; add 'terminated' and 'truncated' if they are known"
        yield "no-end-flags", "no column that marks ends", "'terminated' and 'truncated'", mend
    left = sorted(types.keys() - set(layout.columns) - _BOOKKEEPING)
    if left:
        yield "columns-left-out", ", ".join(left), "columns whose meaning is known", "rename what should be read"
