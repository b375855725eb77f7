from __future__ import annotations

import gymnasium.spaces as gym_spaces
import numpy as np
import pytest
from hypothesis import given, settings

from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.core.tree import flatten
from seqwm.core.types import Episode, Spaces
from seqwm.data import statistics as statistics_module
from seqwm.data.store import TrajectoryStore
from tests.strategies import episode_sets

VECTOR = Spaces(gym_spaces.Box(-np.inf, np.inf, (2,), np.float32), gym_spaces.Discrete(2))


def filled(spaces, episodes, rewards=True, path=None):
    store = TrajectoryStore.create(path, spaces, rewards=rewards)
    for episode in episodes:
        store.append(episode)
    return store


@settings(max_examples=40, deadline=None)
@given(episode_sets())
def test_figures_are_those_of_all_rows_with_an_action(found):
    spaces, rewards, episodes = found
    statistics = filled(spaces, episodes, rewards).statistics
    means, deviations = flatten(statistics.observation_mean), flatten(statistics.observation_std)
    for path, leaf in leaf_spaces(spaces.observation).items():
        if is_image(leaf):
            assert path not in means
            continue
        rows = [
            flatten(e.observations)[path][: len(flatten(e.observations)[path]) - e.final_observation] for e in episodes
        ]
        values = np.concatenate(rows).astype(np.float64)
        np.testing.assert_allclose(means[path], values.mean(0), rtol=1e-5, atol=1e-6)
        spread = values.std(0)
        np.testing.assert_allclose(deviations[path], np.where(spread > 0, spread, 1.0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(flatten(statistics.observation_low)[path], values.min(0), rtol=1e-6)
        np.testing.assert_allclose(flatten(statistics.observation_high)[path], values.max(0), rtol=1e-6)
    if rewards:
        every = np.concatenate([e.rewards for e in episodes]).astype(np.float64)
        assert statistics.reward_mean == pytest.approx(every.mean(), rel=1e-5, abs=1e-6)
        returns = [e.rewards.sum(dtype=np.float64) for e in episodes]
        assert statistics.return_quantiles[0.0] == pytest.approx(min(returns), rel=1e-5, abs=1e-5)
        assert statistics.return_quantiles[0.5] == pytest.approx(np.median(returns), rel=1e-5, abs=1e-5)
    else:
        assert statistics.reward_mean is None
        assert statistics.return_quantiles == {}


def test_many_chunks_and_parts_give_the_figures_of_one(tmp_path, monkeypatch):
    """Large offsets, where a sum of squares would lose every digit."""
    monkeypatch.setattr(statistics_module, "_CHUNK", 7)
    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            (1e5 + rng.standard_normal((length + 1, 2))).astype(np.float32), rng.integers(0, 2, length),
            rng.standard_normal(length).astype(np.float32), terminated=True, truncated=False,
        )
        for length in (3, 20, 11, 1)
    ]  # fmt: skip
    store = TrajectoryStore.create(tmp_path / "store", VECTOR)
    for episode in episodes:
        store.append(episode)
        store.flush()  # a part of its own
    values = np.concatenate([e.observations[:-1] for e in episodes]).astype(np.float64)
    np.testing.assert_allclose(store.statistics.observation_mean, values.mean(0), rtol=1e-7)
    np.testing.assert_allclose(store.statistics.observation_std, values.std(0), rtol=1e-4)


def test_dividing_by_the_deviation_of_a_constant_column_is_safe():
    observations = np.tile(np.array([3.1415927, 1e-12], np.float32), (9, 1))
    episode = Episode(observations, np.zeros(8, np.int64), np.ones(8, np.float32), terminated=True, truncated=False)
    assert filled(VECTOR, [episode] * 5).statistics.observation_std.tolist() == [1.0, 1.0]
