from __future__ import annotations

import json

import av
import numpy as np
import pytest
import torch

from seqwm.control.dream import DreamEnv
from seqwm.evaluation.dream_figures import draw_dream, write_film, write_strip
from seqwm.evaluation.dream_gap import dream_gap, rewards_of, shown_horizons, side
from seqwm.evaluation.prediction import predict, prediction_error
from tests.fakes.worlds import CountingWorld, LinearWorld

WORLD = LinearWorld()


class Feedback:
    """u = -x_2 / 2, without memory."""

    def initial(self, lanes):
        return {}

    def act(self, state, observation, reward, first):
        return -0.5 * observation[:, 1:], state


def drifting() -> LinearWorld:
    """The same world with another B: after h steps it is wrong by what the difference of B added up to."""
    world = LinearWorld()
    world.B = world.B + torch.tensor([[0.1], [0.0]])
    return world


def test_a_world_that_is_the_logs_own_predicts_them() -> None:
    store = WORLD.logs()
    rollouts = predict(WORLD, store.windows(4, 1), horizon=6, contexts=200)
    found = prediction_error(rollouts, store)
    there = rollouts.there.sum(0)
    assert found.contexts == there.tolist()
    assert there[0] == 200  # behind every row of these logs there is at least one observation
    assert there[5] < 200
    assert max(found.observations[""].error) < 1e-5
    assert found.reward is not None
    assert max(found.reward.error) < 1e-5


def test_errors_are_those_of_the_closed_form() -> None:
    store, world = WORLD.logs(), drifting()
    rollouts = predict(world, store.windows(4, 1), horizon=4, contexts=150)
    found = prediction_error(rollouts, store).observations[""]
    A, wrong = WORLD.A.double().numpy(), (world.B - WORLD.B).double().numpy()
    deviation, total, still, count = store.statistics.observation_std, np.zeros(4), np.zeros(4), np.zeros(4)
    rows = {}
    for number, episode in enumerate(store.episodes()):
        for t in range(len(episode)):
            rows[tuple(episode.observations[t])] = number, t
    for before in rollouts.before[""]:
        number, t = rows[tuple(before)]
        episode = store.episode(number)
        miss = np.zeros(2)
        for h in range(min(4, len(episode) - t)):
            miss = A @ miss + wrong @ episode.actions[t + h].astype(float)
            total[h] += np.mean((miss / deviation) ** 2)
            still[h] += np.mean(((before - episode.observations[t + h + 1]) / deviation) ** 2)
            count[h] += 1
    np.testing.assert_allclose(found.error, np.sqrt(total / count), rtol=1e-3)
    np.testing.assert_allclose(found.unchanged, np.sqrt(still / count), rtol=1e-4)
    assert all(low < error < high for low, error, high in zip(found.low, found.error, found.high, strict=True))


def dreams(world, lanes: int = 24, horizon: int = 20, noise: float = 0.0) -> DreamEnv:
    store = WORLD.logs()
    return DreamEnv(world, store.spaces, store.windows(4, 1), lanes, horizon)


def test_a_dream_that_is_reality_has_no_gap_and_one_that_is_not_parts_from_it() -> None:
    none = dream_gap(dreams(WORLD), dreams(WORLD), Feedback(), 20)
    assert none.dream == none.reality
    assert none.parts_at is None

    class Promising(LinearWorld):
        """Pays one more for every step from the fourth on."""

        def encode(self, context):
            return super().encode(context) | {"age": torch.zeros(len(context.valid))}

        def step(self, state, action, generator):
            after = super().step(state, action, generator)
            after.state["age"] = state["age"] + 1
            return type(after)(after.state, after.reward + 30 * (after.state["age"] > 3), after.terminated)

    gap = dream_gap(dreams(Promising()), dreams(WORLD), Feedback(), 20)
    assert gap.parts_at == 4
    assert gap.dream.mean[-1] - gap.reality.mean[-1] == pytest.approx(30 * 17, rel=1e-6)
    assert "they part at 4" in str(gap)
    assert gap.dream.mean[:3] == gap.reality.mean[:3]


def test_what_comes_behind_an_end_is_not_counted() -> None:
    world, store = CountingWorld(), CountingWorld().logs()
    env = DreamEnv(world, store.spaces, store.windows(3, 1), 6, 50)

    class Steady:
        def initial(self, lanes):
            return {}

        def act(self, state, observation, reward, first):
            return torch.ones(len(first), dtype=torch.int64), state

    rewards, going = rewards_of(env, Steady(), 12, seed=0)
    for lane in range(6):
        length = int(going[lane].sum()) + 1
        count = 6 - length
        assert rewards[lane].tolist() == [*range(count + 1, 7), *[0] * (12 - length)]
    assert side((rewards, going)).returns == rewards.sum(1).tolist()


def test_frames_are_filmed_beside_each_other(tmp_path) -> None:
    world, store = CountingWorld(), CountingWorld().logs()
    rollouts = predict(world, store.windows(3, 1), horizon=3, contexts=20)
    found = prediction_error(rollouts, store)
    assert found.observations["count"].error == [0, 0, 0]
    assert found.observations["count"].unchanged == [1, 1, 1]
    assert found.observations["frame"].unit == "shares of 255"
    shown = rollouts.happened["frame"][:2], rollouts.predicted["frame"][:2]
    write_strip(*shown, tmp_path / "strip.png")
    write_film(*shown, tmp_path / "dream.mp4")
    draw_dream(found, None, tmp_path / "dream.png")
    with av.open(str(tmp_path / "dream.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == 3
    left, right = np.split(frames[1].astype(int), 2, axis=1)
    assert np.abs(left - right).mean() < 4
    assert {path.name for path in tmp_path.iterdir()} == {"strip.png", "dream.mp4", "dream.png"}


def test_horizons_are_shown_from_one_to_the_last() -> None:
    assert list(shown_horizons(50)) == [1, 2, 5, 10, 20, 50]
    assert list(shown_horizons(1)) == [1]
    assert json.dumps(list(shown_horizons(120))) == "[1, 2, 5, 10, 20, 50, 100, 120]"
