from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces
from safetensors.torch import load_file

from seqwm.core.errors import RecipeError, SpaceError
from seqwm.core.types import Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.hub.load import load_model
from seqwm.recipe import parse_recipe
from seqwm.run import train
from seqwm.training.options import TrainOptions
from seqwm.training.tracking import read_metrics

pytest.importorskip("stable_baselines3", reason="the comparison with model-free methods is an extra")

from seqwm.methods import stable_baselines

SMALL = {
    "dqn": ("CartPole-v1", {"prefill": 100}, {"target_update_interval": 10, "exploration_fraction": 0.2}),
    "sac": ("Pendulum-v1", {"prefill": 200}, {}),
    "ppo": ("CartPole-v1", {"prefill": 1, "lanes": 4, "updates_per_step": 1 / 32}, {"n_steps": 8, "n_epochs": 2}),
}


def recipe(algorithm: str, **train_options):
    environment, collect, settings = SMALL[algorithm]
    description = {
        "method": "stable_baselines",
        "collect": {"environment": environment, **collect},
        "model": {"algorithm": algorithm, "widths": [16], "settings": settings},
        "train": {"steps": 40, "batch_size": 16, "track": [], "log_every": 1, "checkpoint_every": 13, **train_options},
        "evaluate": {"episodes": 2, "replay": False},
    }
    return parse_recipe(json.dumps(description), "r")


def lines(run):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(run / "metrics.jsonl")]


@pytest.mark.parametrize("algorithm", ["dqn", "sac", "ppo"])
def test_it_learns_in_our_loop_and_a_killed_run_ends_in_the_same_numbers(algorithm, tmp_path, monkeypatch) -> None:
    whole = train(recipe(algorithm), tmp_path / "whole")
    metrics = lines(whole)
    assert {"loss", "critic_loss"} & set(metrics[-1])
    assert metrics[-1]["environment_steps"] == TrajectoryStore.open(whole / "replay").rows + sum(under_way(whole))
    update = stable_baselines.StableBaselinesLearner.update

    def killed(self, step):
        if step == 30:
            raise KeyboardInterrupt
        return update(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(stable_baselines.StableBaselinesLearner, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(algorithm), tmp_path / "killed")
    resumed = train(recipe(algorithm), tmp_path / "killed", resume=True)
    assert lines(resumed) == metrics
    found, wanted = (load_model(run).state_dict() for run in (resumed, whole))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def under_way(run):
    state = load_file(sorted((run / "checkpoints").glob("step-*"))[-1] / "state.safetensors")
    return [len(leaf) for name, leaf in state.items() if name.startswith("collector") and name.endswith("/rewards")]


def test_its_buffer_holds_what_happened_with_ends_and_time_limits_apart(tmp_path) -> None:
    run = train(recipe("sac"), tmp_path / "run")
    store = TrajectoryStore.open(run / "replay")
    options = recipe("sac")
    fresh = stable_baselines.learner(options.model, store, options.train, 0)
    buffer = fresh.algorithm.replay_buffer
    assert buffer.size() == store.rows
    first = store.episode(0)
    np.testing.assert_allclose(buffer.observations[: len(first), 0], first.observations[:-1], rtol=1e-6)
    np.testing.assert_allclose(buffer.next_observations[: len(first), 0], first.observations[1:], rtol=1e-6)
    np.testing.assert_allclose(2 * buffer.actions[: len(first), 0], first.actions, rtol=1e-5)
    ends = np.cumsum(store.lengths) - 1
    np.testing.assert_array_equal(np.flatnonzero(buffer.dones[: store.rows, 0]), ends)
    np.testing.assert_array_equal(np.flatnonzero(buffer.timeouts[: store.rows, 0]), ends)  # Pendulum never terminates


def test_what_it_cannot_take_is_refused() -> None:
    spaces = Spaces(gym_spaces.Box(-1, 1, (3,), np.float32), gym_spaces.Box(-2, 2, (1,), np.float32))
    store, options = TrajectoryStore.create(None, spaces), TrainOptions(steps=1)
    refused = r"dqn: found actions Box.*, expected Discrete from 0; ppo and dreamer take both"
    with pytest.raises(SpaceError, match=refused):
        stable_baselines.learner(stable_baselines.Options(algorithm="dqn"), store, options, 0)
    unknown = stable_baselines.Options(algorithm="sac", settings={"gama": 0.9})
    with pytest.raises(RecipeError, match=r"model.settings: sac: .*unexpected keyword argument 'gama'"):
        stable_baselines.learner(unknown, store, options, 0)
