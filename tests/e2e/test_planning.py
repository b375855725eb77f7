"""A trained planner is searched in every way from outside: by its recipe, by `evaluate`, by the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from seqwm.cli import main
from seqwm.core.errors import RecipeError, UnfitEnvironmentError
from seqwm.methods.trajectory_transformer import TrajectoryTransformer
from seqwm.run import evaluate_run, train

QUIET = ["train.track=[]", "evaluate.replay=false", "evaluate.episodes=2"]
TO_THE_GOAL = ["model.objective=goal", 'model.goal={"observation[0]": 0.8, "observation[1]": -0.3}']


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("planning") / "run"
    return train("trajectory_transformer/two-rooms", out, small=True, changes=QUIET)


@pytest.fixture
def searches(monkeypatch):
    """What every policy was asked to search for, and how."""
    asked = []
    original = TrajectoryTransformer.policy

    def policy(self, *arguments, **keywords):
        planner = original(self, *arguments, **keywords)
        asked.append((planner._objective, planner._goal, planner._options))
        return planner

    monkeypatch.setattr(TrajectoryTransformer, "policy", policy)
    return asked


def test_a_recipe_says_what_plans_maximise(tmp_path, searches):
    train("trajectory_transformer/two-rooms", tmp_path / "goal", small=True, changes=[*QUIET, *TO_THE_GOAL])
    objective, goal, _ = searches[-1]
    assert objective == "goal"
    assert goal.tolist() == pytest.approx([0.8, -0.3])


def test_an_evaluation_searches_otherwise_where_asked_and_as_trained_where_not(run, searches):
    as_trained = evaluate_run(run)
    evaluate_run(run, changes=TO_THE_GOAL)
    evaluate_run(run, changes=["model.objective=likelihood", "model.planner.beams=3", "evaluate.seed=7"])
    assert [objective for objective, _, _ in searches] == ["return", "goal", "likelihood"]
    assert [options.beams for _, _, options in searches] == [4, 4, 3]
    assert evaluate_run(run) == as_trained


def test_the_command_line_passes_changes_on(run, searches, capsys):
    assert main(["evaluate", str(run), "--episodes", "1", "--set", "model.objective=likelihood"]) == 0
    assert searches[-1][0] == "likelihood"
    assert "seqwm/TwoRooms-v0, 1 episodes" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--set", "train.steps=7"]) == 1
    assert "--set train.steps: 7, was 20: belongs to training; can be changed now" in capsys.readouterr().err


def test_it_is_dreamt_in_beside_reality_from_the_command_line(run, tmp_path):
    asked = ["--horizon", "12", "--contexts", "6", "--episodes", "2", "--out", str(tmp_path / "dream")]
    assert main(["dream", str(run), *asked]) == 0
    assert {path.name for path in (tmp_path / "dream").iterdir()} == {"dream.json", "dream.png", "rollout.png"}
    measured = json.loads((tmp_path / "dream" / "dream.json").read_text())
    (curve,) = measured["prediction"]["observations"].values()
    assert len(curve["error"]) == 12
    assert np.isfinite(curve["error"]).all()
    assert measured["gap"]["reality"]["returns"] == [0, 0]


def test_another_world_is_drawn_beside_it_and_one_of_other_spaces_refused(run, tmp_path, capsys):
    asked = [
        "dream",
        str(run),
        "--horizon",
        "3",
        "--contexts",
        "4",
        "--episodes",
        "1",
        "--out",
        str(tmp_path / "dream"),
    ]
    assert main([*asked, "--beside", str(run)]) == 0
    measured = json.loads((tmp_path / "dream" / "dream.json").read_text())
    assert measured["beside"] == {"model": str(run), "prediction": measured["prediction"]}
    elsewhere = train("trajectory_transformer/cartpole", tmp_path / "cartpole", small=True, changes=QUIET)
    assert main([*asked, "--beside", str(elsewhere)]) == 1
    assert "those of the logs: name a world of the same" in capsys.readouterr().err


def test_changes_that_belong_to_training_or_cannot_be_are_refused_by_name(run, tmp_path):
    with pytest.raises(RecipeError, match=r"--set model\.layers: 2, was 1: belongs to training; .* model\.planner"):
        evaluate_run(run, changes=["model.layers=2"])
    with pytest.raises(RecipeError, match="objective: found 'retrun', expected 'return' or 'goal' or 'likelihood'"):
        evaluate_run(run, changes=["model.objective=retrun"])
    with pytest.raises(RecipeError, match=r"goal: observation\[2\]: unknown column; did you mean 'observation\[\d\]'"):
        evaluate_run(run, changes=["model.objective=goal", 'model.goal={"observation[2]": 1}'])


def test_an_environment_whose_spaces_differ_from_the_models_is_refused_with_both(run):
    with pytest.raises(UnfitEnvironmentError, match=r"CartPole-v1: found observations .*expected observations .*-1\. "):
        evaluate_run(run, environment="CartPole-v1", changes=["evaluate.environment_options={}"])
