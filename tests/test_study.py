from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import seqwm.methods
import seqwm.study
from seqwm.core.errors import RecipeError
from seqwm.evaluation.statistics import iqm
from seqwm.study import cells, read_study, run_study
from seqwm.study_report import interval_over_seeds, rows, table

FAKES = Path(__file__).parent / "fakes"
RECIPE = """\
method: linear
data: {source: logs}
train: {steps: 12, track: []}
"""
STUDY = """\
title: Wide against narrow
methods:
  wide: {recipe: base, set: [model.width=64]}
  narrow: {recipe: base, set: [model.width=8]}
datasets:
  mixed: [data.source=a]
  expert: [data.source=b, "evaluate.targets=[7]"]
seeds: [0, 1]
set: [train.steps=6]
columns: [return, iqm, score, updates/s, seconds]
"""


@pytest.fixture(autouse=True)
def _a_folder_with_a_study(monkeypatch, tmp_path):
    monkeypatch.setattr(seqwm.methods, "__path__", [*seqwm.methods.__path__, str(FAKES)])
    monkeypatch.chdir(tmp_path)
    for path, text in (("recipes/base.yaml", RECIPE), ("width/study.yaml", STUDY)):
        Path(path).parent.mkdir()
        Path(path).write_text(text)


@pytest.fixture
def trained(monkeypatch):
    """Recipes that were trained, by a stand-in that writes what a run leaves: returns are the width plus the seed."""
    calls = []

    def train_recipe(recipe, out, *, resume):
        assert resume
        calls.append(recipe)
        out.mkdir(parents=True)
        record = {"updates": recipe.train.steps, "seconds": 2.0, "data": {"fingerprint": "f"}, "command": "seqwm study"}
        record |= {"commit": "c", "versions": {}, "machine": {}}
        (out / "run.json").write_text(json.dumps(record))
        target = recipe.evaluate.targets[0] if recipe.evaluate.targets else None
        episodes = [
            {
                "target": target,
                "seed": number,
                "return": recipe.model.width + recipe.seed + 10.0 * number,
                "length": 1,
                "terminated": True,
                "truncated": False,
            }
            for number in range(3)
        ]
        evaluation = {"environment": "CartPole-v1", "options": {}, "reference": None, "episodes": episodes}
        (out / "evaluation.json").write_text(json.dumps(evaluation))
        return out

    monkeypatch.setattr(seqwm.study, "train_recipe", train_recipe)
    return calls


