from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from gymnasium import spaces as gym_spaces

from seqwm.control.cem import CEMOptions
from seqwm.control.ensemble_fit import held_out
from seqwm.core.errors import DataError, SpaceError
from seqwm.core.types import Episode, Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.methods import pets
from seqwm.testing import check_policy, check_world_model
from seqwm.training.options import TrainOptions
from tests.fakes.worlds import LinearWorld

PLANNER = CEMOptions(horizon=3, candidates=32, elites=4, iterations=3, particles=2, sample=False)
SMALL = pets.Options(members=3, elites=2, layers=1, width=32, most_steps=400, planner=PLANNER)
TRAIN = TrainOptions(steps=1, batch_size=64, learning_rate=3e-3, weight_decay=0.0)


@pytest.mark.parametrize("propagation", ["TS-1", "TS-inf"])
def test_pets_is_a_world_and_a_policy_as_the_contract_says(propagation):
    torch.manual_seed(0)
    world = LinearWorld()
    store = world.logs()
    model = pets.build(dataclasses.replace(SMALL, propagation=propagation), store)
    check_world_model(model, store.windows(4, 4, seed=1).batch(0), store.spaces)
    check_policy(lambda lanes: model.policy(), store.spaces)


def test_a_particle_keeps_its_member_under_ts_inf_and_draws_another_under_ts_1():
    store = LinearWorld().logs()
    for propagation, kept in (("TS-inf", 1.0), ("TS-1", 0.5)):
        model = pets.build(dataclasses.replace(SMALL, propagation=propagation), store)
        generator = torch.Generator().manual_seed(0)
        state = {"observation": torch.zeros(2000, 2), "member": torch.full((2000,), -1)}
        with torch.no_grad():
            first = model.step(state, torch.zeros(2000, 1), generator).state
            second = model.step(first, torch.zeros(2000, 1), generator).state
        assert set(first["member"].tolist()) == set(model.world.ensemble.elites.tolist())
        assert float((first["member"] == second["member"]).float().mean()) == pytest.approx(kept, abs=0.05)


def test_a_fit_recovers_linear_dynamics_and_its_reward_and_again_after_resuming():
    torch.manual_seed(0)
    truth = LinearWorld()
    store = truth.logs(episodes=40, length=25)
    learner = pets.learner(SMALL, store, TRAIN, seed=0)
    metrics = learner.update(0)
    assert metrics["validation_error"] < 0.02
    x, u = 0.7 * torch.randn(200, 2), torch.rand(200, 1) * 2 - 1
    with torch.no_grad():
        found = learner.model.step({"observation": x, "member": torch.full((200,), -1)}, u, None)
    expected = truth.step({"x": x}, u, None)
    change = (expected.state["x"] - x).square().mean()
    assert float((found.state["observation"] - expected.state["x"]).square().mean()) < 0.05 * float(change)
    assert not bool(found.terminated.any())
    again = pets.learner(SMALL, store, TRAIN, seed=0)
    again.load_state_dict(learner.state_dict())
    assert again.update(1) == metrics == learner.update(1)


def test_one_episode_in_five_is_held_out_for_good_and_what_it_holds_is_not_learned_from():
    assert held_out(2, seed=3)
    for episodes in (2, 7, 23, 100):
        found = held_out(episodes, seed=3)
        assert found == [number for number in held_out(200, seed=3) if number < episodes]
        assert 1 <= len(found) <= -(-episodes // 5)
    learned = []
    for scale in (1.0, 100.0):  # the held-out episodes are another world; the normalisers do not know
        store = LinearWorld().logs(episodes=10)
        mixed = TrajectoryStore.create(None, store.spaces)
        for number, episode in enumerate(store.episodes()):
            factor = scale if number in held_out(10, seed=0) else 1.0
            mixed.append(dataclasses.replace(episode, observations=episode.observations * factor))
        learner = pets.learner(SMALL, mixed, TRAIN, seed=0)
        learner.update(0)
        learned.append(learner.model.world.input_std.clone())
    assert torch.equal(*learned)


def test_a_saved_model_plans_as_before(tmp_path):
    model = pets.build(SMALL, LinearWorld().logs()).eval()
    model.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path).eval()
    seen, first = torch.randn(3, 2), torch.ones(3, dtype=torch.bool)
    acts = [own.policy().act(own.policy().initial(3), seen, torch.zeros(3), first)[0] for own in (model, again)]
    assert torch.equal(acts[0], acts[1])


def test_less_than_two_episodes_are_too_few_and_images_are_refused_by_name():
    for episodes in (0, 1):
        store = LinearWorld().logs(episodes=episodes)
        with pytest.raises(DataError, match=f"{episodes} episodes"):
            pets.learner(SMALL, store, TRAIN, seed=0).update(0)
    images = Spaces(gym_spaces.Box(0, 255, (8, 8, 3), np.uint8), gym_spaces.Discrete(2))
    with pytest.raises(SpaceError, match="expected a Box of numbers for an ensemble"):
        pets.build(SMALL, TrajectoryStore.create(None, images))


