from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces
from safetensors.torch import load_file

import seqwm.methods
from seqwm.core.errors import CheckpointError, TrainingError
from seqwm.core.types import Episode, Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.data.windows import Windows
from seqwm.recipe import method_module, parse_recipe, resolved_yaml
from seqwm.run import evaluate_run, train
from seqwm.training.tracking import read_metrics
from tests.strategies import random_episode

FAKES = Path(__file__).parent / "fakes"
SPACES = Spaces(gym_spaces.Box(-np.inf, np.inf, (3,), np.float32), gym_spaces.Box(-np.inf, np.inf, (2,), np.float32))


@pytest.fixture(autouse=True)
def _a_method_named_linear_and_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(seqwm.methods, "__path__", [*seqwm.methods.__path__, str(FAKES)])
    monkeypatch.chdir(tmp_path)


def logs(path, seed=0, spoil=False):
    generator = np.random.default_rng(seed)
    store = TrajectoryStore.create(path, SPACES)
    for _ in range(6):
        store.append(random_episode(SPACES, 12, generator))
    if spoil:
        observations = np.full((13, 3), 3e38, np.float32)  # finite in the log, infinite in the loss
        store.append(Episode(observations, np.zeros((12, 2), np.float32), np.zeros(12, np.float32), True, False))
    store.close()


def recipe(**train_options):
    options = {"steps": 12, "batch_size": 4, "track": [], "log_every": 1, **train_options}
    return parse_recipe(
        json.dumps({"method": "linear", "data": {"source": "logs"}, "model": {"dropout": 0.5}, "train": options}), "r"
    )


def test_a_run_leaves_weights_metrics_recipe_and_record():
    logs("logs")
    out = train(recipe(), "run")
    assert out == Path("run")
    assert (
        load_file(out / "model" / "model.safetensors").keys()
        == method_module("linear").Linear(3, 2).state_dict().keys()
    )
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == list(range(12))
    assert parse_recipe((out / "recipe.yaml").read_text(), "r") == recipe()
    record = json.loads((out / "run.json").read_text())
    assert record["updates"] == 12
    assert record["seconds"] > 0
    assert record["finished"]
    assert record["data"] == {
        "source": "logs",
        "fingerprint": TrajectoryStore.open("logs").fingerprint,
        "episodes": 6,
        "transitions": 72,
        "provenance": {},
        "returns": [float(pick(TrajectoryStore.open("logs").returns)) for pick in (np.min, np.median, np.max)],
    }
    assert record["versions"]["torch"] == torch.__version__
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_a_recipe_file_gives_the_run_its_folder(tmp_path):
    logs("logs")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(resolved_yaml(recipe()))
    assert train("mine", changes=["train.steps=2"]) == Path("runs/mine")
    assert train("recipes/mine.yaml", out="small", small=True) == Path("small")
    assert json.loads(Path("small/run.json").read_text())["updates"] == 12


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(monkeypatch):
    logs("logs")
    whole = train(recipe(ema=0.9), "whole")
    batch = Windows.batch

    def stopping(self, step):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Windows, "batch", stopping)
        with pytest.raises(SystemExit):
            train(recipe(ema=0.9), "stopped")
    stopped = train(recipe(ema=0.9), "stopped", resume=True)
    assert losses(stopped) == losses(whole)
    for name, weight in load_file(whole / "model" / "model.safetensors").items():
        assert torch.equal(weight, load_file(stopped / "model" / "model.safetensors")[name])


def losses(run):
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in read_metrics(run / "metrics.jsonl")]


def test_a_finished_run_is_not_run_again(capsys):
    logs("logs")
    train(recipe(), "run")
    before = Path("run/model/model.safetensors").stat()
    train(recipe(), "run", resume=True)
    assert "run is finished; nothing to do" in capsys.readouterr().err
    assert Path("run/model/model.safetensors").stat() == before


def test_a_run_is_never_written_over():
    logs("logs")
    train(recipe(), "run")
    with pytest.raises(CheckpointError, match=r"^run: holds a run already; go on with it by --resume, or give another"):
        train(recipe(), "run")
    Path("mine").mkdir()
    Path("mine/thesis.tex").touch()
    for resume in (False, True):
        with pytest.raises(CheckpointError, match=r"^mine: found files that are no run"):
            train(recipe(), "mine", resume=resume)
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.tex"]


def test_a_run_is_not_resumed_with_another_recipe_and_the_keys_are_named():
    logs("logs")
    train(recipe(), "run")
    with pytest.raises(CheckpointError, match=r"train.steps: 20, was 12; train.learning_rate: 0.01, was 0.0001"):
        train(recipe(steps=20, learning_rate=0.01), "run", resume=True)
    train(recipe(checkpoint_every=5), "run", resume=True)  # what cannot change a result may differ


def test_a_run_is_not_resumed_on_other_data():
    logs("logs")
    train(recipe(), "run")
    Path("logs").rename("old")
    logs("logs", seed=1)
    with pytest.raises(CheckpointError, match=r"^run: cannot resume, the data changed"):
        train(recipe(), "run", resume=True)


def test_a_run_that_died_before_its_first_checkpoint_begins_again():
    logs("logs")
    whole = train(recipe(), "whole")
    Path("died").mkdir()
    Path("died/recipe.yaml").write_text(resolved_yaml(recipe()))
    Path("died/run.json").write_text((whole / "run.json").read_text().replace('"finished": true', '"finished": false'))
    assert losses(train(recipe(), "died", resume=True)) == losses(whole)


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint_and_the_batch():
    logs("logs", spoil=True)
    with pytest.raises(TrainingError, match=r"^update [0-9]+: loss is inf") as caught:
        train(recipe(steps=200, checkpoint_every=1), "run")
    step = caught.value.step
    assert "run/not-finite-" in str(caught.value)
    batch = load_file(f"run/not-finite-{step:08d}.safetensors")
    assert set(batch) == {
        "observations", "actions", "rewards", "terminated", "truncated", "valid", "timesteps", "returns_to_go",
    }  # fmt: skip
    assert batch["observations"].max() > 1e38
    if step:
        assert sorted(Path("run/checkpoints").iterdir())[-1].name == f"step-{step:08d}"


def test_what_was_learned_in_an_environment_is_measured_in_the_same(tmp_path) -> None:
    lake = {
        "method": "dyna_q",
        "collect": {"environment": "FrozenLake-v1", "environment_options": {"is_slippery": False}, "prefill": 2000},
        "model": {"planning": 5},
        "train": {"steps": 200, "track": []},
        "evaluate": {"episodes": 5, "replay": False},
    }
    run = train(parse_recipe(json.dumps(lake), "r"), tmp_path / "run")
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["options"] == {"is_slippery": False}
    assert evaluate_run(run, episodes=5).options == {"is_slippery": False}
    wetter = evaluate_run(run, episodes=5, changes=["evaluate.environment_options={is_slippery: true}"])
    assert wetter.options == {"is_slippery": True}
