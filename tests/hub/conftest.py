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
    "planet": {
        "deterministic": 16, "stochastic": 4, "hidden": 16, "width": 16, "layers": 1, "sequence_length": 8,
        "planner": {"horizon": 3, "candidates": 16, "elites": 4, "iterations": 2},
    },
    "pets": {
        "layers": 1, "width": 16, "most_steps": 20,
        "planner": {"horizon": 3, "candidates": 16, "elites": 4, "iterations": 2, "particles": 5, "sample": True},
    },
}  # fmt: skip
"""Of methods that learn from logs: the least of a model."""
PLAYED = {
    "dyna_q": ("dyna_q/maze", ["train.steps=2000"]),
    "stable_baselines": ("stable_baselines/cartpole-dqn", ["collect.prefill=100", "train.steps=100"]),
    "world_models": (
        "world_models/catch", ["collect.prefill=400", "train.steps=200", "model.population=8", "model.dreams=4"],
    ),
}  # fmt: skip
"""Of methods that learn while they act: a recipe, and what makes it short."""
METHODS = [*SMALL, *PLAYED]


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
    logged = {method: train(small_recipe(method), folder / method) for method in SMALL}
    always = ["train.track=[]", "evaluate.every=null", "evaluate.episodes=2", "evaluate.replay=false"]
    return logged | {
        method: train(recipe, folder / method, changes=[*always, *changes])
        for method, (recipe, changes) in PLAYED.items()
    }


@pytest.fixture
def run(runs):
    """A finished run of a Decision Transformer; not to be changed."""
    return runs["decision_transformer"]


def small_recipe(method):
    targets = [100, 300] if method == "decision_transformer" else None
    steps = {"dreamer": 10, "planet": 10, "pets": 1}.get(method, 60)
    rate = 0.01 if steps == 10 else 0.02  # so that it does not always do the same
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
    """What a policy does with given observations; it needs no more than torch."""
    generator, space = torch.Generator().manual_seed(0), model.config.observation_space
    policy = model.policy([50.0, 100.0, 150.0]) if model.return_conditioned else model.policy()
    state, chosen = policy.initial(lanes), []
    for step in range(steps):
        if space["type"] == "Discrete":
            observation = torch.randint(space["n"], (lanes,), generator=generator)
        elif space["dtype"] == "uint8":
            observation = torch.randint(256, (lanes, *space["shape"]), generator=generator, dtype=torch.uint8)
        else:
            observation = 3 * torch.randn(lanes, *space["shape"], generator=generator)
        reward, first = torch.ones(lanes), torch.full((lanes,), step == 0)
        action, state = policy.act(state, observation, reward, first)
        chosen.append(action)
    return torch.stack(chosen)
