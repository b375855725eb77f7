"""What only a whole set can show, how problems are summed up, and that every class that is told is documented."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

import seqwm.data
from seqwm.core.types import Spaces
from seqwm.data.problems import Problem
from seqwm.data.store import TrajectoryStore
from seqwm.data.validate import CHECKS, summarise, validate
from tests.strategies import random_episode

SPACES = Spaces(
    gym_spaces.Dict({"a": gym_spaces.Box(-np.inf, np.inf, (3,), np.float32), "b": gym_spaces.Discrete(3)}),
    gym_spaces.Discrete(2),
)


def write(path, episodes, spaces=SPACES):
    store = TrajectoryStore.create(path, spaces, rewards=episodes[0].rewards is not None if episodes else True)
    for episode in episodes:
        store.append(episode)
    store.close()
    return path


def some(count, *, spaces=SPACES, seed=0, **options):
    rng = np.random.default_rng(seed)
    return [random_episode(spaces, 6, rng, **options) for _ in range(count)]


def found_in(source):
    return [(p.check, p.severity, p.column) for p in validate(source).problems]


def test_a_good_store_has_no_problem(tmp_path):
    assert found_in(write(tmp_path / "store", some(5))) == []


def test_constant_columns_are_named_leaf_by_leaf(tmp_path):
    episodes = some(4)
    for episode in episodes:
        episode.observations["a"][:, 1] = 4.0
        episode.actions[:] = 1
    findings = validate(write(tmp_path / "store", episodes))
    assert [(p.check, p.severity, p.column) for p in findings.problems] == [
        ("constant-column", "warning", "observations/a"),
        ("constant-column", "warning", "actions"),
    ]
    assert findings.problems[0].found == "one value throughout in 1 of 3 entries: 1"


def test_a_column_that_is_constant_within_each_episode_alone_is_not_constant(tmp_path):
    episodes = some(3)
    for value, episode in enumerate(episodes):
        episode.observations["a"][:, 1] = value
    assert found_in(write(tmp_path / "store", episodes)) == []


def test_returns_of_cut_episodes_are_labelled_once(tmp_path):
    path = write(tmp_path / "store", some(2) + some(3, end="truncated"))
    findings = validate(path)
    assert [(p.check, p.severity) for p in findings.problems] == [("cut-return", "warning")]
    assert findings.problems[0].found == "3 of 5 episodes cut by truncation"
    without = [replace(episode, rewards=None) for episode in some(2, end="truncated")]
    assert found_in(write(tmp_path / "without", without)) == []


def test_a_set_that_mixes_final_observations_is_wrong(tmp_path):
    path = write(tmp_path / "store", some(2) + some(1, final_observation=False))
    (problem,) = validate(path).errors
    assert (problem.check, problem.episode, problem.step) == ("mixed-final-observation", 2, 6)


def test_an_empty_store_is_wrong(tmp_path):
    assert found_in(write(tmp_path / "store", [])) == [("empty-dataset", "error", None)]


def test_a_changed_byte_in_a_store_is_told_by_its_file(tmp_path):
    path = write(tmp_path / "store", some(3))
    file = path / "rows-00000.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    (problem,) = validate(path).errors
    assert (problem.check, problem.file) == ("checksum-mismatch", str(file))


def test_frames_with_the_channel_first_are_told(tmp_path):
    spaces = Spaces(gym_spaces.Box(0, 255, (3, 40, 40), np.uint8), None)
    rng = np.random.default_rng(0)
    episode = random_episode(Spaces(gym_spaces.Box(0, 1, (3, 40, 40), np.float32), None), 4, rng)
    episode = replace(episode, observations=rng.integers(0, 256, (5, 3, 40, 40), dtype=np.uint8))
    assert found_in(write(tmp_path / "store", [episode], spaces)) == [("channel-order", "warning", "observations")]


@pytest.mark.parametrize("name", ["nowhere", "d4rl:nowhere.hdf5"])
def test_a_source_that_does_not_exist_is_a_finding_not_a_crash(name):
    assert [check for check, _, _ in found_in(name)] == ["unknown-source"]


def test_a_thousand_equal_warnings_are_one_line():
    problems = [
        Problem("outside-space", f"{number}", "less", "look", "a.h5", number, 3, f"observations[{number % 4}]",
                severity="warning")
        for number in range(1000)
    ]  # fmt: skip
    problems.insert(500, Problem("not-finite", "nan", "a number", "drop it", "a.h5", 12, 4, "rewards"))
    summaries = summarise(problems)
    assert [(s.first.check, s.count) for s in summaries] == [("not-finite", 1), ("outside-space", 1000)]
    assert str(summaries[0]) == str(problems[500])
    assert str(summaries[1]) == f"{problems[0]} (1000 such)"


def test_one_check_in_two_columns_is_two_lines():
    problems = [Problem("not-finite", "nan", "", "", column=column) for column in ("actions[0]", "rewards", "rewards")]
    assert [s.count for s in summarise(problems)] == [1, 2]


SLUG = r'"([a-z]+(?:-[a-z]+)+)"'
TOLD = re.compile(rf"(?:Problem|UnreadableColumn|add|refuse|problem)\(\s*{SLUG}|\bcheck\b[\w, ]* = {SLUG}")


def sources():
    return [file for file in Path(seqwm.data.__path__[0]).rglob("*.py") if file.name != "checks.py"]


def test_every_class_that_is_told_is_documented():
    told = {slug for file in sources() for pair in TOLD.findall(file.read_text()) for slug in pair if slug}
    assert len(told) > 40
    assert told - CHECKS.keys() == set()


def test_every_class_that_is_documented_is_told_somewhere():
    text = "\n".join(file.read_text() for file in sources())
    assert [slug for slug in CHECKS if f'"{slug}"' not in text] == []
