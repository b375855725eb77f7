"""Dreamer in runs: stopped and resumed, stopped by numbers that are none, and dreamt in."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from seqwm.control.latent_learner import LatentLearner
from seqwm.core.errors import TrainingError
from seqwm.data.store import TrajectoryStore
from seqwm.dreaming import dream
from seqwm.recipe import parse_recipe
from seqwm.run import train
from seqwm.training import checkpoint
from seqwm.training.tracking import read_metrics


def recipe(method="dreamer", **model):
    small = {"sequence_length": 8, "deterministic": 16, "stochastic": 3, "hidden": 8, "layers": 1, "width": 16}
    if method == "dreamer":
        small |= {"classes": 4, "horizon": 3}
    description = {
        "method": method,
        "collect": {"environment": "CartPole-v1", "lanes": 2, "prefill": 40, "updates_per_step": 0.25},
        "model": small | model,
        "train": {"steps": 12, "batch_size": 4, "track": [], "log_every": 1, "checkpoint_every": 5, "weight_decay": 0},
        "evaluate": {"episodes": 1, "replay": False},
    }
    return parse_recipe(json.dumps(description), "r")


def lines(run):
    return [
        {key: value for key, value in line.items() if key != "seconds"} for line in read_metrics(run / "metrics.jsonl")
    ]


class Killed(BaseException):
    pass


def before_update(monkeypatch, moment, act):
    update = LatentLearner.update

    def changed(self, step):
        if step == moment:
            act(self)
        return update(self, step)

    monkeypatch.setattr(LatentLearner, "update", changed)


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_a_killed_online_run_ends_in_the_numbers_of_the_uninterrupted_one(tmp_path, monkeypatch, version):
    sizes = {"version": version, "classes": 0 if version == "v1" else 4}
    whole = train(recipe(**sizes), tmp_path / "whole")

    def kill(learner):
        raise Killed

    with monkeypatch.context() as patch:
        before_update(patch, 8, kill)
        with pytest.raises(Killed):
            train(recipe(**sizes), tmp_path / "killed")
    resumed = train(recipe(**sizes), tmp_path / "killed", resume=True)
    assert lines(resumed) == lines(whole)
    found, wanted = (load_file(run / "model" / "model.safetensors") for run in (resumed, whole))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    one, other = (TrajectoryStore.open(run / "replay") for run in (resumed, whole))
    assert one.returns.tolist() == other.returns.tolist()


def test_a_loss_that_is_no_number_stops_at_the_last_good_checkpoint_and_leaves_the_batch(tmp_path, monkeypatch):
    def poison(learner):
        with torch.no_grad():
            learner.world.continue_head.output.bias.fill_(float("nan"))

    before_update(monkeypatch, 7, poison)
    with pytest.raises(TrainingError, match="update 7: loss is nan") as caught:
        train(recipe(), tmp_path / "run")
    batch = load_file(tmp_path / "run" / "not-finite-00000007.safetensors")
    assert "not-finite-00000007.safetensors" in str(caught.value)
    assert batch["observations"].shape == (4, 9, 4)
    saved = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert saved.step == 5
    weights = saved.state["learner"]["model"]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values() if isinstance(tensor, torch.Tensor))


@pytest.mark.parametrize("method", ["dreamer", "planet"])
def test_a_run_can_be_dreamt_in(tmp_path, method):
    planner = {} if method == "dreamer" else {"planner": {"horizon": 2, "candidates": 8, "elites": 2, "iterations": 1}}
    run = train(recipe(method, **planner), tmp_path / "run")
    measured = dream(run, episodes=2, horizon=4, contexts=6)
    assert measured.gap is not None
    assert len(measured.gap.reality.returns) == 2
    assert np.isfinite(measured.gap.dream.returns).all()
    assert (run / "dream" / "dream.json").is_file()
