from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seqwm.control.policies import RandomPolicy
from seqwm.control.rollout import Outcome
from seqwm.core.errors import UnfitEnvironmentError
from seqwm.core.spaces import space_to_json
from seqwm.evaluation.evaluate import Evaluation, evaluate, spread_targets
from seqwm.evaluation.references import Reference, reference
from tests.fakes import environments

COUNTDOWN = "seqwm-tests/Countdown-v0"


class Asking:
    """Acts by the return still to come: a model as small as can be, exact in whatever batch."""

    def __init__(self, return_conditioned: bool = True, space=environments.Countdown.observation_space) -> None:
        self.return_conditioned = return_conditioned
        self.config = SimpleNamespace(
            observation_space=space_to_json(space), action_space=space_to_json(environments.Countdown.action_space)
        )
        self.batches: list[int] = []

    def policy(self, target_returns=None):
        assert (target_returns is not None) == self.return_conditioned
        return AskingPolicy(self, target_returns)


class AskingPolicy:
    def __init__(self, model: Asking, targets) -> None:
        self.model, self.targets = model, targets

    def initial(self, lanes):
        self.model.batches.append(lanes)
        targets = torch.zeros(lanes) if self.targets is None else torch.tensor(self.targets)
        return {"target": targets, "to_go": torch.zeros(lanes)}

    def act(self, state, observation, reward, first):
        to_go = torch.where(first, state["target"], state["to_go"] - reward)
        return torch.tanh(0.1 * to_go + observation[:, 2]).unsqueeze(1), {**state, "to_go": to_go}


@pytest.mark.parametrize("lanes", [2, 5, 8, 256])
def test_an_evaluation_is_the_same_in_however_many_lanes(lanes: int) -> None:
    settings = {"targets": [1.0, 20.0, 5.0], "episodes": 8, "seed": 11, "progress": False}
    alone = evaluate(Asking(), COUNTDOWN, lanes=1, **settings)
    model = Asking()
    assert evaluate(model, COUNTDOWN, lanes=lanes, **settings) == alone
    assert max(model.batches) == min(lanes, 24)
    assert alone.targets == [1.0, 20.0, 5.0]
    for target in alone.targets:
        assert [outcome.seed for own, outcome in alone.records if own == target] == list(range(11, 19))


def test_a_higher_target_is_passed_to_its_own_lanes() -> None:
    found = evaluate(Asking(), COUNTDOWN, targets=[-50.0, 50.0], episodes=10, progress=False)
    assert (found.returns(50.0) > found.returns(-50.0)).all()
    np.testing.assert_array_equal([o.length for t, o in found.records[:10]], [o.length for t, o in found.records[10:]])


def test_a_model_that_takes_no_target_is_measured_once() -> None:
    found = evaluate(Asking(return_conditioned=False), COUNTDOWN, targets=[1.0, 2.0], episodes=3, progress=False)
    assert found.targets == [None]
    assert len(found.records) == 3
    assert found.calibration_error is None


def test_any_policy_can_be_evaluated() -> None:
    policy = RandomPolicy(environments.Countdown.action_space, seed=0)
    found = evaluate(policy, COUNTDOWN, episodes=5, progress=False)
    assert len(found.returns(None)) == 5


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="targets: found none"):
        evaluate(Asking(), COUNTDOWN, progress=False)
    with pytest.raises(ValueError, match="episodes: found 0"):
        evaluate(Asking(), COUNTDOWN, targets=[1.0], episodes=0, progress=False)
    with pytest.raises(UnfitEnvironmentError, match="those of the model"):
        evaluate(Asking(), "CartPole-v1", targets=[1.0], progress=False)


def made(reference: Reference | None = None) -> Evaluation:
    returns = {100.0: [90.0, 110.0, 130.0, 70.0, 200.0], 300.0: [250.0, 250.0, 250.0, 250.0, 250.0]}
    records = tuple(
        (target, Outcome(seed, value, 10, seed % 2 == 0, seed % 2 == 1))
        for target, values in returns.items()
        for seed, value in enumerate(values)
    )
    return Evaluation("Hopper-v5", records, {"terminate_when_unhealthy": False}, reference)


def test_a_summary_says_what_its_episodes_say() -> None:
    summary = made().summary(100.0)
    assert (summary.episodes, summary.mean, summary.median, summary.min, summary.max) == (5, 120.0, 110.0, 70.0, 200.0)
    assert summary.iqm == 110.0
    assert summary.std == pytest.approx(np.std([90, 110, 130, 70, 200], ddof=1))
    assert summary.interval[0] < 120 < summary.interval[1]
    assert summary.score is None
    assert made().calibration_error == (20 + 50) / 2


def test_scores_come_only_with_a_named_reference() -> None:
    named = reference("seqwm/Hopper-v5")
    assert made(named).summary(300.0).score == named.score(250.0)
    assert "scores by seqwm/Hopper-v5" in str(made(named))
    assert "score" not in str(made())


@pytest.mark.parametrize("named", [None, reference("d4rl/hopper")])
def test_an_evaluation_survives_its_file(tmp_path, named) -> None:
    made(named).save(tmp_path / "evaluation.json")
    value = json.loads((tmp_path / "evaluation.json").read_text())
    assert Evaluation.from_json(value) == made(named)
    assert value["summaries"][0]["mean"] == 120.0
    assert value["episodes"][4] == {
        "target": 100.0,
        "seed": 4,
        "return": 200.0,
        "length": 10,
        "terminated": True,
        "truncated": False,
    }


def test_targets_spread_over_the_upper_half_of_the_data() -> None:
    assert spread_targets(np.array([0.0, 10.0, 20.0, 30.0, 100.0])) == (20.0, 40.0, 60.0, 80.0, 100.0)
    assert spread_targets(np.full(7, 3.0)) == (3.0,)


def test_an_evaluation_prints_as_a_table_with_a_line_a_target() -> None:
    head, columns, first, second, last = str(made(reference("seqwm/Hopper-v5"))).splitlines()
    assert head == "Hopper-v5, 10 episodes, scores by seqwm/Hopper-v5"
    assert columns.split() == ["target", "mean", "95", "%", "interval", "median", "iqm", "min", "max", "score"]
    assert second.split() == ["300", "250", "[250,", "250]", "250", "250", "250", "250", "7.2"]
    assert len(first) == len(second) == len(columns)
    assert last == "calibration error 35 (mean distance from the target)"
