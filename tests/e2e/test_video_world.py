"""A world of frames from random play to a dream, through recipe, run folder and command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from seqwm.cli import main
from seqwm.data.store import TrajectoryStore
from seqwm.hub.load import load_model
from seqwm.recipe import parse_recipe
from seqwm.run import train_recipe

RECIPE = """
method: video_diffusion
collect:
  environment: seqwm/Sprite-v0
  environment_options: {pixels: 16}
  lanes: 4
  prefill: 200
  updates_per_step: 1
model: {channels: [16], width: 32}
train: {steps: 6, batch_size: 4, track: []}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_recipe(parse_recipe(RECIPE, "recipe"), tmp_path_factory.mktemp("world") / "run")


def test_a_world_learns_from_random_play_and_is_loaded_as_it_was_trained(run):
    model = load_model(run)
    assert (model.config.environment, model.window_length) == ("seqwm/Sprite-v0", 2)
    assert not model.training
    store = TrajectoryStore.open(run / "replay")
    assert store.rows >= 200
    state = model.encode(store.windows(2, 4).batch(0))
    one, other = (model.step(state, torch.ones(4).long(), torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one.state["frames"], other.state["frames"])
    assert not (run / "evaluation.json").exists()
    assert "It has no policy" in (run / "README.md").read_text()


def test_the_run_goes_on_to_the_same_weights_after_a_stop(run, tmp_path):
    from safetensors.numpy import load_file

    recipe = parse_recipe(RECIPE.replace("track: []", "track: [], checkpoint_every: 3"), "recipe")
    out = train_recipe(recipe, tmp_path / "run")
    record = json.loads((out / "run.json").read_text())
    record.pop("finished")
    (out / "run.json").write_text(json.dumps(record))
    name = "diffusion_pytorch_model.safetensors"
    first = load_file(out / "model" / name)
    for checkpoint in sorted((out / "checkpoints").iterdir())[1:]:
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    again = load_file(train_recipe(recipe, out, resume=True) / "model" / name)
    whole = load_file(run / "model" / name)
    for key, tensor in first.items():
        np.testing.assert_array_equal(tensor, again[key])
        np.testing.assert_array_equal(tensor, whole[key])


def test_a_dream_of_it_is_measured_and_filmed(run, tmp_path, capsys):
    assert main(["dream", str(run), "--out", str(tmp_path / "dream"), "--horizon", "3"]) == 0
    told = json.loads((tmp_path / "dream" / "dream.json").read_text())["frames"]
    assert told["horizons"] == [1, 2, 3]
    assert told["copied"][0] > told["copied"][2] > 10
    assert "moving pixels" in capsys.readouterr().out
    assert {path.suffix for path in (tmp_path / "dream").iterdir()} >= {".png", ".mp4", ".json"}
    measured = json.loads((tmp_path / "dream" / "dream.json").read_text())
    assert measured["environment_options"] == {"pixels": 16}
    assert len(measured["gap"]["reality"]["returns"]) == 32