def test_the_end_of_a_task_is_learned():
    generator, spaces = np.random.default_rng(0), LinearWorld().spaces
    store = TrajectoryStore.create(None, spaces)
    for _ in range(80):  # the first number counts up, and the task is over at 0.5
        begin = generator.uniform(-1, 0.3)
        length = int(np.ceil((0.5 - begin) / 0.2))
        seen = np.stack([begin + 0.2 * np.arange(length + 1), np.zeros(length + 1)], 1).astype(np.float32)
        store.append(Episode(seen, np.zeros((length, 1), np.float32), np.ones(length, np.float32), True, False))
    torch.manual_seed(0)
    learner = pets.learner(dataclasses.replace(SMALL, most_steps=1500, patience=20), store, TRAIN, seed=0)
    learner.update(0)
    x = torch.tensor([[-0.5, 0.0], [0.1, 0.0], [0.45, 0.0]])
    state = {"observation": x, "member": torch.full((3,), -1)}
    assert learner.model.step(state, torch.zeros(3, 1), None).terminated.tolist() == [False, False, True]


def test_a_reward_and_an_end_written_by_hand_are_the_world_s_and_are_held_against_the_data(tmp_path):
    options = dataclasses.replace(SMALL, reward="by_hand", ends="by_hand", most_steps=20)
    spaces = Spaces(gym_spaces.Box(-8.0, 8.0, (3,), np.float32), gym_spaces.Box(-2.0, 2.0, (1,), np.float32))
    generator = np.random.default_rng(0)
    stores = []
    for off in (0.0, 0.5):
        store = TrajectoryStore.create(None, spaces, provenance={"environment": "Pendulum-v1"})
        for _ in range(4):
            angle, speed = generator.uniform(-3, 3, (2, 6))
            seen = np.stack([np.cos(angle), np.sin(angle), speed], 1).astype(np.float32)
            torque = generator.uniform(-2, 2, 5)
            rewards = off - (angle[:-1] ** 2 + 0.1 * speed[:-1] ** 2 + 0.001 * torque**2)
            store.append(Episode(seen, torque[:, None].astype(np.float32), rewards.astype(np.float32), False, True))
        stores.append(store)
    learner = pets.learner(options, stores[0], TRAIN, seed=0)
    metrics = learner.update(0)
    assert (metrics["ends_contradicted"], metrics["rewards_contradicted"]) == (0.0, 0.0)
    with pytest.raises(DataError, match=r"100.0 % of 20 rows contradict it, by up to 0.5"):
        pets.learner(options, stores[1], TRAIN, seed=0).update(0)
    learner.model.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path).eval()
    state = {"observation": torch.tensor([[0.0, 1.0, 2.0]]), "member": torch.tensor([-1])}
    with torch.no_grad():
        step = again.step(state, torch.tensor([[1.0]]), torch.Generator().manual_seed(0))
    assert float(step.reward) == pytest.approx(-(np.pi**2 / 4 + 0.4 + 0.001), abs=1e-4)
    assert not bool(step.terminated)


def test_a_plan_for_a_goal_goes_there_and_the_world_still_pays_its_reward():
    spaces = Spaces(gym_spaces.Box(-np.inf, np.inf, (4,), np.float32), gym_spaces.Box(-3.0, 3.0, (1,), np.float32))
    generator = np.random.default_rng(0)
    store = TrajectoryStore.create(None, spaces, provenance={"environment": "InvertedPendulum-v5"})
    for _ in range(40):  # a cart that goes where it is pushed, below a pole that stands: each step earns one
        pushed = generator.uniform(-3, 3, (10, 1)).astype(np.float32)
        cart = generator.uniform(-1, 1) + np.concatenate([[0.0], 0.1 * pushed[:, 0].cumsum()])
        seen = np.stack([cart, *np.zeros((3, 11))], 1).astype(np.float32)
        store.append(Episode(seen, pushed, np.ones(10, np.float32), False, True))
    torch.manual_seed(0)
    planner = dataclasses.replace(PLANNER, horizon=5, candidates=128, elites=12, iterations=5)
    learner = pets.learner(dataclasses.replace(SMALL, plans_for="goal", planner=planner), store, TRAIN, seed=0)
    learner.update(0)
    model = learner.trained()
    policy, seen = model.policy(), torch.tensor([[0.6, 0.0, 0.0, 0.0], [-0.6, 0.0, 0.0, 0.0]])
    action, _ = policy.act(policy.initial(2), seen, torch.zeros(2), torch.ones(2, dtype=torch.bool))
    assert (float(action[0]) < -1.5, float(action[1]) > 1.5) == (True, True)
    with torch.no_grad():
        step = model.step({"observation": seen, "member": torch.full((2,), -1)}, action, None)
    assert step.reward.tolist() == pytest.approx([1.0, 1.0], abs=0.05)
