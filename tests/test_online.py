"""Runs that act while they learn."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import seqwm.methods
from seqwm.core.errors import RecipeError, RolloutError
from seqwm.data.store import TrajectoryStore
from seqwm.recipe import parse_recipe
from seqwm.run import train
from seqwm.training.tracking import read_metrics
from tests.fakes import environments
from tests.fakes.acting import ActingLearner

FAKES = Path(__file__).parent / "fakes"
COUNTDOWN = "seqwm-tests/Countdown-v0"


@pytest.fixture(autouse=True)
def _a_method_named_acting_and_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(seqwm.methods, "__path__", [*seqwm.methods.__path__, str(FAKES)])
    monkeypatch.chdir(tmp_path)


def recipe(environment=COUNTDOWN, **collect):
    collect = {"environment": environment, "lanes": 3, "prefill": 20, "updates_per_step": 0.5, **collect}
    description = {
        "method": "acting",
        "collect": collect,
        "model": {},
        "train": {"steps": 40, "batch_size": 4, "track": [], "log_every": 1, "checkpoint_every": 7},
        "evaluate": {"environment": COUNTDOWN, "episodes": 2, "every": 10, "replay": False},
    }
    return parse_recipe(json.dumps(description), "r")


def lines(run, name="metrics.jsonl"):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in read_metrics(run / name)]


def assert_same_run(run, expected):
    assert lines(run) == lines(expected)
    assert lines(run, "learning.jsonl") == lines(expected, "learning.jsonl")
    found, wanted = (load_file(path / "model" / "model.safetensors") for path in (run, expected))
    assert all(found[name].equal(wanted[name]) for name in wanted)
    one, other = (TrajectoryStore.open(path / "replay") for path in (run, expected))
    assert (len(one), one.rows) == (len(other), other.rows)
    for left, right in zip(one.episodes(), other.episodes(), strict=True):
        np.testing.assert_array_equal(left.observations, right.observations)
        np.testing.assert_array_equal(left.actions, right.actions)
        assert (left.terminated, left.truncated, left.meta) == (right.terminated, right.truncated, right.meta)


def test_a_run_acts_as_often_as_its_recipe_says_and_leaves_a_dataset():
    run = train(recipe(), "run")
    metrics = lines(run)
    steps = [line["environment_steps"] for line in metrics]
    assert steps == [20 + 3 * -(-2 * (k + 1) // 3) for k in range(40)]  # two transitions an update, in rounds of three
    store = TrajectoryStore.open(run / "replay")
    assert metrics[-1]["rows"] == metrics[-1]["environment_steps"] - sum(open_steps(run))
    assert len(store) == metrics[-1]["episodes"]
    assert metrics[-1]["collected_return"] == pytest.approx(store.returns[-10:].mean())
    assert store.provenance == {"source": f"collect:{COUNTDOWN}", "environment": COUNTDOWN, "seed": 0}
    record = json.loads((run / "run.json").read_text())
    assert record["finished"]
    assert record["data"]["transitions"] == store.rows
    curve = lines(run, "learning.jsonl")
    assert [line["step"] for line in curve] == [9, 19, 29, 39]
    assert all(len(line["returns"]) == 2 for line in curve)
    assert curve[1]["environment_steps"] == steps[19]


def open_steps(run):
    """How long the episodes are that were under way at the last checkpoint."""
    folder = sorted((run / "checkpoints").glob("step-*"))[-1]
    state = load_file(folder / "state.safetensors")
    return [len(leaf) for name, leaf in state.items() if name.endswith("/rewards")]


def test_transitions_reach_the_learner_as_they_happen_and_episodes_as_they_end():
    run = train(recipe(), "run")
    store = TrajectoryStore.open(run / "replay")
    prefilled = np.searchsorted(store.ends, 20) + 1
    folder = sorted((run / "checkpoints").glob("step-*"))[-1]
    state = load_file(folder / "state.safetensors")
    under_way = sum(float(leaf.sum()) for name, leaf in state.items() if name.endswith("/rewards"))
    collected = store.returns[prefilled:].sum() + under_way
    assert float(state["learner/observed"]) == pytest.approx(collected, rel=1e-4)


@pytest.mark.parametrize("moment", [1, 6, 7, 23, 38])
def test_a_killed_run_ends_in_the_numbers_of_the_uninterrupted_one(monkeypatch, moment):
    whole = train(recipe(), "whole")
    update = ActingLearner.update

    class Killed(BaseException):
        pass

    def killed(self, step):
        if step == moment:
            raise Killed
        return update(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(seqwm.methods.method_module("acting").ActingLearner, "update", killed)
        with pytest.raises(Killed):
            train(recipe(), "killed")
    assert_same_run(train(recipe(), "killed", resume=True), whole)


def test_a_run_stopped_by_a_signal_ends_in_the_numbers_of_the_uninterrupted_one(monkeypatch):
    whole = train(recipe(), "whole")
    acting = seqwm.methods.method_module("acting").ActingLearner
    update = acting.update

    def stopping(self, step):
        if step == 17:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(acting, "update", stopping)
        with pytest.raises(SystemExit):
            train(recipe(), "stopped")
    assert_same_run(train(recipe(), "stopped", resume=True), whole)


def test_an_environment_that_raises_loses_no_episode_and_the_run_goes_on(monkeypatch):
    step = environments.Countdown.step
    calls = []

    def failing(self, action):
        calls.append(1)
        if len(calls) == 60:
            raise RuntimeError("the motor is stuck")
        return step(self, action)

    with monkeypatch.context() as patch:
        patch.setattr(environments.Countdown, "step", failing)
        with pytest.raises(RolloutError, match=r"^before update \d+: .*the motor is stuck.*--resume goes on") as caught:
            train(recipe(), "run")
    assert caught.value.lane is not None
    kept = TrajectoryStore.open("run/replay")
    before = [episode.meta["seed"] for episode in kept.episodes()]
    run = train(recipe(), "run", resume=True)
    after = TrajectoryStore.open(run / "replay")
    assert [episode.meta["seed"] for episode in after.episodes()][: len(before)] == before
    metrics = lines(run)
    assert [line["step"] for line in metrics] == list(range(40))
    assert metrics[-1]["environment_steps"] == 20 + 3 * 27


def test_an_environment_that_is_no_function_of_its_seed_is_named_and_the_run_goes_on(monkeypatch, capsys):
    acting = seqwm.methods.method_module("acting").ActingLearner
    update = acting.update

    def stopping(self, step):
        if step == 17:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, step)

    chance = np.random.default_rng(0)
    monkeypatch.setattr(environments.Countdown, "_observation", lambda self: np.array([self.done, 9, chance.random()]))
    with monkeypatch.context() as patch:
        patch.setattr(acting, "update", stopping)
        with pytest.raises(SystemExit):
            train(recipe(), "run")
    run = train(recipe(), "run", resume=True)
    assert "did not do again what they had done with the same seeds and actions" in capsys.readouterr().err
    assert [line["step"] for line in lines(run)] == list(range(40))


def test_a_run_may_begin_with_data_and_goes_on_acting():
    first = train(recipe(), "first")
    both = json.loads(json.dumps({"method": "acting", "data": {"source": str(first / "replay")}, "model": {}}))
    both |= {"collect": {"environment": COUNTDOWN, "prefill": 0}, "train": {"steps": 5, "track": [], "log_every": 1}}
    both["evaluate"] = {"episodes": 2, "replay": False}
    run = train(parse_recipe(json.dumps(both), "r"), "second")
    rows = TrajectoryStore.open(first / "replay").rows
    assert [line["environment_steps"] for line in lines(run)] == [rows + k for k in range(1, 6)]
    del both["collect"]
    offline = train(parse_recipe(json.dumps(both), "r"), "third")
    assert [line["rows"] for line in lines(offline)] == [rows] * 5
    assert not (offline / "replay").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"method": "behavior_cloning"}, "collect: found the method behavior_cloning, which learns from logs alone"),
        ({"collect": None}, "data: missing; expected a source to learn from, or `collect` to act and learn"),
        ({"collect": {"environment": COUNTDOWN, "prefill": 0}}, "collect.prefill: found 0 and no data"),
        ({"collect": {"environment": COUNTDOWN, "updates_per_step": 0}}, "updates_per_step: found 0.0, expected"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(change, complaint):
    base = {"method": "acting", "collect": {"environment": COUNTDOWN}, "model": {}, "train": {"steps": 1, "track": []}}
    with pytest.raises(RecipeError, match=complaint):
        train(parse_recipe(json.dumps(base | change), "r"), "run")
