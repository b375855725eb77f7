"""Every recipe that ships says what it is for, and runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seqwm.core.shipped import shipped_folder
from seqwm.evaluation.evaluate import Evaluation
from seqwm.hub.load import find_class
from seqwm.recipe import find_recipe, parse_recipe, read_recipe, resolved_yaml, shipped_recipes
from seqwm.run import evaluate_run, train
from seqwm.study import cells, read_study
from seqwm.training.tracking import read_metrics

SHARED = Path(__file__).parents[3] / "shared" / "data"
STUDIES = sorted((shipped_folder() / "recipes" / "studies").glob("*/*.yaml"))


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_says_its_expected_result_time_and_command_and_resolves_to_itself(name):
    text = find_recipe(name).read_text()
    header = text[: text.index("\nmethod:")]
    for part in ("Expected: ", "Time: ", f"Command: seqwm train recipes/{name}.yaml"):
        assert part in header
    recipe = read_recipe(name)
    assert parse_recipe(resolved_yaml(recipe), name) == recipe


@pytest.mark.shared
@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_shrunk_to_a_minute_trains_and_evaluates(name, tmp_path, monkeypatch):
    recipe = read_recipe(name)
    scheme, _, location = (recipe.data.source if recipe.data else "").rpartition(":")
    if scheme and not (scheme == "minari" and (SHARED / location).is_dir()):
        pytest.skip(f"{recipe.data.source} is not on this machine")
    extras = {"stable_baselines": "stable_baselines3", "world_models": "cma"}
    if recipe.method in extras:
        pytest.importorskip(extras[recipe.method], reason="an extra")
    if recipe.collect and "CarRacing" in recipe.collect.environment:
        pytest.importorskip("Box2D", reason="an extra")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(SHARED))
    monkeypatch.setenv("SEQWM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    if recipe.collect and "world" in recipe.collect.environment_options:  # dreams of a world that another recipe makes
        train(str(recipe.collect.environment_options["world"]).removeprefix("runs/"), small=True)
    out = train(name, small=True, changes=["train.track=[]", "evaluate.replay=false"])
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == list(range(min(recipe.train.steps, 20)))
    acts = hasattr(find_class(recipe.method), "policy")  # else it is a world that others act in
    assert (out / "evaluation.json").is_file() == acts
    if acts:
        assert json.loads((out / "evaluation.json").read_text())["episodes"]
    assert list((out / "model").glob("*.safetensors"))


def test_a_run_is_evaluated_again_to_the_same_returns_and_with_what_is_asked_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = ["train.track=[]", "train.steps=3", "evaluate.episodes=2", "evaluate.targets=[100, 500]"]
    out = train("quickstart", changes=changes)
    assert out == Path("runs/quickstart")
    written = {path.name for path in out.iterdir()}
    assert {"model", "evaluation.json", "curve.png", "replay.mp4", "recipe.yaml", "run.json"} <= written
    first = Evaluation.from_json(json.loads((out / "evaluation.json").read_text()))
    assert evaluate_run(out, out="again") == first
    assert (tmp_path / "again" / "evaluation.json").read_bytes() == (out / "evaluation.json").read_bytes()
    other = evaluate_run(out, targets=[250], episodes=1, seed=7)
    assert [(target, outcome.seed) for target, outcome in other.records] == [(250.0, 7)]


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.parent.name)
def test_every_cell_of_a_study_is_a_recipe(file):
    assert [cell.key for cell in cells(read_study(file))]
