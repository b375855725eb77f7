from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from seqwm.control.collect import collect
from seqwm.hub.publish import publish
from seqwm.recipe import parse_recipe
from seqwm.run import train, train_recipe
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
BRANCHED = {
    "fit": {"most_steps": 20}, "branches": {"every": 20, "starts": 50, "horizon": 2, "growing": [0, 0]},
}  # fmt: skip
ROUNDS = {"fit": {"most_steps": 20}, "rounds": {"paths": 4, "horizon": 5, "clone_updates": 20}}
PENDULUM = {"mbpo": BRANCHED, "mopo": ROUNDS, "morel": ROUNDS}
"""Of methods that learn from logs of continuous actions: the least of a model."""
PLAYED = {
    "dyna_q": ("dyna_q/maze", ["train.steps=2000"]),
    "stable_baselines": ("stable_baselines/cartpole-dqn", ["collect.prefill=100", "train.steps=100"]),
    "world_models": (
        "world_models/catch",
        ["collect.prefill=400", "train.steps=200", "model.vision_share=0.5", "model.memory_share=0.2",
         "model.population=8", "model.dreams=4"],
    ),
    "lapo": (
        "lapo/catch",
        ["train.steps=10", "model.video_share=0.2", "model.imitate_share=0.2", "model.practice_rate=0.03",
         "model.practice_steps=64", "model.practice_lanes=4", "evaluate.episodes=4"],
    ),
}  # fmt: skip
"""Of methods that learn while they act: a recipe, and what makes it short."""
METHODS = [*SMALL, *PENDULUM, *PLAYED]
WORLDS: dict[str, dict[str, object]] = {
    "video_diffusion": {"channels": [16], "width": 32, "context_noise": 0.3},
    "diffusion_forcing": {"context": 4, "layers": 1, "width": 16, "patch": 4},
    "latent_actions": {"channels": [16], "width": 16, "unshuffle": 2},
    "genie": {
        "tokens": {"codes": 16, "width": 16},
        "actions": {"channels": [16], "width": 16, "unshuffle": 2},
        "context": 2,
        "layers": 1,
        "width": 16,
        "heads": 1,
        "steps": 2,
    },
}
"""Of worlds of diffusers, in which others act: the least of a model."""


WITHOUT_SEQWM = """
import importlib.abc, json, sys

import torch

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "seqwm":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
try:
    import seqwm
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("seqwm can be imported")
"""


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
    collect("Pendulum-v1", None, 600, folder / "pendulum", lanes=2, seed=0, progress=False)
    logged = {method: train(small_recipe(method), folder / method) for method in SMALL}
    for method, model in PENDULUM.items():
        recipe = {
            "method": method, "data": {"source": str(folder / "pendulum")}, "model": model,
            "train": {"steps": 40, "batch_size": 16, "track": []}, "evaluate": {"episodes": 2, "replay": False},
        }  # fmt: skip
        logged[method] = train(parse_recipe(json.dumps(recipe), method), folder / method)
    always = ["train.track=[]", "evaluate.every=null", "evaluate.episodes=2", "evaluate.replay=false"]
    return logged | {
        method: train(recipe, folder / method, changes=[*always, *changes])
        for method, (recipe, changes) in PLAYED.items()
    }


@pytest.fixture(scope="session")
def worlds(tmp_path_factory):
    """A finished run of every world of diffusers, by its method; not to be changed."""
    folder = tmp_path_factory.mktemp("worlds")
    collect = {"environment": "seqwm/Sprite-v0", "lanes": 4, "prefill": 100, "updates_per_step": 1}
    train = {"steps": 3, "batch_size": 4, "track": []}
    return {
        method: train_recipe(
            parse_recipe(json.dumps({"method": method, "collect": collect, "model": model, "train": train}), method),
            folder / method,
        )
        for method, model in WORLDS.items()
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


def in_a_process_without_seqwm(script, runs, folder):
    """The tensors that a script writes to its first argument, of runs published as the repositories in its second."""
    source, found = folder / "script.py", folder / "found.safetensors"
    source.write_text(WITHOUT_SEQWM + script)
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    with Hub() as hub, pytest.MonkeyPatch.context() as patch:
        hub.connect(patch, folder / "here")
        for method, run in runs.items():
            publish(run, f"user/{method}")
        repositories = json.dumps([f"user/{method}" for method in runs])
        done = subprocess.run(
            [sys.executable, str(source), str(found), repositories],
            env=inherited | hub.environment(folder / "there"), cwd=folder, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(found)
