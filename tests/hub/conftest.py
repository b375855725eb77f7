from __future__ import annotations

import json

import pytest

from seqwm.recipe import parse_recipe
from seqwm.run import train
from tests.fakes.loopback_hub import Hub

SMALL = {
    "behavior_cloning": {"layers": 1, "width": 16},
    "decision_transformer": {"context_length": 5, "layers": 1, "width": 16},
    "trajectory_transformer": {
        "context_length": 4, "layers": 1, "heads": 1, "width": 16, "bins": 8,
        "planner": {"horizon": 2, "beams": 2, "expansion": 2},
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
    return parse_recipe(
        json.dumps(
            {
                "method": method,
                "data": {"source": "datasets/cartpole"},
                "model": SMALL[method],
                "train": {"steps": 3, "batch_size": 4, "track": []},
                "evaluate": {"targets": targets, "episodes": 2, "reference": "seqwm/CartPole-v1"},
            }
        ),
        method,
    )
