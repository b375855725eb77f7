"""D4RL's flat HDF5: all episodes one behind the other, cut where `terminals` or `timeouts` is set.

A row that is both is a termination. Rows behind the last flag are a tail without an end. A file without `timeouts` is
refused: D4RL's own loader then counts steps against the environment's time limit, which a log does not know, and
episodes that run into each other are worse than none. Where `next_observations` are logged they give each episode its
final observation, and must continue into the next row wherever no flag says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqwm.core.errors import DataError
from seqwm.core.types import Array, Episode, Scalar, Spaces
from seqwm.data.problems import Findings, Problem
from seqwm.data.sources import Source
from seqwm.data.sources.columns import UnreadableColumn
from seqwm.data.sources.ends import open_tail
from seqwm.data.sources.hdf5 import Hdf5File, open_hdf5, read_array, read_attributes
from seqwm.data.sources.minari_metadata import scalars
from seqwm.data.sources.observed_spaces import observe, space_of

_NEEDED = ("observations", "actions", "rewards", "terminals", "timeouts")
_DONE = ("dones", "done")
_CLOSE = 1e-4
"""Next observations may differ from the row behind them by this share of 1 + |o|, for the rounding of a wrapper."""


def open_source(location: str, findings: Findings) -> Source:
    """The file at `location`; read into memory whole when its episodes are asked for.

    Raises:
        DataError: for a file that is not HDF5 of this layout.
    """
    path = Path(location)
    if not path.is_file():
        expected, mend = "an HDF5 file in D4RL's layout", "check the path"
        raise DataError([Problem("unknown-source", "no such file", expected, mend, location)])
    with open_hdf5(path) as file:
        provenance = _attributes(file, path)
        if missing := [column for column in _NEEDED if column not in file.names]:
            raise DataError([_missing(path, column) for column in missing])
        columns = {column: _column(file, path, column) for column in ("observations", "actions")}
        ends = _ends(file, path)
    leaves = {column: observe([values]) for column, values in columns.items()}
    spaces = {
        column: space_of(seen, findings, str(path), column, action=column == "actions")
        for column, seen in leaves.items()
    }
    return Source(
        name=f"d4rl:{path.name}",
        spaces=Spaces(spaces["observations"], spaces["actions"]),
        episodes=lambda: _episodes(path, findings),
        files=(path,),
        provenance=provenance,
        count=len(ends),
    )


def _episodes(path: Path, findings: Findings) -> Iterator[Episode]:
    """Every episode in order; what is wrong goes to `findings`, and the episode is passed over."""
    with open_hdf5(path) as file:
        ends = _ends(file, path)
        rows = int(ends[-1])
        optional = [column for column in ("next_observations", *_DONE) if column in file.names]
        columns = {column: _column(file, path, column) for column in (*_NEEDED, *optional)}
    if ragged := [column for column, values in columns.items() if len(values) != rows]:
        raise DataError([_ragged(path, column, len(columns[column]), rows) for column in ragged])
    following = columns.get("next_observations")
    broken = _jumps(columns["observations"], following) if following is not None else np.zeros(rows, np.bool_)
    terminals, timeouts = (columns[name].astype(np.bool_) for name in ("terminals", "timeouts"))
    done = next((columns[name].astype(np.bool_) for name in _DONE if name in columns), None)
    start = 0
    for number, stop in enumerate(ends.tolist()):
        span, first = slice(start, stop), start
        start = stop
        last = stop - 1
        jump = np.flatnonzero(broken[first:last])
        if jump.size:
            findings.add(_jump(path, number, int(jump[0])))
            continue
        if done is not None and (wrong := np.flatnonzero(done[span] != (terminals[span] | timeouts[span]))).size:
            findings.add(_contradiction(path, number, int(wrong[0]), next(name for name in _DONE if name in columns)))
            continue
        terminated, truncated = bool(terminals[last]), bool(timeouts[last] and not terminals[last])
        if not (terminated or truncated):
            if following is None and stop - first == 1:
                findings.add(_lone_row(path, number))
                continue
            findings.add(open_tail(str(path), number, stop - first))
        observations = columns["observations"][span]
        if following is not None:
            observations = np.concatenate([observations, following[last:stop]])
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes an infinity, which is named with its step
            rewards = columns["rewards"][span].astype(np.float32, copy=False)
        yield Episode(
            observations=observations,
            actions=columns["actions"][span],
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            final_observation=following is not None,
            meta={"episode_index": number},
        )


def _ends(file: Hdf5File, path: Path) -> NDArray[np.int64]:
    """One past the last row of each episode; a tail without a flag is an episode."""
    flags = [_column(file, path, column) for column in ("terminals", "timeouts")]
    rows = len(flags[0])
    if len(flags[1]) != rows:
        raise DataError([_ragged(path, "timeouts", len(flags[1]), rows)])
    for column, flag in zip(("terminals", "timeouts"), flags, strict=True):
        if flag.ndim != 1:
            mend = "store one flag a row"
            problem = Problem("wrong-shape", f"shape {flag.shape}", f"({rows},)", mend, str(path), column=column)
            raise DataError([problem])
        if (wrong := np.flatnonzero((flag != 0) & (flag != 1))).size:
            step, mend = int(wrong[0]), "store flags as booleans"
            found = f"{flag[step]} in row {step}"
            raise DataError([Problem("wrong-type", found, "true or false", mend, str(path), None, step, column)])
    if rows == 0:
        mend = "name a file that holds episodes"
        raise DataError([Problem("empty-dataset", "no row", "at least one", mend, str(path))])
    ends = np.flatnonzero((flags[0] != 0) | (flags[1] != 0)) + 1
    if not ends.size or ends[-1] != rows:
        ends = np.append(ends, rows)
    return ends.astype(np.int64)


def _column(file: Hdf5File, path: Path, column: str) -> Array:
    try:
        return read_array(file.root, column)
    except UnreadableColumn as problem:
        problem.column = column
        raise DataError([problem.problem(str(path))]) from None


def _jumps(observations: Array, following: Array) -> NDArray[np.bool_]:
    """Rows whose next observation is not the observation of the row behind them, [rows]; the last one is none."""
    here, there = following[:-1], observations[1:]
    if here.shape != there.shape:
        return np.ones(len(observations), np.bool_)
    differs = ~((here == there) | (np.isnan(here) & np.isnan(there)))
    rows = np.flatnonzero(differs.reshape(len(here), -1).any(axis=1))
    close = np.abs(here[rows] - there[rows]) <= _CLOSE * (1 + np.abs(there[rows]))
    jumps = np.zeros(len(observations), np.bool_)
    jumps[rows[~close.reshape(len(rows), -1).all(axis=1)]] = True
    return jumps


def _attributes(file: Hdf5File, path: Path) -> dict[str, Scalar]:
    try:
        return scalars(read_attributes(file.root))
    except UnreadableColumn as problem:
        raise DataError([problem.problem(str(path))]) from None


def _missing(path: Path, column: str) -> Problem:
    mend = "this is not D4RL's layout; a Minari data set is named by its folder"
    if column == "timeouts":
        mend = "add 'timeouts', true at each row after which the log was cut; it cannot be told from the rows"
    return Problem("missing-column", "no such column", "D4RL's columns", mend, str(path), column=column)


def _ragged(path: Path, column: str, found: int, rows: int) -> Problem:
    mend = "store every column at every row"
    step = min(found, rows)
    return Problem("ragged-episode", f"{found} rows", f"{rows}", mend, str(path), None, step, column)


def _jump(path: Path, number: int, step: int) -> Problem:
    found = "a next observation that is not the observation of the row behind it"
    mend = "set timeouts where the log was cut"
    expected = "one episode, or an end flag"
    return Problem("broken-chain", found, expected, mend, str(path), number, step, "next_observations")


def _contradiction(path: Path, number: int, step: int, column: str) -> Problem:
    found, expected = f"'{column}' that differs from terminals and timeouts", "done exactly where one of them is set"
    return Problem("contradicting-flags", found, expected, "correct the flags", str(path), number, step, column)


def _lone_row(path: Path, number: int) -> Problem:
    found, expected = "a single row behind the last end flag", "at least one transition"
    mend = "nothing: it is left out"
    return Problem("no-transition", found, expected, mend, str(path), number, 0, severity="warning")
