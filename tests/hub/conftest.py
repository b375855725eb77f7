from __future__ import annotations

import json

import pytest
import torch

from seqwm.recipe import parse_recipe
from seqwm.run import train
from tests.fakes.loopback_hub import Hub

SMALL = {
    "behavior_cloning": {"layers": 1, "width": 16},
    "decision_transformer": {"context_length": 5, "layers": 1, "width": 16},
    "trajectory_transformer": {
        "context_length": 4, "layers": 1, "heads": 1, "width": 16, "bins": 8,
        "planner": {"horizon": 2, "beams": 4, "expansion": 4},
    },
    "dreamer": {
        "deterministic": 16, "stochastic": 4, "classes": 4, "hidden": 16, "width": 16, "layers": 1,
        "sequence_length": 8, "imagined_rows": 4,
    },
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that the clients of this process talk to; `hub.slept` lists the seconds that they waited."""
    with Hub() as running:
        running.connect(monkeypatch, tmp_path / "huggingface")
        yield running


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A finished run of every method, by its name; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    return {method: train(small_recipe(method), folder / method) for method in SMALL}


@pytest.fixture
def run(runs):
    """A finished run of a Decision Transformer; not to be changed."""
    return runs["decision_transformer"]


def small_recipe(method):
    targets = [100, 300] if method == "decision_transformer" else None
    steps, rate = (10, 0.01) if method == "dreamer" else (60, 0.02)  # so that it does not always do the same
    return parse_recipe(
        json.dumps(
            {
                "method": method,
                "data": {"source": "datasets/cartpole"},
                "model": SMALL[method],
                "train": {"steps": steps, "batch_size": 16, "learning_rate": rate, "warmup_steps": 0, "track": []},
                "evaluate": {"targets": targets, "episodes": 2, "reference": "seqwm/CartPole-v1"},
            }
        ),
        method,
    )


def actions_of(model, steps=6, lanes=3):
    """What a policy does with given observations."""
    generator = torch.Generator().manual_seed(0)
    policy = model.policy([50.0, 100.0, 150.0]) if model.return_conditioned else model.policy()
    state, chosen = policy.initial(lanes), []
    for step in range(steps):
        observation = 3 * torch.randn(lanes, 4, generator=generator)
        reward, first = torch.ones(lanes), torch.full((lanes,), step == 0)
        action, state = policy.act(state, observation, reward, first)
        chosen.append(action)
    return torch.stack(chosen)
