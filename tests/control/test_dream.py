from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces

from seqwm.control.dream import DreamEnv, imagine
from seqwm.control.policies import RandomPolicy
from seqwm.control.rollout import gather, play
from seqwm.core.errors import RolloutError, SpaceError
from seqwm.core.types import Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.testing import check_world_model
from tests.fakes.worlds import CountingWorld, LinearWorld

WORLD, NOISY = LinearWorld(), LinearWorld(noise=0.5, limit=3.0)


def dream(world, lanes, horizon=5, **options):
    store = world.logs()
    return DreamEnv(world, store.spaces, store.windows(world.window_length, 1), lanes, horizon, **options)


class Feedback:
    """u = -x_2 / 2, without memory."""

    def initial(self, lanes):
        return {}

    def act(self, state, observation, reward, first):
        return -0.5 * observation[:, 1:], state


@pytest.mark.parametrize("world", [WORLD, NOISY, CountingWorld()])
def test_the_worlds_of_these_tests_are_worlds(world) -> None:
    store = world.logs()
    context = store.windows(world.window_length, 1).gather(np.array([0, 1, 2, 0]), np.array([0, 3, 1, 2]))
    check_world_model(world, context, store.spaces)


def test_a_dream_of_linear_dynamics_is_their_closed_form() -> None:
    env = dream(WORLD, 3)
    first, _ = env.reset(seed=4)
    starts = {tuple(episode.observations[0]) for episode in WORLD.logs().episodes()}
    assert {tuple(x) for x in first} <= starts
    closed = (WORLD.A - 0.5 * WORLD.B @ torch.tensor([[0.0, 1.0]])).double().numpy()
    x = first
    for step in range(1, 6):
        x, reward, terminated, truncated, _ = env.step(-0.5 * x[:, 1:])
        power = np.linalg.matrix_power(closed, step)
        np.testing.assert_allclose(x, first @ power.T, rtol=1e-4, atol=1e-5)
        before = first @ np.linalg.matrix_power(closed, step - 1).T
        cost = before[:, 0] ** 2 + 0.1 * before[:, 1] ** 2 + 0.2 * (0.5 * before[:, 1]) ** 2
        np.testing.assert_allclose(reward, -cost, rtol=1e-4, atol=1e-5)
        assert not terminated.any()
        assert truncated.all() == (step == 5)


def test_a_policy_plays_in_a_dream_as_imagination_says() -> None:
    env = dream(NOISY, 6, horizon=20)
    outcomes = play(env, Feedback(), [3, 1, 4, 1, 5, 9])
    assert outcomes == play(env, Feedback(), [3, 1, 4, 1, 5, 9])
    assert {one.terminated for one in outcomes} == {True, False}
    assert {one.length for one in outcomes if one.truncated} <= {20}

    env.reset(seed=[3, 1, 4, 1, 5, 9])
    imagined = imagine(NOISY, env._state, lambda state: -0.5 * state["x"][:, 1:], 20, env._generator)
    alive = torch.cat([torch.ones(6, 1), (~imagined.terminated).cumprod(1)[:, :-1]], 1)
    np.testing.assert_allclose([one.achieved for one in outcomes], (imagined.rewards * alive).sum(1), rtol=1e-5)
    assert [one.length for one in outcomes] == alive.sum(1).int().tolist()


def test_dreams_go_into_a_store_like_any_other_experience() -> None:
    env = dream(NOISY, 3, horizon=7)
    store = TrajectoryStore.create(None, env.world.spaces)
    gather(env, RandomPolicy(env.single_action_space, 0), store, 40, seed=1)
    assert store.rows == 40
    assert store.lengths.max() <= 7
    for episode in store.episodes():
        x, u = torch.from_numpy(episode.observations[:-1]), torch.from_numpy(episode.actions)
        step = NOISY.step({"x": x}, u, None)
        np.testing.assert_allclose(episode.rewards, step.reward, rtol=1e-5)


def test_a_dream_that_begins_anywhere_begins_where_the_logs_were() -> None:
    env = dream(WORLD, 300, begin="anywhere")
    first, _ = env.reset(seed=0)
    logged = np.concatenate([episode.observations[:-1] for episode in WORLD.logs().episodes()])
    rows = (first[:, None] == logged).all(-1)
    assert rows.any(1).all()
    assert rows.any(0).all(), "every logged row is a place to begin"


def test_lanes_stand_still_until_they_are_reset_and_others_go_on() -> None:
    env = dream(CountingWorld(), 3, horizon=50)
    env.reset(seed=[0, 1, 2])
    ended = np.zeros(3, bool)
    while not ended.all():
        before = env._observation["count"]
        seen, rewards, ended, truncated, _ = env.step(np.array([2, 1, 1]) * ~ended)
        assert not truncated.any()
        assert (seen["count"] >= before).all()
    still, rewards, *_ = env.step(np.array([2, 2, 2]))
    assert rewards.tolist() == [0, 0, 0]
    assert still["count"].tolist() == seen["count"].tolist()
    again, _ = env.reset(seed=[7, 7, 7], options={"reset_mask": np.array([False, True, False])})
    assert again["count"][[0, 2]].tolist() == still["count"][[0, 2]].tolist()
    assert again["count"][1] < 3
    following, rewards, *_ = env.step(np.array([1, 1, 1]))
    assert (following["count"] - again["count"]).tolist() == [0, 1, 0]
    assert rewards.tolist() == [0, following["count"][1], 0]


