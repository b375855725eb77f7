from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from seqwm.control.ensemble_fit import FitOptions
from seqwm.control.experience import Experience, lived
from seqwm.control.natural_gradient import NaturalGradientOptions
from seqwm.control.path_learner import PathOptions
from seqwm.control.pessimism import disagreement
from seqwm.core.errors import DataError, RecipeError, SpaceError
from seqwm.core.types import Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.methods import mbpo, mopo, morel, pets
from seqwm.nn.ensemble import EnsembleOptions
from seqwm.testing import check_policy, check_world_model
from seqwm.training.options import TrainOptions
from tests.fakes.worlds import LinearWorld

TRAIN = TrainOptions(steps=100, batch_size=32, learning_rate=1e-3)


def options(method, **own):
    return method.Options(
        ensemble=EnsembleOptions(members=3, elites=3, layers=1, width=32),
        fit=FitOptions(most_steps=300, learning_rate=3e-3),
        rounds=PathOptions(paths=200, horizon=20, clone_updates=500),
        agent=NaturalGradientOptions(width=8, discount=0.95, step_size=0.01),
        **own,
    )


def learner(method, store=None, **own):
    torch.manual_seed(0)
    return method.learner(options(method, **own), store or LinearWorld().logs(20, 15), TRAIN, seed=0)


@pytest.mark.parametrize("method", [mopo, morel])
def test_each_is_a_world_and_a_policy_as_the_contract_says_also_when_loaded(method, tmp_path):
    own, store = learner(method), LinearWorld().logs()
    own.update(0)
    model = own.trained()
    check_world_model(model, store.windows(4, 4, seed=1).batch(0), store.spaces)
    check_policy(lambda lanes: model.policy(), store.spaces)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path).eval()
    seen, first = torch.randn(5, 2), torch.ones(5, dtype=torch.bool)
    assert torch.equal(*[one.policy().act({}, seen, torch.zeros(5), first)[0] for one in (model, again)])
    assert all(torch.equal(p, again.state_dict()[name]) for name, p in model.state_dict().items())


@pytest.mark.parametrize("method", [mopo, morel])
def test_a_resumed_learner_goes_on_to_the_same_numbers(method):
    whole = learner(method)
    for step in range(5):
        whole.update(step)
    begun = learner(method)
    for step in range(3):
        begun.update(step)
    resumed = learner(method)
    resumed.load_state_dict(begun.state_dict())
    for step in range(3, 5):
        resumed.update(step)
    wanted = whole.model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in resumed.model.state_dict().items())


def test_imagined_rewards_of_mopo_fall_with_the_price_and_its_world_charges_nothing():
    own, figures = [], []
    for price in (0.0, 2.0):
        own.append(learner(mopo, price=price))
        figures.append(own[-1].update(0))
    free, dear = figures
    assert free["imagined_length"] == dear["imagined_length"]  # the first round's paths are the same
    assert dear["imagined_return"] < free["imagined_return"]
    context = LinearWorld().logs().windows(1, 4, seed=1).batch(0)
    stepped = [one.model.step(one.model.encode(context), torch.zeros(4, 1), None).reward for one in own]
    assert torch.equal(*stepped)


def test_as_many_steps_of_the_data_are_known_to_morel_as_it_was_told_and_paths_end_in_what_is_not():
    store = LinearWorld().logs(20, 15)
    own = learner(morel, store, known=0.8)
    figures = own.update(0)
    world = own.model.world
    rows = torch.cat([lived(world, episode) for episode in store.episodes()])
    steps = Experience.unpacked(rows, 2)
    known = disagreement(world, steps.observation, steps.action) <= figures["threshold"]
    assert float(known.float().mean()) == pytest.approx(0.8, abs=0.01)
    assert 0 < figures["ended"] <= 1


@pytest.mark.parametrize("method", [mopo, morel])
def test_the_policy_begins_as_a_clone_of_what_the_data_did(method):
    store = LinearWorld().logs(20, 15)
    own = learner(method, store)
    figures = own.update(0)  # which goes one step away from it
    tried = np.concatenate([episode.actions for episode in store.episodes()]) / 2  # bounds are 2
    assert figures["cloning_error"] == pytest.approx(float(tried.var()), rel=0.1)
    assert float(own.model.agent.log_std.exp().detach()) == pytest.approx(float(tried.std()), rel=0.3)


def test_options_that_make_no_sense_and_data_that_is_too_little_are_refused():
    with pytest.raises(ValueError, match="price: found -1, expected zero or more"):
        mopo.Options(price=-1)
    with pytest.raises(ValueError, match="known: found 0, expected a share above 0"):
        morel.Options(known=0)
    with pytest.raises(DataError, match="1 episodes"):
        learner(morel, LinearWorld().logs(episodes=1)).update(0)
    spaces = Spaces(LinearWorld().spaces.observation, None)
    for method in (mopo, morel):
        with pytest.raises(SpaceError, match="without actions or rewards, expected both to learn to act from"):
            method.build(options(method), TrajectoryStore.create(None, spaces))


@pytest.mark.parametrize(
    ("method", "instead"),
    [
        (mbpo, "model.ensemble.precision and model.agent.precision"),
        (mopo, "model.ensemble.precision"),
        (morel, "model.ensemble.precision"),
        (pets, "leave it out"),
    ],
)
def test_a_precision_that_would_change_nothing_is_refused_with_what_would(method, instead):
    train = TrainOptions(steps=1, precision="bf16")
    with pytest.raises(RecipeError, match=f"train.precision: found bf16, expected none here; {instead}"):
        method.learner(method.Options(), LinearWorld().logs(), train, seed=0)


@pytest.mark.learning
@pytest.mark.parametrize(("method", "own"), [(mopo, {"price": 0.5}), (morel, {"halt_reward": -2.0, "known": 0.99})])
def test_it_learns_from_random_logs_alone_to_bring_a_linear_system_to_rest(method, own):
    truth = LinearWorld()
    agent = learner(method, truth.logs(episodes=60, length=20), **own)
    for step in range(40):
        agent.update(step)
    policy, generator = agent.trained().policy(), torch.Generator().manual_seed(7)
    starts = torch.randn(200, 2, generator=generator)
    costs = []
    for strength in (0.0, 1.0):
        x, cost = starts, torch.zeros(200)
        for _ in range(30):
            action, _ = policy.act({}, x, torch.zeros(200), torch.zeros(200).bool())
            step = truth.step({"x": x}, strength * action, None)
            x, cost = step.state["x"], cost - step.reward
        costs.append(float(cost.mean()))
    nothing, learned = costs
    assert learned < 0.65 * nothing  # 0.28 to 0.38 over four seeds
