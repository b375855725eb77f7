"""Latent actions through the command line: learned from video, reported on, driven, and written as a data set."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest

from seqwm.cli import main
from seqwm.control.collect import collect
from seqwm.data.load import load
from seqwm.hub.load import load_model
from seqwm.recipe import parse_recipe
from seqwm.run import train_recipe

RECIPE = """
method: latent_actions
data: {source: SOURCE}
model: {channels: [16], width: 16}
train: {steps: 6, batch_size: 16, track: []}
"""


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs") / "sprites"
    collect("seqwm/Sprite-v0", None, 600, folder, seed=0, options={"pixels": 16}, progress=False)
    return folder


@pytest.fixture(scope="module")
def run(logs, tmp_path_factory):
    recipe = parse_recipe(RECIPE.replace("SOURCE", str(logs)), "recipe")
    return train_recipe(recipe, tmp_path_factory.mktemp("latent") / "run")


def test_a_dream_reports_on_the_codes_saves_their_map_and_films_codes_and_true_actions(run, capsys):
    assert main(["dream", str(run), "--horizon", "2", "--contexts", "4", "--actions", "0,3,7"]) == 0
    assert "codes in use" in capsys.readouterr().out
    report = json.loads((run / "dream" / "actions.json").read_text())
    assert np.array(report["table"]).shape == (8, 5)
    assert load_model(run).latent.mapped_action.tolist() == report["action_of"]
    for picture in ("actions.png", "driven.png", "driven.mp4"):
        assert (run / "dream" / picture).stat().st_size > 500
    known = next(action for action in report["action_of"] if action >= 0)
    driven = ["--actions", f"{known},{known}", "--real-actions"]
    assert main(["dream", str(run), "--horizon", "2", "--contexts", "4", *driven]) == 0
    assert main(["dream", str(run), "--horizon", "2", "--contexts", "4", "--actions", "8"]) == 1
    assert "actions: found [8], expected numbers from 0 to 7" in capsys.readouterr().err


def test_a_labelled_data_set_trains_any_method_in_codes(run, logs, tmp_path, capsys):
    assert main(["data", "label", str(run), str(logs), "--out", str(tmp_path / "labelled")]) == 0
    assert "actions 0 to 7" in capsys.readouterr().out
    store = load(str(tmp_path / "labelled"))
    assert (store.spaces.action.n, store.rows) == (8, load(str(logs)).rows)
    recipe = f"""
method: behavior_cloning
data: {{source: {tmp_path / "labelled"}}}
model: {{layers: 1, width: 16}}
train: {{steps: 3, batch_size: 8, track: []}}
"""
    out = train_recipe(parse_recipe(recipe, "recipe"), tmp_path / "run")
    assert load_model(out).config.action_space["n"] == 8


def test_a_model_that_infers_nothing_cannot_label(logs, tmp_path, capsys):
    recipe = parse_recipe(
        RECIPE.replace("latent_actions", "video_diffusion")
        .replace("SOURCE", str(logs))
        .replace("steps: 6", "steps: 1"),
        "recipe",
    )
    out = train_recipe(recipe, tmp_path / "run")
    assert main(["data", "label", str(out), str(logs), "--out", str(tmp_path / "labelled")]) == 1
    assert "infers no latent actions" in capsys.readouterr().err
    assert not (tmp_path / "labelled").exists()


def test_a_folder_of_clips_is_enough_to_begin(logs, tmp_path, capsys):
    store, clips = load(str(logs)), tmp_path / "clips"
    clips.mkdir()
    for number in range(5):
        with av.open(str(clips / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
            stream.height = stream.width = 16
            for frame in store.episode(number).observations:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.array(frame), format="rgb24")))
            container.mux(stream.encode())
    recipe = parse_recipe(RECIPE.replace("SOURCE", f"video:{clips}"), "recipe")
    out = train_recipe(recipe, tmp_path / "run")
    assert main(["dream", str(out), "--horizon", "2", "--contexts", "4", "--actions", "1,1"]) == 0
    assert (out / "dream" / "driven.mp4").is_file()
    assert not (out / "dream" / "actions.json").exists()  # nothing tells what was really done
    assert main(["data", "label", str(out), f"video:{clips}", "--out", str(tmp_path / "labelled")]) == 0
    assert load(str(tmp_path / "labelled")).spaces.action.n == 8


def test_what_cannot_be_learned_from_is_refused_in_a_line_that_names_it_and_the_mend(logs, run, tmp_path, capsys):
    recipe = tmp_path / "long.yaml"
    recipe.write_text(RECIPE.replace("SOURCE", str(logs)).replace("width: 16", "width: 16, context: 80"))
    assert main(["train", str(recipe), "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert f"{logs}: [short-episodes] found " in said
    assert "expected 81 for model.context 80; give longer clips, or lower model.context" in said
    other = tmp_path / "large"
    collect("seqwm/Sprite-v0", None, 60, other, seed=0, options={"pixels": 32}, progress=False)
    assert main(["data", "label", str(run), str(other), "--out", str(tmp_path / "labelled")]) == 1
    assert "found frames [(32, 32, 3)], expected one of (16, 16, 3)" in capsys.readouterr().err
