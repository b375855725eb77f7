"""D4RL's flat layout: where episodes are cut, what their final observation is, and every file that must be refused."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from seqwm.core.errors import DataError
from seqwm.data.load import convert
from seqwm.data.problems import Findings
from seqwm.data.sources import open_source
from seqwm.data.validate import validate

SHARED = Path(__file__).parents[4] / "shared" / "data" / "d4rl" / "hopper_expert_course.hdf5"


def rows(lengths=(4, 3, 5), ends=("terminal", "timeout", "both")):
    """Columns of a file; an end of None leaves the last episode open."""
    rng = np.random.default_rng(0)
    states = [rng.standard_normal((length + 1, 3)).astype(np.float32) for length in lengths]
    count = sum(lengths)
    flags = {"terminals": np.zeros(count, np.bool_), "timeouts": np.zeros(count, np.bool_)}
    for last, end in zip(np.cumsum(lengths) - 1, ends, strict=True):
        flags["terminals"][last] = end in ("terminal", "both")
        flags["timeouts"][last] = end in ("timeout", "both")
    return {
        "observations": np.concatenate([state[:-1] for state in states]),
        "actions": rng.uniform(-1, 1, (count, 2)).astype(np.float32),
        "rewards": rng.standard_normal(count).astype(np.float32),
        **flags,
        "next_observations": np.concatenate([state[1:] for state in states]),
    }


def without(columns, *names):
    return {name: values for name, values in columns.items() if name not in names}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs.hdf5"


def write(path, columns, **attributes):
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = values
        file.attrs.update(attributes)
    return str(path)


def read(path):
    return list(open_source(str(path), Findings()).episodes())


def told(path):
    return [
        (p.check, p.episode, p.step, p.column, p.severity)
        for p in validate(str(path)).problems
        if p.check != "cut-return"
    ]


def test_episodes_are_cut_at_terminals_and_timeouts_and_a_terminal_wins(path):
    columns = rows()
    write(path, columns)
    episodes = read(path)
    assert [(len(e), e.terminated, e.truncated, e.final_observation) for e in episodes] == [
        (4, True, False, True), (3, False, True, True), (5, True, False, True),
    ]  # fmt: skip
    for start, stop, episode in ((0, 4, episodes[0]), (4, 7, episodes[1]), (7, 12, episodes[2])):
        np.testing.assert_array_equal(episode.observations[:-1], columns["observations"][start:stop])
        np.testing.assert_array_equal(episode.observations[1:], columns["next_observations"][start:stop])
        np.testing.assert_array_equal(episode.actions, columns["actions"][start:stop])
        np.testing.assert_array_equal(episode.rewards, columns["rewards"][start:stop])
    assert told(path) == []


def test_without_next_observations_no_episode_has_a_final_one(path):
    columns = without(rows(), "next_observations")
    write(path, columns)
    episodes = read(path)
    assert [(len(e), len(e.observations), e.final_observation) for e in episodes] == [
        (4, 4, False), (3, 3, False), (5, 5, False),
    ]  # fmt: skip
    assert told(path) == []


def test_rows_behind_the_last_flag_are_a_tail_without_an_end(path):
    write(path, rows(ends=("terminal", "timeout", None)))
    *_, tail = read(path)
    assert (len(tail), tail.terminated, tail.truncated) == (5, False, False)
    assert told(path) == [("missing-end-flag", 2, 4, None, "warning")]


def test_a_single_row_behind_the_last_flag_is_a_transition_only_with_a_next_observation(path):
    columns = rows(lengths=(4, 3, 1), ends=("terminal", "timeout", None))
    write(path, columns)
    assert [len(e) for e in read(path)] == [4, 3, 1]
    write(path, without(columns, "next_observations"))
    assert [len(e) for e in read(path)] == [4, 3]
    assert told(path) == [("no-transition", 2, 0, None, "warning")]


def test_spaces_are_read_off_the_columns(path):
    columns = rows()
    write(path, columns)
    spaces = open_source(str(path), Findings()).spaces
    assert spaces.observation == gym_spaces.Box(-np.inf, np.inf, (3,), np.float32)
    assert spaces.action == gym_spaces.Box(-1, 1, (2,), np.float32)
    columns["actions"][3] = (-2, 0)
    columns["actions"][5] = (0, 1.5)
    columns["observations"] = columns["observations"].astype(np.float64)
    del columns["next_observations"]
    write(path, columns)
    low, high = columns["actions"].min(0), columns["actions"].max(0)
    spaces = open_source(str(path), Findings()).spaces
    assert spaces.observation.dtype == np.float64
    assert spaces.action == gym_spaces.Box(low, high, (2,), np.float32)
    assert told(path) == [("space-inferred", None, None, "actions", "warning")]
    columns["actions"] = np.arange(12) % 4
    write(path, columns)
    assert open_source(str(path), Findings()).spaces.action == gym_spaces.Discrete(4)


def test_attributes_are_kept_as_provenance(path):
    write(path, rows(), algorithm="SAC", seed=3, weights=np.zeros(4))
    source = open_source(f"d4rl:{path}", Findings())
    assert source.provenance == {"algorithm": "SAC", "seed": 3}
    assert (source.name, source.count) == ("d4rl:logs.hdf5", 3)


def test_rounding_between_next_observations_and_the_rows_behind_them_is_forgiven(path):
    columns = rows()
    columns["next_observations"] = columns["next_observations"] + np.float32(1e-6)
    write(path, columns)
    assert told(path) == []


def changed(name, place, value):
    columns = rows()
    columns[name][place] = value
    return columns


def longer(name):
    columns = rows()
    return columns | {name: np.concatenate([columns[name], columns[name][:1]])}


# name: (columns, problem as (check, episode, step, column))
REFUSED = {
    "no timeouts": (without(rows(), "timeouts"), ("missing-column", None, None, "timeouts")),
    "no terminals": (without(rows(), "terminals"), ("missing-column", None, None, "terminals")),
    "no rewards": (without(rows(), "rewards"), ("missing-column", None, None, "rewards")),
    "a row too many": (longer("actions"), ("ragged-episode", None, 12, "actions")),
    "a next observation too many": (longer("next_observations"), ("ragged-episode", None, 12, "next_observations")),
    "a flag too many": (longer("timeouts"), ("ragged-episode", None, 12, "timeouts")),
    "flags that are no booleans": (
        rows() | {"timeouts": np.arange(12.0)}, ("wrong-type", None, 2, "timeouts"),
    ),
    "flags of two dimensions": (
        rows() | {"terminals": np.zeros((12, 1))}, ("wrong-shape", None, None, "terminals"),
    ),
    "no row": ({name: values[:0] for name, values in rows().items()}, ("empty-dataset", None, None, None)),
    "a cut that no flag marks": (
        changed("timeouts", 6, False), ("broken-chain", 1, 2, "next_observations"),
    ),
    "done where no flag is": (
        rows() | {"dones": np.arange(12) == 5}, ("contradicting-flags", 0, 3, "dones"),
    ),
    "done that leaves timeouts out": (
        rows() | {"dones": rows()["terminals"]}, ("contradicting-flags", 1, 2, "dones"),
    ),
    "NaN in an observation": (
        changed("observations", (0, 1), np.nan), ("not-finite", 0, 0, "observations[1]"),
    ),
    "NaN in a final observation": (
        changed("next_observations", (6, 0), np.nan), ("not-finite", 1, 3, "observations[0]"),
    ),
    "infinite action": (changed("actions", (8, 1), np.inf), ("not-finite", 2, 1, "actions[1]")),
    "infinite reward": (changed("rewards", 5, np.inf), ("not-finite", 1, 1, "rewards")),
    "a reward that float32 cannot hold": (
        rows() | {"rewards": np.where(np.arange(12) == 9, 1e200, 0)}, ("not-finite", 2, 2, "rewards"),
    ),
    "rewards of two dimensions": (
        rows() | {"rewards": rows()["rewards"][:, None]}, ("wrong-shape", 0, None, "rewards"),
    ),
    "objects": (
        rows() | {"actions": np.array(["a"] * 12, dtype=h5py.string_dtype())},
        ("object-dtype", None, None, "actions"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_file_is_named_by_episode_step_and_column(path, tmp_path, name):
    columns, expected = REFUSED[name]
    write(path, columns)
    errors = validate(str(path)).errors
    assert (errors[0].check, errors[0].episode, errors[0].step, errors[0].column) == expected
    assert {problem.check for problem in errors} == {expected[0]}
    assert {problem.file for problem in errors} == {str(path)}
    with pytest.raises(DataError) as refused:
        convert(open_source(str(path), Findings()), tmp_path / "store")
    assert refused.value.problems[0] == errors[0]
    assert not (tmp_path / "store").exists()


def test_the_agreeing_done_of_a_log_is_no_contradiction(path):
    columns = rows()
    write(path, columns | {"dones": columns["terminals"] | columns["timeouts"]})
    assert told(path) == []


def test_a_file_that_leads_elsewhere_is_refused(path):
    write(path, without(rows(), "rewards"))
    with h5py.File(path, "r+") as file:
        file["rewards"] = h5py.ExternalLink("other.hdf5", "/rewards")
    assert told(path) == [("outside-file", None, None, "rewards", "error")]


def test_a_file_that_is_cut_short_is_told(path):
    write(path, rows())
    path.write_bytes(path.read_bytes()[:3000])
    assert told(path) == [("corrupt-file", None, None, None, "error")]


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_file(), reason="the shared logs are not here")
def test_the_shared_log_imports_and_validates_clean(tmp_path):
    findings = Findings()
    store = convert(open_source(f"d4rl:{SHARED}", findings), tmp_path / "store")
    assert (store.rows, len(store), store.returns.round().tolist()) == (2000, 2, [3717, 3718])
    assert store.truncated.all()
    assert not store.terminated.any()
    assert len(store.episode(0).observations) == 1001
    assert [problem.check for problem in findings.problems] == ["space-inferred"]
    assert validate(tmp_path / "store").errors == []
