from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from seqwm.core.errors import DataError, RecipeError
from seqwm.nn.ends import contradicted, end_rule, inverted_pendulum, never


@pytest.mark.parametrize(
    "environment",
    ["CartPole-v1", "InvertedPendulum-v5", "Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "Pendulum-v1"],
)
def test_a_rule_says_what_the_environment_says(environment):
    if environment not in ("CartPole-v1", "Pendulum-v1"):
        pytest.importorskip("mujoco", reason="an extra")
    with gymnasium.make(environment) as real:
        real.action_space.seed(0)
        rule, ends, seen, flags = end_rule(environment), 0, [], []
        real.reset(seed=0)
        for _ in range(600):
            observation, _, terminated, truncated, _ = real.step(real.action_space.sample())
            seen.append(observation.astype(np.float32))
            flags.append(terminated)
            ends += terminated
            if terminated or truncated:
                real.reset()
    assert rule(torch.from_numpy(np.stack(seen))).tolist() == flags
    assert (ends > 5) == (rule is not never)


def test_a_rule_that_contradicts_more_than_one_row_in_a_hundred_is_refused_with_the_rate():
    following, terminated = torch.zeros(200, 4), torch.zeros(200, dtype=torch.bool)
    terminated[:2] = True
    assert contradicted(inverted_pendulum, following, terminated) == pytest.approx(0.01)
    terminated[:3], following[3, 1] = True, 0.3
    with pytest.raises(
        DataError, match=r"2.0 % of 200 rows contradict it: 3 ends missed, 1 seen where the task went on"
    ):
        contradicted(inverted_pendulum, following, terminated)


def test_an_environment_without_a_rule_is_named_with_those_that_have_one():
    with pytest.raises(RecipeError, match=r"model.ends: no end of 'Hoper-v5' was written by hand, .*'Hopper-v5'"):
        end_rule("Hoper-v5")