def test_a_study_is_every_method_on_every_dataset_with_every_seed():
    planned = list(cells(read_study(Path("width/study.yaml"))))
    assert [(cell.dataset, cell.method, cell.seed) for cell in planned] == [
        (dataset, method, seed) for dataset in ("mixed", "expert") for method in ("wide", "narrow") for seed in (0, 1)
    ]
    last = planned[-1].recipe
    assert (last.data.source, last.model.width, last.seed, last.train.steps) == ("b", 8, 1, 6)
    assert last.evaluate.targets == (7.0,)
    assert len({cell.folder for cell in planned}) == 8
    assert planned[0].folder.startswith("wide-mixed-seed0-")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds:", "seed:", "width/study.yaml:8: seed: unknown key; did you mean 'seeds'?"),
        ("seeds: [0, 1]", "seeds: []", "width/study.yaml: seeds: found none, expected at least one"),
        ("recipe: base,", "recipe: bass,", "bass: no such recipe; "),
        ("model.width=8", "model.widht=8", "--set model.widht=8: model.widht: unknown key; did you mean 'width'?"),
        ("[return,", "[returns,", "width/study.yaml:10: columns[0]: found 'returns', expected 'return' or"),
        ("title: ", "include: [none.json]\ntitle: ", "width/none.json: cannot be read"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_is_trained(trained, old, new, message):
    Path("width/study.yaml").write_text(STUDY.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        run_study("width/study.yaml")
    assert str(caught.value).startswith(message)
    assert trained == []


def test_results_table_and_figure_stand_beside_the_file(trained):
    assert run_study("width/study.yaml") == Path("width/results.md")
    assert len(trained) == 8
    results = json.loads(Path("width/results.json").read_text())
    assert results["study"] == "study.yaml"
    assert len(results["records"]) == 8
    first = results["records"][0]
    assert first["returns"] == [64.0, 74.0, 84.0]
    assert (first["method"], first["dataset"], first["seed"], first["target"]) == ("wide", "mixed", 0, None)
    assert Path("width/results.png").read_bytes().startswith(b"\x89PNG")
    lines = Path("width/results.md").read_text().splitlines()
    assert lines[2] == "| dataset | method | target | return | iqm | score | updates/s | seconds | seeds x episodes |"
    assert [line.split(" | ")[:3] for line in lines[4:8]] == [
        ["| mixed", "wide", "-"],
        ["| mixed", "narrow", "-"],
        ["| expert", "wide", "7"],
        ["| expert", "narrow", "7"],
    ]
    assert lines[4].startswith("| mixed | wide | - | 74.5 [")
    score = 100 * (74.5 - 22.38) / (500 - 22.38)
    assert lines[4].endswith(f"| {iqm([64, 74, 84, 65, 75, 85]):.1f} | {score:.1f} | 3.0 | 2 | 2 x 3 |")


def test_finished_cells_are_kept_and_only_changed_ones_are_run_again(trained):
    run_study("width/study.yaml")
    before = Path("width/results.json").read_bytes()
    run_study("width/study.yaml")
    assert len(trained) == 8
    assert Path("width/results.json").read_bytes() == before
    Path("width/study.yaml").write_text(STUDY.replace("model.width=8", "model.width=9"))
    run_study("width/study.yaml")
    assert [recipe.model.width for recipe in trained[8:]] == [9, 9, 9, 9]
    records = json.loads(Path("width/results.json").read_text())["records"]
    assert [record["returns"][0] for record in records] == [64, 65, 9, 10] * 2


def test_a_study_that_was_stopped_keeps_what_it_had(trained, monkeypatch):
    train = seqwm.study.train_recipe

    def stopped(recipe, out, *, resume):
        if len(trained) == 3:
            raise SystemExit(143)
        return train(recipe, out, resume=resume)

    with monkeypatch.context() as patch:
        patch.setattr(seqwm.study, "train_recipe", stopped)
        with pytest.raises(SystemExit):
            run_study("width/study.yaml")
    assert len(json.loads(Path("width/results.json").read_text())["records"]) == 3
    run_study("width/study.yaml")
    assert len(trained) == 8


def test_two_studies_in_one_folder_are_refused_before_one_overwrites_the_other(trained):
    run_study("width/study.yaml")
    Path("width/other.yaml").write_text(STUDY)
    with pytest.raises(RecipeError, match=r"found results of study.yaml, expected those of other.yaml; give each"):
        run_study("width/other.yaml")


def record(method="peer", seed=0, returns=(1.0, 2.0), **more):
    base = {"method": method, "dataset": "mixed", "seed": seed, "target": None, "environment": "Nowhere-v0"}
    return base | {"returns": list(returns), "updates": 10, "seconds": 4.0} | more


def test_records_of_other_programs_stand_in_the_same_table(trained):
    Path("width/peer.json").write_text(json.dumps({"records": [record(), record(dataset="not of this study")]}))
    Path("width/study.yaml").write_text(STUDY + "include: [peer.json]\n")
    run_study("width/study.yaml")
    lines = Path("width/results.md").read_text().splitlines()
    assert "not of this study" not in str(lines)
    assert lines[6].startswith("| mixed | peer | - | 1.5 [")
    assert lines[6].endswith(" | - | 2.5 | 4 | 1 x 2 |")
    assert len(json.loads(Path("width/results.json").read_text())["records"]) == 8
    Path("width/peer.json").write_text(json.dumps({"records": [record(), {"method": "peer"}]}))
    with pytest.raises(RecipeError, match=r"width/peer.json: record 1: dataset, seed, .*: missing"):
        run_study("width/study.yaml")


def test_a_table_shows_only_the_columns_that_say_something():
    lines = table("T", rows([record(dataset="")]), ["return"], "seqwm study s").splitlines()
    assert lines[:4] == ["# T", "", "| method | return | seeds x episodes |", "| --- | --- | --- |"]


def test_returns_that_are_shares_are_shown_to_two_decimals():
    shares = table("T", rows([record(dataset="", returns=[0.25, 0.25])]), ["return", "iqm"], "seqwm study s")
    assert "| peer | 0.25 [0.25, 0.25] | 0.25 | 1 x 2 |" in shares
    larger = table("T", rows([record(dataset="", returns=[-250.0, -250.0])]), ["return", "iqm"], "seqwm study s")
    assert "| peer | -250.0 [-250.0, -250.0] | -250.0 | 1 x 2 |" in larger


def test_the_interval_of_one_seed_is_the_bootstrap_of_its_mean():
    generator = np.random.default_rng(0)
    returns = generator.normal(10, 4, 400)
    low, high = interval_over_seeds([returns])
    error = returns.std() / 20  # of the mean, by the central limit theorem
    assert (low, high) == pytest.approx((returns.mean() - 1.96 * error, returns.mean() + 1.96 * error), abs=0.06)


def test_the_interval_covers_the_spread_between_seeds_and_not_only_between_episodes():
    low, high = interval_over_seeds([np.full(100, 0.0), np.full(100, 10.0)])
    assert (low, high) == (0.0, 10.0)
    assert interval_over_seeds([np.full(5, 3.0), np.full(2, 3.0)]) == (3.0, 3.0)


def test_the_interval_has_the_coverage_it_claims_where_seeds_differ():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        runs = [generator.normal(generator.normal(0, 1), 1, 20) for _ in range(12)]
        low, high = interval_over_seeds(runs, resamples=500)
        hits += low <= 0 <= high
    assert hits >= 85  # 12 seeds make a percentile bootstrap a little narrow


def test_what_dreams_promise_stands_beside_what_reality_gave(tmp_path):
    changes = ["train.steps=1", "train.track=[]", "collect.prefill=60", "evaluate.episodes=2", "evaluate.seed=0"]
    changes += ["model.most_steps=5", "model.planner.horizon=2", "model.planner.candidates=4"]
    changes += ["model.planner.elites=2", "model.planner.iterations=1"]
    Path("dreamt.yaml").write_text(
        "title: PETS, awake and asleep\n"
        "methods: {PETS: {recipe: pets/pendulum}}\n"
        f"set: {json.dumps(changes)}\n"
        "columns: [return, dream]\n"
        "dream_steps: 3\n"
    )
    told = run_study("dreamt.yaml", out=tmp_path / "out").read_text().splitlines()
    record = json.loads((tmp_path / "out" / "results.json").read_text())["records"][0]
    dreamt = record["dream_returns"]
    assert len(dreamt) == 2
    assert all(-3 * 17 < promised < 10 for promised in dreamt)  # three steps cost at most 16.3 each
    assert told[2] == "| method | return | dream | seeds x episodes |"
    assert f"| {np.mean(dreamt):.1f} [{min(dreamt):.1f}, {max(dreamt):.1f}] |" in told[4]
