from __future__ import annotations

import json

import gymnasium.spaces as gym_spaces
import numpy as np
import pytest

from seqwm.core.types import Episode, Spaces
from seqwm.data.inspect import as_text, inspect
from seqwm.data.store import TrajectoryStore


def made(rewards=True, actions=True):
    observation = gym_spaces.Box(-np.inf, np.inf, (2,), np.float32)
    spaces = Spaces(observation, gym_spaces.Box(-1, 1, (1,), np.float32) if actions else None)
    store = TrajectoryStore.create(None, spaces, provenance={"environment": "Some-v0"}, rewards=rewards)
    for number in range(20):
        observations = np.zeros((number + 3, 2), np.float32)
        observations[:, 0] = number
        length = number + 2
        store.append(
            Episode(
                observations,
                np.full((length, 1), 0.25, np.float32) if actions else None,
                np.ones(length, np.float32) if rewards else None,
                terminated=number % 2 == 0,
                truncated=number % 2 == 1,
            )
        )
    return store


def test_a_report_holds_the_figures_of_the_store():
    report = json.loads(json.dumps(inspect(made())))
    assert (report["episodes"], report["transitions"], report["environment"]) == (20, 230, "Some-v0")
    assert report["ends"] == {"terminated": 10, "truncated": 10, "open": 0}
    assert report["action_range"] == {"action": [[0.25], [0.25]]}
    assert report["suggestions"] == {
        "return_scale": 21.0,
        "targets": [11.5, 16.2, 19.1, 21.0],
        "top_tenth_mean_return": 20.5,
    }
    assert report["constant_columns"] == ["observation[1]", "action"]


def test_the_text_shows_what_a_person_looks_for():
    text = as_text(inspect(made()))
    for part in ("230 transitions in 20 episodes", "Some-v0", "10 terminated", "return_scale", "observation[1]"):
        assert part in text


@pytest.mark.parametrize("rewards", [False, True])
@pytest.mark.parametrize("actions", [False, True])
def test_logs_without_rewards_or_actions_are_reported_as_such(rewards, actions):
    report = inspect(made(rewards, actions))
    assert ("returns" in report) is rewards
    assert (report["action_space"] is not None) is actions
    text = as_text(report)
    assert ("action         not logged" in text) is (not actions)
    assert ("rewards were not logged" in text) is (not rewards)
    assert "None" not in text
