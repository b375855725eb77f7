"""Dreamer's world predicts, and its actor learns to act in it, within a minute of one core."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from seqwm.control.collect import collect
from seqwm.control.dream import imagine
from seqwm.methods import dreamer
from seqwm.run import train
from seqwm.training.options import TrainOptions

pytestmark = pytest.mark.learning

SIZES = {"deterministic": 64, "stochastic": 8, "classes": 8, "hidden": 64, "width": 64, "layers": 2}
HORIZON = 5


def test_a_world_learned_from_random_logs_foresees_five_steps_of_a_pole_where_the_mean_does_not():
    logs, fresh = (collect("CartPole-v1", None, 2000, None, seed=seed, progress=False) for seed in (0, 1))
    options = dreamer.Options(sequence_length=16, imagined_rows=2, horizon=1, **SIZES)
    train_options = TrainOptions(steps=1, batch_size=16, learning_rate=1e-3, gradient_clip=0.3, warmup_steps=50)
    torch.manual_seed(0)
    learner = dreamer.learner(options, logs, train_options, seed=0)
    for step in range(800):
        learner.update(step)
    model = learner.trained()

    episodes = np.flatnonzero(fresh.lengths > 8 + HORIZON)
    steps = np.full_like(episodes, 8)
    context = fresh.windows(9, 1).gather(episodes, steps)
    logged = [fresh.episode(int(number)) for number in episodes]
    actions = torch.stack([torch.as_tensor(one.actions[8 : 8 + HORIZON]) for one in logged])
    truth = torch.stack([torch.as_tensor(one.observations[9 : 9 + HORIZON]) for one in logged])
    with torch.no_grad():
        dream = imagine(model, model.encode(context), actions, HORIZON, None)
        states = {name: tensor[:, 1:].flatten(0, 1) for name, tensor in dream.states.items()}
        foreseen = model.decode(states).unflatten(0, truth.shape[:2])
    error = (foreseen - truth).square().mean((0, 1))
    spread = (truth - truth.mean((0, 1))).square().mean((0, 1))
    assert float(error.sum()) < 0.25 * float(spread.sum()), (error / spread).tolist()
    assert float((dream.rewards - 1).abs().mean()) < 0.05


def test_a_small_dreamer_holds_a_pole_three_times_as_long_as_chance_after_a_thousand_steps(tmp_path):
    changes = ["train.steps=350", "train.track=[]", "evaluate.every=null", "evaluate.replay=false"]
    out = train("dreamer/cartpole-v2", tmp_path / "run", changes=changes)
    returns = [one["return"] for one in json.loads((out / "evaluation.json").read_text())["episodes"]]
    assert np.mean(returns) > 66  # actions at random last 22 steps; what it reaches varies with the machine