def test_a_dream_goes_on_from_its_saved_state_as_it_would_have() -> None:
    whole, other = dream(NOISY, 3), dream(NOISY, 3)
    actions = np.random.default_rng(0).standard_normal((6, 3, 1)).astype(np.float32)
    whole.reset(seed=2)
    for action in actions[:2]:
        seen = whole.step(action)[0]
    np.testing.assert_array_equal(other.load_state_dict(whole.state_dict()), seen)
    for action in actions[2:]:
        for one, same in zip(whole.step(action)[:4], other.step(action)[:4], strict=True):
            np.testing.assert_array_equal(one, same)


def test_frames_are_rendered_and_lie_in_the_space() -> None:
    env = dream(CountingWorld(), 2, render_mode="rgb_array")
    seen, _ = env.reset(seed=0)
    assert env.observation_space.contains(seen)
    frames = env.render()
    assert [frame.shape for frame in frames] == [(8, 8, 3)] * 2
    assert [int(frame[0, 0, 0]) for frame in frames] == seen["count"].tolist()


def test_gymnasium_makes_dreams() -> None:
    arguments = {"num_envs": 4, "world": WORLD, "store": WORLD.logs(), "horizon": 6, "sample": False}
    env = gymnasium.make_vec("seqwm.envs:seqwm/Dream-v0", **arguments)
    observation, _ = env.reset(seed=2)
    expected, _ = dream(WORLD, 4, sample=False).reset(seed=2)
    assert env.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.DISABLED
    np.testing.assert_array_equal(observation, expected)


def test_gradients_flow_through_imagination() -> None:
    gain = torch.tensor([[0.1], [0.2]], requires_grad=True)
    start = torch.tensor([[1.0, -1.0], [0.5, 2.0]])

    def total(gain):
        return imagine(WORLD, {"x": start}, lambda state: state["x"] @ gain, 8).rewards.sum()

    total(gain).backward()
    for entry in range(2):
        nudge = torch.zeros(2, 1)
        nudge[entry] = 1e-2
        with torch.no_grad():
            difference = (total(gain + nudge) - total(gain - nudge)) / 2e-2
        assert float(gain.grad[entry]) == pytest.approx(float(difference), rel=1e-2)


def test_what_cannot_be_dreamt_is_refused_and_numbers_that_are_none_are_named() -> None:
    store = WORLD.logs()
    windows = store.windows(4, 1)
    with pytest.raises(SpaceError, match="no actions"):
        DreamEnv(WORLD, Spaces(store.spaces.observation, None), windows, 1, 5)
    with pytest.raises(SpaceError, match="an image among the observations"):
        DreamEnv(WORLD, store.spaces, windows, 1, 5, render_mode="rgb_array")
    wild = LinearWorld()
    wild.A = wild.A * 1e30
    env = DreamEnv(wild, store.spaces, windows, 2, 50)
    env.reset(seed=0)
    env.step(np.zeros((2, 1), np.float32))
    with pytest.raises(RolloutError, match=r"^dream: lane 0: step 1: the model's reward is -inf, expected a number"):
        env.step(np.zeros((2, 1), np.float32))


@pytest.mark.parametrize(
    ("breaks", "complaint"),
    [
        ("mutates", "step changed the state 'x'"),
        ("mixes", "(lanes in another order|a lane by itself)"),
        ("reads", "content that `encode` may not read"),
        ("draws", "the same generator"),
        ("shapes", "expected the same names, shapes and dtypes"),
        ("space", "decode: '' is"),
    ],
)
def test_a_world_that_breaks_a_promise_is_told_which(breaks, complaint) -> None:
    class Broken(LinearWorld):
        def encode(self, context):
            state = super().encode(context)
            return {"x": state["x"] + context.rewards[:, -1:]} if breaks == "reads" else state

        def step(self, state, action, generator):
            if breaks == "mutates":
                state["x"].add_(1)
            after = super().step(state, action, generator)
            if breaks == "mixes":
                after.state["x"] = after.state["x"] + torch.arange(len(action))[:, None]
            if breaks == "draws":
                after.state["x"] = after.state["x"] + torch.randn(2)
            if breaks == "shapes":
                after.state["more"] = action
            return after

        def decode(self, state):
            return state["x"].double() if breaks == "space" else state["x"]

    store = WORLD.logs()
    assert isinstance(store.spaces.observation, gym_spaces.Box)
    context = store.windows(4, 1).gather(np.array([0, 1, 2]), np.array([0, 3, 1]))
    with pytest.raises(AssertionError, match=complaint):
        check_world_model(Broken(), context, store.spaces)
