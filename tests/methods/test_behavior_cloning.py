from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from gymnasium import spaces as gym_spaces

from seqwm.core.errors import SpaceError
from seqwm.core.types import Episode, Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.methods import behavior_cloning as bc
from seqwm.testing import check_policy
from tests.strategies import random_episode

SPACES = Spaces(gym_spaces.Box(-np.inf, np.inf, (2,), np.float32), gym_spaces.Box(-1.0, 1.0, (1,), np.float32))


def store_of(returns_and_lengths):
    store = TrajectoryStore.create(None, SPACES)
    for total, length in returns_and_lengths:
        rewards = np.zeros(length, np.float32)
        rewards[0] = total
        observations = np.random.default_rng(length).standard_normal((length + 1, 2)).astype(np.float32)
        store.append(Episode(observations, np.zeros((length, 1), np.float32), rewards, True, False))
    return store


@pytest.mark.parametrize(
    ("fraction", "kept"), [(None, None), (0.1, [1]), (0.5, [1]), (0.51, [1, 2]), (0.7, [1, 2]), (1.0, [0, 1, 2])]
)
def test_the_best_episodes_are_kept_until_their_share_of_time_steps_is_reached(fraction, kept):
    store = store_of([(1.0, 30), (9.0, 50), (5.0, 20)])
    assert bc.episodes(bc.Options(top_fraction=fraction), store) == kept


def test_a_linear_expert_is_recovered_from_its_log():
    rng = np.random.default_rng(0)
    store = TrajectoryStore.create(None, SPACES)
    gain = np.array([[0.4], [-0.3]], np.float32)
    for _ in range(20):
        observations = rng.standard_normal((51, 2)).astype(np.float32)
        actions = np.clip(observations[:50] @ gain, -1, 1)
        store.append(Episode(observations, actions, np.zeros(50, np.float32), True, False))
    torch.manual_seed(0)
    model = bc.build(bc.Options(layers=1, width=64, dropout=0.0), store).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    windows = store.windows(1, 256)
    before = float(model.loss(windows.batch(0))[0].detach())
    for step in range(300):
        optimizer.zero_grad()
        model.loss(windows.batch(step))[0].backward()
        optimizer.step()
    assert float(model.loss(windows.batch(300))[0].detach()) < 1e-3 < before / 50
    seen = torch.tensor([[0.5, 0.5], [-1.0, 1.0]])
    action, _ = model.policy().act({}, seen, torch.zeros(2), torch.ones(2, dtype=torch.bool))
    torch.testing.assert_close(action, seen @ torch.as_tensor(gain), atol=0.05, rtol=0.0)


def test_a_saved_model_acts_as_before(tmp_path):
    store = store_of([(1.0, 5)])
    model = bc.build(bc.Options(width=16), store).eval()
    model.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path)
    observation = torch.randn(3, 2)
    assert torch.equal(again.eval()(observation), model(observation))


def test_lanes_are_independent_of_each_other():
    model = bc.build(bc.Options(width=16), store_of([(1.0, 5)]))
    check_policy(lambda lanes: model.policy(), SPACES)


def test_a_target_is_refused():
    with pytest.raises(ValueError, match="found target_returns, expected none"):
        bc.build(bc.Options(), store_of([(1.0, 5)])).policy([3.0])


def test_the_best_share_needs_rewards():
    store = TrajectoryStore.create(None, SPACES, rewards=False)
    store.append(random_episode(SPACES, 5, np.random.default_rng(0), rewards=False))
    with pytest.raises(SpaceError, match="no rewards; expected some for top_fraction"):
        bc.build(bc.Options(top_fraction=0.1), store)
