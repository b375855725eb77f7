"""Agents that learn in the dreams of a trained world, and are measured in reality."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from seqwm.core.errors import CheckpointError, RecipeError
from seqwm.data.store import TrajectoryStore
from seqwm.methods.stable_baselines import StableBaselinesLearner
from seqwm.recipe import parse_recipe
from seqwm.run import train
from seqwm.training.tracking import read_metrics
from seqwm.worlds import open_dream

pytest.importorskip("stable_baselines3", reason="an extra")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    description = {
        "method": "video_diffusion",
        "collect": {"environment": "seqwm/Catch-v0", "lanes": 4, "prefill": 200},
        "model": {"channels": [16], "width": 16, "steps": 1},
        "train": {"steps": 2, "batch_size": 4, "track": []},
    }
    return train(parse_recipe(json.dumps(description), "w"), tmp_path_factory.mktemp("world") / "run")


def recipe(world, **options):
    description = {
        "method": "stable_baselines",
        "collect": {
            "environment": "seqwm/Dream-v0",
            "environment_options": {"world": str(world), "horizon": 6, "begin": "anywhere", **options},
            "lanes": 3,
            "prefill": 1,
            "updates_per_step": 1 / 15,  # one for each buffer of 5 steps in 3 lanes
        },
        "model": {"algorithm": "ppo", "widths": [8], "settings": {"n_steps": 5, "n_epochs": 2}},
        "train": {"steps": 9, "batch_size": 5, "track": [], "log_every": 1, "checkpoint_every": 2},
        "evaluate": {"environment": "seqwm/Catch-v0", "episodes": 2, "replay": False},
    }
    return parse_recipe(json.dumps(description), "r")


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_an_agent_learns_in_dreams_of_a_world_and_is_measured_in_reality(world):
    run = train(recipe(world), "run")
    store = TrajectoryStore.open(run / "replay")
    assert store.lengths.max() <= 6
    assert store.spaces.observation.shape == (16, 16, 1)
    assert json.loads((run / "evaluation.json").read_text())["environment"] == "seqwm/Catch-v0"
    logged = TrajectoryStore.open(world / "replay")
    seen = {frame.tobytes() for episode in logged.episodes() for frame in episode.observations}
    assert all(episode.observations[0].tobytes() in seen for episode in store.episodes())


def test_a_killed_run_in_dreams_ends_in_the_numbers_of_the_uninterrupted_one(world, monkeypatch):
    whole, update = train(recipe(world), "whole"), StableBaselinesLearner.update

    class Killed(BaseException):
        pass

    def killed(self, step):
        if step == 5:
            raise Killed
        return update(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(StableBaselinesLearner, "update", killed)
        with pytest.raises(Killed):
            train(recipe(world), "killed")
    killed_run = train(recipe(world), "killed", resume=True)
    one, other = (TrajectoryStore.open(run / "replay") for run in (killed_run, whole))
    assert len(one) == len(other)
    for left, right in zip(one.episodes(), other.episodes(), strict=True):
        np.testing.assert_array_equal(left.observations, right.observations)
        np.testing.assert_array_equal(left.rewards, right.rewards)
    found, wanted = (load_file(run / "model" / "model.safetensors") for run in (killed_run, whole))
    assert all(found[name].equal(wanted[name]) for name in wanted)
    metrics = [[{**line, "seconds": 0} for line in read_metrics(run / "metrics.jsonl")] for run in (killed_run, whole)]
    assert metrics[0] == metrics[1]


def test_a_dream_that_cannot_be_opened_says_what_it_needs(world, tmp_path):
    with pytest.raises(RecipeError, match="horizon is missing"):
        open_dream({"world": str(world)}, 2)
    with pytest.raises(RecipeError, match="horizn: unknown; did you mean 'horizon'"):
        open_dream({"world": str(world), "horizn": 3}, 2)
    agent = train(recipe(world), "run")
    with pytest.raises(CheckpointError, match="is no world model"):
        open_dream({"world": str(agent), "horizon": 3}, 2)
