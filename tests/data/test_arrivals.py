from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces

from seqwm.control.collect import collect
from seqwm.core.errors import DataError
from seqwm.core.types import Episode, Spaces
from seqwm.data.arrivals import CrossingWindows, arrivals
from seqwm.data.store import TrajectoryStore
from tests.fakes import environments  # noqa: F401

SPACES = Spaces(gym_spaces.Box(-np.inf, np.inf, (1,), np.float32), gym_spaces.Discrete(1000))
# (length, terminated, truncated, final observation)
EPISODES = [(3, True, False, True), (1, False, True, True), (5, False, False, False), (2, True, False, True)]


def store_of(episodes=EPISODES, path=None):
    """Observation 100 e + t, action the same, reward the same and a half."""
    store = TrajectoryStore.create(path, SPACES)
    for number, (length, terminated, truncated, final) in enumerate(episodes):
        values = 100 * number + np.arange(length + 1)
        store.append(
            Episode(
                values[: length + final].astype(np.float32)[:, None],
                values[:length],
                values[:length].astype(np.float32) + 0.5,
                terminated,
                truncated,
                final,
            )
        )
    return store


def expected_rows():
    """(observation, action before, reward before, first, terminated, last) of every stored row, by hand."""
    rows = []
    for number, (length, terminated, _, final) in enumerate(EPISODES):
        for t in range(length + final):
            value, end = 100 * number + t, t == length - 1 + final
            before = (value - 1, value - 0.5) if t else (0, 0.0)
            rows.append((value, *before, t == 0, end and final and terminated, end))
    return rows


def found_rows(arrived, lane):
    return [
        (int(o), int(a), float(r), bool(f), bool(d), bool(e))
        for o, a, r, f, d, e in zip(
            arrived.observations[lane, :, 0],
            arrived.actions[lane],
            arrived.rewards[lane],
            arrived.first[lane],
            arrived.terminated[lane],
            arrived.last[lane],
            strict=True,
        )
    ]


@pytest.mark.parametrize("length", [4, 9, 40])
def test_every_row_of_a_crossing_window_holds_what_arrived_together(length):
    expected, windows = expected_rows(), CrossingWindows(store_of(), length, 16, seed=3)
    total = len(expected)
    for step in range(4):
        rows, arrived = windows.rows(step), arrivals(windows.batch(step), context=1)
        for lane in range(16):
            wanted = [expected[row % total] for row in rows[lane, 1:]]
            found = found_rows(arrived, lane)
            assert found[:-1] == wanted[:-1]
            # whether the last row of a window ends an episode is known only where the flags say so
            assert found[-1][:5] == wanted[-1][:5]


def test_arrivals_lead_back_to_the_batch_they_came_from():
    batch = CrossingWindows(store_of(), 12, 16, seed=0).batch(0)
    arrived = arrivals(batch, context=1)
    going = ~arrived.first
    assert torch.equal(arrived.actions[going], batch.actions[:, :-1][going])
    assert torch.equal(arrived.rewards[going], batch.rewards[:, :-1][going])
    assert torch.equal(arrived.terminated[going], batch.terminated[:, :-1][going])
    assert float(arrived.rewards[~going].abs().sum()) == 0.0


def test_each_row_is_drawn_equally_often_at_every_place():
    windows, total = CrossingWindows(store_of(), 6, 100, seed=0), len(expected_rows())
    counts = np.zeros((6, total))
    for step in range(100):
        for place, rows in enumerate(windows.rows(step).T):
            counts[place] += np.bincount(rows, minlength=total)
    assert np.abs(counts / 10_000 - 1 / total).max() < 0.015


def test_a_batch_is_a_pure_function_of_seed_and_step():
    one, other = CrossingWindows(store_of(), 6, 8, seed=1), CrossingWindows(store_of(), 6, 8, seed=1)
    one.batch(3)
    assert torch.equal(one.batch(5).observations, other.batch(5).observations)
    assert not np.array_equal(one.rows(5), CrossingWindows(store_of(), 6, 8, seed=2).rows(5))


def test_rows_lie_where_they_lay_when_the_store_is_sealed_and_grows(tmp_path):
    store = store_of(path=tmp_path / "store")
    windows = CrossingWindows(store, 6, 8, seed=1)
    rows = windows.rows(0)
    before = windows.gather(rows)
    store.flush()
    store.append(Episode(np.zeros((3, 1), np.float32), np.zeros(2, np.int64), np.zeros(2, np.float32), True, False))
    after = windows.gather(rows)
    assert torch.equal(before.observations, after.observations)
    assert torch.equal(before.rewards, after.rewards)
    assert torch.equal(before.timesteps, after.timesteps)


def test_windows_of_single_episodes_begin_with_an_unknown_past():
    batch = store_of().windows(3, 16, seed=0).batch(0)
    arrived = arrivals(batch)
    assert arrived.first[:, 0].all()
    assert float(arrived.rewards[:, 0].abs().sum()) == 0.0
    assert torch.equal(arrived.rewards[:, 1:][arrived.valid[:, 1:]], batch.rewards[:, :-1][batch.valid[:, 1:]])


def test_an_empty_store_is_refused_with_the_mend():
    with pytest.raises(DataError, match=r"no row to draw from.*collect some first"):
        CrossingWindows(TrajectoryStore.create(None, SPACES), 4, 2, seed=0).batch(0)


def test_in_an_environment_whose_reward_tells_the_step_each_reward_arrives_behind_its_action():
    # Countdown observes [steps done, steps in all, noise] and pays the step before the action, plus the action.
    store = collect("seqwm-tests/Countdown-v0", None, 200, None, lanes=3, seed=4, progress=False)
    arrived = arrivals(CrossingWindows(store, 30, 8, seed=0).batch(0), context=1)
    done, length = arrived.observations[..., 0], arrived.observations[..., 1]
    assert torch.equal(arrived.first, done == 0)
    going = ~arrived.first
    torch.testing.assert_close(arrived.rewards[going], (done - 1 + arrived.actions[..., 0])[going])
    assert float(arrived.rewards[arrived.first].abs().sum()) == 0.0
    assert torch.equal(arrived.terminated, (done == length) & (length % 2 == 0))
    assert bool(arrived.last[done == length].all())
