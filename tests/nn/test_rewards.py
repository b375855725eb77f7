from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from seqwm.core.errors import DataError, RecipeError
from seqwm.nn.leaves import ActionCodec
from seqwm.nn.rewards import contradicted, reward_rule, swung_up


@pytest.mark.parametrize("environment", ["CartPole-v1", "InvertedPendulum-v5", "Pendulum-v1"])
def test_a_rule_says_what_the_environment_says(environment):
    if environment.startswith("Inverted"):
        pytest.importorskip("mujoco", reason="an extra")
    with gymnasium.make(environment) as real:
        real.action_space.seed(0)
        seen, actions, following, rewards = [], [], [], []
        observation, _ = real.reset(seed=0)
        for _ in range(300):
            action = real.action_space.sample()
            after, reward, terminated, truncated, _ = real.step(action)
            for column, value in ((seen, observation), (actions, action), (following, after), (rewards, reward)):
                column.append(value)
            observation = real.reset()[0] if terminated or truncated else after
        codec = ActionCodec(real.action_space)
    before, after, earned = (torch.from_numpy(np.array(part, np.float32)) for part in (seen, following, rewards))
    found = reward_rule(environment)(before, codec.features(torch.from_numpy(np.array(actions))), after)
    torch.testing.assert_close(found, earned, atol=1e-4, rtol=1e-4)


def test_a_rule_that_contradicts_more_than_one_row_in_a_hundred_is_refused_with_the_rate():
    before, action = torch.tensor([[1.0, 0.0, 0.0]]).repeat(200, 1), torch.zeros(200, 1)
    reward = torch.zeros(200)
    reward[:2] = 0.5
    assert contradicted(swung_up, before, action, before, reward) == pytest.approx(0.01)
    reward[2] = -2.0
    with pytest.raises(DataError, match=r"1.5 % of 200 rows contradict it, by up to 2"):
        contradicted(swung_up, before, action, before, reward)


def test_an_environment_without_a_rule_is_named_with_those_that_have_one():
    with pytest.raises(RecipeError, match=r"model.reward: no reward of 'Pendlum-v1' was written .*'Pendulum-v1'"):
        reward_rule("Pendlum-v1")
