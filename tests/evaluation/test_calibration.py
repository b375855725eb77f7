from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from seqwm.control.ensemble_fit import FitOptions, fit, held_out
from seqwm.core.types import Episode
from seqwm.data.store import TrajectoryStore
from seqwm.dreaming import dream
from seqwm.evaluation.calibration import LEVELS, calibration, measured
from seqwm.nn.ensemble import EnsembleOptions
from seqwm.nn.ensemble_world import EnsembleWorld
from seqwm.recipe import parse_recipe
from seqwm.run import train
from tests.fakes.worlds import LinearWorld

NOISE = 0.3


def noisy_logs(episodes=150, length=20):
    """x' = A x + B u + 0.3 w under random actions, reward 2 u + 0.3 w."""
    truth, generator = LinearWorld(), np.random.default_rng(0)
    store = TrajectoryStore.create(None, truth.spaces)
    for _ in range(episodes):
        actions = generator.uniform(-2, 2, (length, 1)).astype(np.float32)
        x = [generator.normal(size=2)]
        for action in actions:
            following = truth.A.numpy() @ x[-1] + truth.B.numpy() @ action
            x.append(following + NOISE * generator.normal(size=2))
        rewards = 2 * actions[:, 0] + NOISE * generator.normal(size=length)
        store.append(Episode(np.array(x, np.float32), actions, rewards.astype(np.float32), False, truncated=True))
    return store


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    store = noisy_logs()
    sizes = EnsembleOptions(members=4, elites=4, layers=1, width=32)
    world = EnsembleWorld(sizes, "TS-1", store.spaces.observation, store.spaces.action)
    fit(world, store, FitOptions(learning_rate=3e-3, batch_size=256, most_steps=1500), seed=0, step=0)
    return world, store


def test_linear_dynamics_with_noise_are_recovered_to_sampling_error(fitted):
    world, store = fitted
    learned = [number for number in range(len(store)) if number not in held_out(len(store), seed=0)]
    x = np.concatenate([store.episode(number).observations[:-1] for number in learned])
    u = np.concatenate([store.episode(number).actions for number in learned])
    state = {"observation": torch.from_numpy(x), "member": torch.full((len(x),), -1)}
    with torch.no_grad():
        found = world.step(state, torch.from_numpy(u), None).state["observation"].numpy()
        _, aleatoric = world.ensemble.uncertainties(world.inputs(state["observation"], torch.from_numpy(u) / 2))
    inputs = np.concatenate([x, u, np.ones_like(u)], 1)
    line, *_ = np.linalg.lstsq(inputs, found, rcond=None)
    true = np.concatenate([LinearWorld().A.T.numpy(), LinearWorld().B.T.numpy(), np.zeros((1, 2))])
    sampling_error = NOISE * np.sqrt(np.diag(np.linalg.inv(inputs.T @ inputs)))
    z = np.abs(line - true) / sampling_error[:, None]
    assert z.max() < 5
    deviation = (aleatoric[:, :3].mean(0).sqrt() * world.output_std[:3]).numpy()
    assert deviation == pytest.approx([NOISE] * 3, rel=0.15)


def test_intervals_of_a_fitted_ensemble_hold_as_often_as_they_say_on_what_it_never_learned_from(fitted):
    world, store = fitted
    found = calibration(world, store, held_out(len(store), seed=0))
    assert found.held_out
    assert found.rows == 20 * len(held_out(len(store), seed=0))
    assert found.coverage == pytest.approx(LEVELS, abs=0.05)


def test_a_normal_error_is_covered_as_its_variance_says_and_less_without_the_epistemic_part():
    generator = np.random.default_rng(0)
    epistemic, aleatoric = generator.uniform(0, 3, (20_000, 2)), generator.uniform(0.5, 1, (20_000, 2))
    error = (epistemic + aleatoric) * generator.normal(size=(20_000, 2)) ** 2
    found = measured(error, epistemic, aleatoric, held_out=False)
    assert found.coverage == pytest.approx(LEVELS, abs=0.01)
    assert all(alone < both for alone, both in zip(found.coverage_aleatoric, found.coverage, strict=True))
    total = np.hypot(found.epistemic, found.aleatoric)
    assert total == pytest.approx(found.error, rel=0.06)
    assert (np.diff(total) > 0).all()
    certain = measured(error, np.zeros_like(epistemic), aleatoric, held_out=False)
    assert certain.coverage == certain.coverage_aleatoric == found.coverage_aleatoric
    assert f"90 % intervals hold {100 * found.coverage[8]:.1f} %" in str(found)


def test_a_dream_of_an_ensemble_says_how_well_it_is_calibrated(tmp_path):
    recipe = {
        "method": "pets",
        "collect": {"environment": "Pendulum-v1", "prefill": 1000, "updates_per_step": 0.01},
        "model": {
            "members": 2, "elites": 2, "layers": 1, "width": 16, "most_steps": 100,
            "planner": {"horizon": 2, "candidates": 4, "elites": 2, "iterations": 1, "particles": 2},
        },
        "train": {"steps": 1, "track": []}, "evaluate": {"episodes": 1, "replay": False}, "seed": 3,
    }  # fmt: skip
    run = train(parse_recipe(json.dumps(recipe), "r"), tmp_path / "run")
    dreamt = dream(run, episodes=2, horizon=5, contexts=8)
    assert dreamt.calibration is not None
    assert "held-out steps, 90 % intervals hold" in str(dreamt)
    assert (run / "dream" / "calibration.png").stat().st_size > 1000
    written = json.loads((run / "dream" / "dream.json").read_text())["calibration"]
    assert written["coverage"] == dreamt.calibration.coverage
    assert written["rows"] == 200 * len(held_out(5, seed=3))
