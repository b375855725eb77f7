from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces

from seqwm.control.branched_rollouts import Bounds, branch, branch_horizon
from seqwm.control.experience import Experience
from seqwm.core.protocols import Step
from seqwm.nn.leaves import ActionCodec

BOX = gym_spaces.Box(-np.inf, np.inf, (1,), np.float32)


class Counter:
    """A world whose one number goes up by the action, which earns it; the task is over above a limit."""

    def __init__(self, limit: float = torch.inf) -> None:
        self.limit, self.actions = limit, ActionCodec(gym_spaces.Box(-2.0, 2.0, (1,), np.float32))

    def step(self, state, action, generator):
        following = state["observation"] + action
        ended = following[:, 0] > self.limit
        return Step({"observation": following, "member": state["member"]}, action[:, 0], ended)


def branches(starts, horizon, *, limit=torch.inf, bounds=BOX, amend=None):
    def half(observation):
        return torch.full_like(observation, 0.5)  # an action of 1: features are within -1 and 1

    begin = torch.tensor(starts)[:, None]
    made = branch(Counter(limit), half, begin, horizon, Bounds(bounds), torch.Generator(), amend=amend)
    return made, Experience.unpacked(made.rows, 1)


def test_each_branch_begins_at_its_start_and_goes_on_from_where_it_came_to():
    made, rows = branches([0.0, 10.0], 3)
    assert rows.observation[:, 0].tolist() == [0, 10, 1, 11, 2, 12]
    assert rows.following[:, 0].tolist() == [1, 11, 2, 12, 3, 13]
    assert rows.action[:, 0].tolist() == [0.5] * 6
    assert rows.reward.tolist() == [1.0] * 6
    assert rows.terminated.tolist() == [0.0] * 6
    assert (made.ended, made.outside) == (0, 0)


def test_no_row_begins_behind_an_imagined_end():
    made, rows = branches([0.0, 2.5, 9.0], 4, limit=3.0)
    assert rows.observation[:, 0].tolist() == [0, 2.5, 9, 1, 2, 3]
    assert rows.terminated.tolist() == [0, 1, 1, 0, 0, 1]
    assert made.ended == 3
    assert float(rows.observation[:, 0][rows.following[:, 0] <= 3].max()) == 2


def test_rows_that_leave_the_observation_space_are_counted_and_what_is_no_number_is_left_out():
    small = gym_spaces.Box(-2.0, 2.0, (1,), np.float32)
    made, rows = branches([0.0, 1.5], 2, bounds=small)
    assert (len(rows.reward), made.outside) == (4, 2)
    made, rows = branches([0.0, torch.inf], 2)
    assert rows.observation[:, 0].tolist() == [0, 1]
    assert (made.outside, made.ended) == (1, 0)


def test_a_pessimist_changes_rewards_and_halts_branches():
    def amend(observation, action, reward, terminated):
        unknown = observation[:, 0] >= 2
        return torch.where(unknown, -100.0, reward - 0.25), terminated | unknown

    made, rows = branches([0.0, 1.0], 9, amend=amend)
    assert rows.observation[:, 0].tolist() == [0, 1, 1, 2, 2]
    assert rows.reward.tolist() == [0.75, 0.75, 0.75, -100, -100]
    assert rows.terminated.tolist() == [0, 0, 0, 1, 1]
    assert made.ended == 2


@pytest.mark.parametrize(
    ("lived", "expected"), [(0, 1), (20_000, 1), (29_000, 1), (30_000, 2), (85_000, 8), (150_000, 15), (10**6, 15)]
)
def test_the_horizon_grows_as_mbpo_lets_it_for_hopper(lived, expected):
    assert branch_horizon(lived, 15, (20_000, 150_000)) == expected
    assert branch_horizon(lived, 4, (0, 0)) == 4
