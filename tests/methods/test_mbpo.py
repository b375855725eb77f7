from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from gymnasium import spaces as gym_spaces

from seqwm.control import branched_learner
from seqwm.control.branched_learner import BranchedLearner, BranchOptions
from seqwm.control.branched_rollouts import branch
from seqwm.control.ensemble_fit import FitOptions
from seqwm.control.soft_actor_critic import SoftActorCriticOptions
from seqwm.core.errors import SpaceError
from seqwm.core.types import Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.hub.load import load_model
from seqwm.methods import mbpo
from seqwm.nn.ends import never
from seqwm.nn.ensemble import EnsembleOptions
from seqwm.recipe import parse_recipe
from seqwm.run import train
from seqwm.testing import check_policy, check_world_model
from seqwm.training.options import TrainOptions
from seqwm.training.tracking import read_metrics
from tests.fakes.worlds import LinearWorld

SMALL = {
    "ensemble": {"members": 2, "elites": 1, "layers": 1, "width": 16},
    "fit": {"most_steps": 50},
    "branches": {"refit_every": 20, "every": 15, "starts": 30, "horizon": 2, "growing": [0, 0], "kept": 2},
    "agent": {"width": 16},
}


def options(**branches) -> mbpo.Options:
    return mbpo.Options(
        ensemble=EnsembleOptions(**SMALL["ensemble"]),
        fit=FitOptions(**SMALL["fit"]),
        branches=BranchOptions(**(SMALL["branches"] | {"growing": (0, 0)} | branches)),
        agent=SoftActorCriticOptions(**SMALL["agent"]),
    )


def learner(**branches) -> BranchedLearner:
    torch.manual_seed(0)
    return mbpo.learner(options(**branches), LinearWorld().logs(), TrainOptions(steps=100, batch_size=16), seed=0)


def recipe(ends="learned", **branches):
    description = {
        "method": "mbpo",
        "collect": {"environment": "Pendulum-v1", "lanes": 2, "prefill": 400, "updates_per_step": 0.5},
        "model": SMALL | {"branches": SMALL["branches"] | branches, "ends": ends},
        "train": {"steps": 60, "batch_size": 16, "track": [], "log_every": 1, "checkpoint_every": 13},
        "evaluate": {"episodes": 2, "replay": False},
    }
    return parse_recipe(json.dumps(description), "r")


def lines(run):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(run / "metrics.jsonl")]


@pytest.mark.parametrize("moment", [17, 44])
def test_a_killed_run_ends_in_the_numbers_of_the_uninterrupted_one(tmp_path, monkeypatch, moment):
    whole = train(recipe(), tmp_path / "whole")
    update = BranchedLearner.update

    def killed(self, step):
        if step == moment:
            raise KeyboardInterrupt
        return update(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(BranchedLearner, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(), tmp_path / "killed")
    resumed = train(recipe(), tmp_path / "killed", resume=True)
    metrics = lines(whole)
    assert lines(resumed) == metrics
    found, wanted = (load_model(run).state_dict() for run in (resumed, whole))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    # Fits after each 20 transitions, to episodes under way, too: four episodes of 100 and two of which one is held out.
    fitted = [line["rows"] for line in metrics]
    assert len({*fitted}) == 6
    assert fitted == sorted(fitted)
    imagined = [line["imagined_rows"] for line in metrics]
    assert len({*imagined[:15]}) == len({*imagined[15:30]}) == 1
    assert 30 <= imagined[0] <= 60 < imagined[15] <= 120


def test_branches_start_at_real_states_alone_and_only_the_last_rounds_are_kept(monkeypatch):
    begun, made = [], []

    def recorded(world, act, starts, *rest, **given):
        begun.append(starts)
        made.append(branch(world, act, starts, *rest, **given))
        return made[-1]

    monkeypatch.setattr(branched_learner, "branch", recorded)
    own = learner(kept=2, horizon=3)
    real = {tuple(row) for row in own.real.rows[:, :2].tolist()}
    for step in range(46):
        own.update(step)
    assert [len(starts) for starts in begun] == [30] * 4
    assert all(tuple(row) in real for starts in begun for row in starts.tolist())
    assert torch.equal(own.imagined.rows, torch.cat([made[2].rows, made[3].rows]))


def test_what_happens_reaches_the_learner_before_its_episode_ends(tmp_path):
    seen = []
    draw = BranchedLearner.update

    def update(self, step):
        seen.append((len(self.real), self.store.rows))
        return draw(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BranchedLearner, "update", update)
        train(recipe(), tmp_path / "run")
    assert seen == [(400 + 2 * (step + 1), 400) for step in range(60)]


def test_an_end_written_by_hand_is_held_against_what_happened_and_is_the_loaded_model_s_too(tmp_path):
    run = train(recipe(ends="by_hand"), tmp_path / "run")
    assert {line["ends_contradicted"] for line in lines(run)} == {0.0}
    assert {line["ended"] for line in lines(run)} == {0.0}
    assert load_model(run).world.ends is never


def test_with_real_rows_alone_nothing_is_fitted_or_imagined():
    own = learner(real_share=1.0)
    before = {name: p.clone() for name, p in own.world.named_parameters()}
    assert set(own.update(0)) == {"critic_loss", "value", "entropy", "temperature"}
    assert all(torch.equal(before[name], p) for name, p in own.world.named_parameters())
    assert len(own.imagined) == 0


def test_it_is_a_world_and_a_policy_as_the_contract_says_also_when_loaded(tmp_path):
    own, world = learner(), LinearWorld()
    own.update(0)
    model, store = own.trained(), world.logs()
    check_world_model(model, store.windows(4, 4, seed=1).batch(0), store.spaces)
    check_policy(lambda lanes: model.policy(), store.spaces)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path).eval()
    seen, first = torch.randn(5, 2), torch.ones(5, dtype=torch.bool)
    acts = [one.policy().act({}, seen, torch.zeros(5), first)[0] for one in (model, again)]
    assert torch.equal(*acts)
    assert float(acts[0].abs().max()) <= 2.0


def test_discrete_actions_are_refused_with_methods_that_take_them():
    spaces = Spaces(gym_spaces.Box(-1, 1, (3,), np.float32), gym_spaces.Discrete(2))
    with pytest.raises(SpaceError, match="expected a Box with finite bounds for soft actor-critic; pets and dreamer"):
        mbpo.build(options(), TrajectoryStore.create(None, spaces))


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"real_share": 1.5}, "real_share: found 1.5, expected a share between 0 and 1"),
        ({"starts": 0}, "starts: found 0, expected at least 1"),
        ({"growing": (5, 2)}, r"growing: found \[5, 2\], expected two numbers of transitions in order"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        BranchOptions(**wrong)
