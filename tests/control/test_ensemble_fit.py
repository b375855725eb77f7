from __future__ import annotations

import dataclasses

import numpy as np
import torch
from gymnasium import spaces as gym_spaces

from seqwm.control.ensemble_fit import FitOptions, fit
from seqwm.core.types import Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.nn.ensemble import EnsembleOptions
from seqwm.nn.ensemble_world import EnsembleWorld
from tests.fakes.worlds import LinearWorld


def error_behind_a_fit(noise: float) -> float:
    """Mean squared error of the next observation, in variances of its change, where rewards are noise."""
    generator, truth = np.random.default_rng(0), LinearWorld()
    logs = truth.logs(episodes=40, length=25)
    store = TrajectoryStore.create(None, truth.spaces)
    for episode in logs.episodes():
        rewards = generator.normal(size=len(episode)).astype(np.float32) * noise
        store.append(dataclasses.replace(episode, rewards=rewards))
    torch.manual_seed(0)
    sizes = EnsembleOptions(members=3, elites=2, layers=1, width=32)
    world = EnsembleWorld(sizes, "TS-1", truth.spaces.observation, truth.spaces.action)
    fit(world, store, FitOptions(most_steps=3000, learning_rate=3e-3, weight_decay=0.0), 0, 0)
    x, u = 0.7 * torch.randn(500, 2), torch.rand(500, 1) * 2 - 1
    with torch.no_grad():
        found = world.step({"observation": x, "member": torch.full((500,), -1)}, u, None).state["observation"]
    expected = truth.step({"x": x}, u, None).state["x"]
    return float(((found - expected).square().mean(0) / (expected - x).var(0)).mean())


def test_rewards_that_cannot_be_foretold_do_not_stop_the_learning_of_what_can():
    assert max(error_behind_a_fit(noise) for noise in (0.0, 1.0)) < 5e-4


def test_columns_that_never_change_are_counted_and_stay_as_they_are():
    truth = LinearWorld()
    wide = gym_spaces.Box(-np.inf, np.inf, (3,), np.float32)
    store = TrajectoryStore.create(None, Spaces(wide, truth.spaces.action))
    for episode in truth.logs(episodes=20, length=20).episodes():
        seen = np.concatenate([episode.observations, np.full((21, 1), 0.1, np.float32)], 1)
        store.append(dataclasses.replace(episode, observations=seen))
    torch.manual_seed(0)
    world = EnsembleWorld(EnsembleOptions(members=2, elites=2, layers=1, width=16), "TS-1", wide, truth.spaces.action)
    figures = fit(world, store, FitOptions(most_steps=400, learning_rate=3e-3), 0, 0)
    assert figures["constant_columns"] == 1
    state = {"observation": torch.tensor([[0.5, 0.5, 0.1]] * 4), "member": torch.full((4,), -1)}
    with torch.no_grad():
        after = world.step(state, torch.zeros(4, 1), None).state["observation"]
    torch.testing.assert_close(after[:, 2], torch.full((4,), 0.1), atol=0.05, rtol=0)
