from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from gymnasium import spaces as gym_spaces

from seqwm.control.cem import CEMOptions
from seqwm.core.errors import SpaceError
from seqwm.core.types import Episode, Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.methods import planet
from seqwm.testing import check_policy, check_world_model
from seqwm.training import checkpoint
from seqwm.training.options import TrainOptions
from tests.strategies import random_episode

BOX = gym_spaces.Box(-np.inf, np.inf, (2,), np.float32)
DISCRETE = Spaces(BOX, gym_spaces.Discrete(3))
CONTINUOUS = Spaces(BOX, gym_spaces.Box(-2.0, 2.0, (1,), np.float32))
SMALL = planet.Options(
    sequence_length=6,
    deterministic=16,
    stochastic=4,
    hidden=16,
    layers=1,
    width=16,
    planner=CEMOptions(horizon=3, candidates=16, elites=4, iterations=2),
)
TRAIN = TrainOptions(steps=10, batch_size=4, learning_rate=1e-3, weight_decay=0.0)


def store_of(spaces, rewards=True):
    store = TrajectoryStore.create(None, spaces, rewards=rewards)
    for number, length in enumerate((9, 3, 1, 6)):
        store.append(random_episode(spaces, length, np.random.default_rng(number), rewards=rewards))
    return store


@pytest.mark.parametrize("spaces", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_planet_is_a_world_and_a_policy_as_the_contract_says(spaces):
    torch.manual_seed(0)
    store = store_of(spaces)
    model = planet.build(SMALL, store)
    check_world_model(model, store.windows(model.window_length, 4, seed=1).batch(0), spaces)
    check_policy(lambda lanes: model.policy(), spaces)


def test_a_run_resumed_from_a_checkpoint_equals_one_that_went_on(tmp_path):
    torch.manual_seed(0)
    whole = planet.learner(SMALL, store_of(CONTINUOUS), TRAIN, seed=0)
    for step in range(3):
        assert np.isfinite(list(whole.update(step).values())).all()
    checkpoint.save(tmp_path, 3, whole.state_dict())
    resumed = planet.learner(SMALL, store_of(CONTINUOUS), TRAIN, seed=0)
    resumed.load_state_dict(checkpoint.latest(tmp_path).state)
    for step in range(3, 5):
        assert whole.update(step) == resumed.update(step)


def test_a_plan_in_a_learned_world_finds_the_action_that_is_paid():
    # One step, paid by how near the action is to what is seen: seen once learned, planned from then on.
    generator = np.random.default_rng(0)
    store = TrajectoryStore.create(None, CONTINUOUS)
    for _ in range(60):
        seen = generator.uniform(-1, 1, (21, 2)).astype(np.float32)
        actions = generator.uniform(-2, 2, (20, 1)).astype(np.float32)
        rewards = 1 - np.abs(actions[:, 0] - seen[:-1, 0])
        store.append(Episode(seen, actions, rewards.astype(np.float32), False, True))
    options = planet.Options(
        sequence_length=10,
        deterministic=32,
        stochastic=8,
        hidden=32,
        layers=1,
        width=32,
        planner=CEMOptions(horizon=1, candidates=64, elites=8, iterations=4),
    )
    torch.manual_seed(0)
    learner = planet.learner(options, store, TrainOptions(steps=1, batch_size=32, learning_rate=3e-3), seed=0)
    for step in range(250):
        learner.update(step)
    policy = learner.policy(explore=False)
    seen = torch.tensor([[0.8, 0.0], [-0.8, 0.3], [0.0, -0.5]])
    action, _ = policy.act(policy.initial(3), seen, torch.zeros(3), torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(action[:, 0], seen[:, 0], atol=0.35, rtol=0.0)


def test_a_saved_model_plans_as_before(tmp_path):
    model = planet.build(SMALL, store_of(CONTINUOUS)).eval()
    model.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path).eval()
    seen, first = torch.randn(3, 2), torch.ones(3, dtype=torch.bool)
    acts = [own.policy().act(own.policy().initial(3), seen, torch.zeros(3), first)[0] for own in (model, again)]
    assert torch.equal(acts[0], acts[1])


def test_exploring_strays_from_the_plan():
    policy = planet.build(SMALL, store_of(CONTINUOUS)).explorer()
    torch.manual_seed(0)
    first = torch.ones(200, dtype=torch.bool)
    action, state = policy.act(policy.initial(200), torch.zeros(200, 2), torch.zeros(200), first)
    assert float(action.std()) > 0.2
    assert float(action.abs().max()) <= 2.0
    torch.testing.assert_close(state["action"], action / 2)


def test_data_without_rewards_or_actions_is_refused_where_it_does_not_do():
    model = planet.build(SMALL, store_of(DISCRETE, rewards=False))
    with pytest.raises(SpaceError, match="there is a world and no policy"):
        model.policy()
    with pytest.raises(SpaceError, match="no actions; planet needs them"):
        planet.build(SMALL, TrajectoryStore.create(None, Spaces(BOX, None)))
