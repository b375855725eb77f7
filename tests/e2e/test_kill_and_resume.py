"""A run that dies at any moment goes on as if nothing had happened, to the last bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces as gym_spaces
from safetensors.torch import load_file

from seqwm.core.types import Spaces
from seqwm.data.store import TrajectoryStore
from tests.strategies import random_episode

ROOT = Path(__file__).parents[2]
RECIPE = """\
method: decision_transformer
data: {source: SOURCE}
model: {layers: 1, width: 32, context_length: 6, dropout: 0.1}
train: {steps: 240, batch_size: 16, ema: 0.99, checkpoint_every: 20, log_every: 1}
seed: 5
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    spaces = Spaces(gym_spaces.Box(-np.inf, np.inf, (3,), np.float32), gym_spaces.Box(-1, 1, (2,), np.float32))
    store = TrajectoryStore.create(folder / "store", spaces)
    generator = np.random.default_rng(0)
    for _ in range(20):
        store.append(random_episode(spaces, int(generator.integers(5, 40)), generator))
    store.close()
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("SOURCE", str(folder / "store")))
    return path


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    finish(start(recipe, out))
    return out


def start(recipe, out, *more):
    command = [sys.executable, "-m", "seqwm", "train", str(recipe), "--out", str(out), *more]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "SEQWM_CACHE": str(recipe.parent / "cache"),
    }
    return subprocess.Popen(command, env=environment, cwd=recipe.parent, stderr=subprocess.PIPE, text=True)


def finish(process, status=0):
    errors = process.communicate(timeout=180)[1]
    assert process.returncode == status, errors
    return errors


def wait_for_checkpoint(process, out):
    for _ in range(6000):
        if list((out / "checkpoints").glob("step-*")):
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    raise TimeoutError(out)


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    return lines


def assert_same_run(run, expected):
    assert losses(run) == losses(expected)
    found, wanted = (load_file(path / "model" / "model.safetensors") for path in (run, expected))
    assert found.keys() == wanted.keys()
    for name in found:
        assert found[name].equal(wanted[name]), name


def test_a_run_killed_at_random_moments_ends_as_the_uninterrupted_one(recipe, uninterrupted, tmp_path):
    out = tmp_path / "killed"
    chance = random.Random(int(time.time()))  # another moment in every session: the claim is about all of them
    for attempt in range(2):
        process = start(recipe, out, *["--resume"] * (attempt > 0))
        wait_for_checkpoint(process, out)
        time.sleep(chance.uniform(0.0, 0.5))
        process.kill()
        process.communicate()
    finish(start(recipe, out, "--resume"))
    assert_same_run(out, uninterrupted)


def test_sigterm_ends_a_run_in_a_checkpoint_from_which_it_goes_on(recipe, uninterrupted, tmp_path):
    out = tmp_path / "stopped"
    process = start(recipe, out)
    wait_for_checkpoint(process, out)
    process.send_signal(signal.SIGTERM)
    errors = finish(process, 128 + signal.SIGTERM)
    update = int(errors.split(" after update ")[1].split(";")[0])
    assert (out / "checkpoints" / f"step-{update + 1:08d}").is_dir()
    errors = finish(start(recipe, out, "--resume"))
    assert f"going on from update {update + 1}" in errors
    assert_same_run(out, uninterrupted)
