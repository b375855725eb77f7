from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from seqwm.core.errors import DataError
from seqwm.core.tree import flatten
from seqwm.core.types import Episode, Spaces
from seqwm.data import store as store_module
from seqwm.data import windows as windows_module
from seqwm.data.store import TrajectoryStore
from tests.strategies import episode_sets, random_episode

SPACES = Spaces(
    gym_spaces.Dict(
        state=gym_spaces.Box(-np.inf, np.inf, (3,), np.float64), frame=gym_spaces.Box(0, 255, (4, 4, 3), np.uint8)
    ),
    gym_spaces.Discrete(4),
)


def make(count=9, seed=0, path=None, spaces=SPACES):
    rng = np.random.default_rng(seed)
    store = TrajectoryStore.create(path, spaces)
    for number in range(count):
        end = ("terminated", "truncated", "open")[number % 3]
        store.append(random_episode(spaces, int(rng.integers(1, 30)), rng, end=end))
    return store


def equal(one, other):
    for field in dataclasses.fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if left is None or right is None:
            assert left is right
            continue
        left, right = flatten(left), flatten(right)
        for path in left:
            assert torch.equal(left[path], right[path]), field.name
    return True


def equal_draws(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def by_hand(store, episode_number, step, length):
    """One window built from the definition, row by row."""
    episode = store.episode(episode_number)
    rows = list(range(max(0, step - length + 1), step + 1))
    returns = (
        [float(np.sum(episode.rewards[t:], dtype=np.float64)) for t in rows] if episode.rewards is not None else None
    )
    return episode, rows, returns


@settings(max_examples=60, deadline=None)
@given(episode_sets(max_episodes=6, max_length=9), st.integers(1, 12), st.integers(0, 50), st.booleans())
def test_a_batch_holds_the_rows_that_its_draw_names(content, length, step, small_parts):
    spaces, rewards, episodes = content
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if small_parts:
            patch.setattr(store_module, "ARENA_BYTES", 64)
        store = TrajectoryStore.create(Path(folder) / "store", spaces, rewards=rewards)
        for episode in episodes:
            store.append(episode)
        windows = store.windows(length, 5, seed=3)
        numbers, steps = windows.drawn(step)
        batch = windows.batch(step)
        for row, (number, end) in enumerate(zip(numbers, steps, strict=True)):
            episode, rows, returns = by_hand(store, int(number), int(end), length)
            n = len(rows)
            assert batch.valid[row].tolist() == [True] * n + [False] * (length - n)
            assert batch.timesteps[row].tolist() == rows + [0] * (length - n)
            for name, tree in (("observations", episode.observations), ("actions", episode.actions)):
                if tree is None:
                    assert getattr(batch, name) is None
                    continue
                found = flatten(getattr(batch, name))
                for path, leaf in flatten(tree).items():
                    got = found[path][row].numpy()
                    np.testing.assert_array_equal(got[:n], leaf[rows].astype(got.dtype))
                    assert not got[n:].any()
            ends = [t == len(episode) - 1 for t in rows] + [False] * (length - n)
            assert batch.terminated[row].tolist() == [episode.terminated and e for e in ends]
            assert batch.truncated[row].tolist() == [episode.truncated and e for e in ends]
            if rewards:
                np.testing.assert_array_equal(batch.rewards[row, :n].numpy(), episode.rewards[rows])
                np.testing.assert_allclose(batch.returns_to_go[row, :n].numpy(), returns, rtol=1e-6, atol=1e-6)


def test_a_batch_is_a_pure_function_of_seed_and_step():
    store = make()
    first, second = store.windows(7, 16, seed=5), store.windows(7, 16, seed=5)
    forwards = [first.batch(step) for step in range(10)]
    for step in (9, 0, 4):  # any order, any instance
        assert equal(second.batch(step), forwards[step])
    for step, batch in zip(range(10), second, strict=False):
        assert equal(batch, forwards[step])
    other = store.windows(7, 16, seed=6).drawn(0)
    assert not equal_draws(other, first.drawn(0))


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_shares_of_all_processes_make_the_batch_of_one(world_size):
    store = make()
    whole = store.windows(5, 8, seed=1)
    shares = [store.windows(5, 8, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in range(4):
        together = np.concatenate([np.stack(share.drawn(step)) for share in shares], axis=1)
        np.testing.assert_array_equal(together, np.stack(whole.drawn(step)))


def test_every_transition_is_drawn_equally_often():
    store = make(count=4)
    windows = store.windows(1, 512, seed=0)
    counts = np.zeros((4, 30))
    for step in range(200):
        np.add.at(counts, windows.drawn(step), 1)
    seen = counts[counts > 0]
    assert len(seen) == store.rows
    expected = 200 * 512 / store.rows
    chi_squared = ((seen - expected) ** 2 / expected).sum()
    assert chi_squared < store.rows + 5 * np.sqrt(2 * store.rows)


def test_windows_may_be_drawn_from_some_episodes_only():
    store = make()
    windows = store.windows(4, 64, seed=0, episodes=[7, 2])
    assert windows.rows == int(store.lengths[[7, 2]].sum())
    drawn, steps = windows.drawn(3)
    assert set(drawn.tolist()) == {2, 7}
    assert (steps < store.lengths[drawn]).all()
    assert (steps >= 0).all()


def test_a_growing_store_is_drawn_from_as_it_stands():
    store = make(count=2)
    windows = store.windows(3, 32, seed=0)
    before_drawn = windows.drawn(1)
    for episode in list(make(count=3, seed=4).episodes()):
        store.append(episode)
    numbers = np.concatenate([windows.drawn(step)[0] for step in range(20)])
    assert numbers.max() == 4
    assert not equal_draws(before_drawn, windows.drawn(1))


def test_discounted_returns_follow_their_recursion():
    spaces = Spaces(gym_spaces.Box(-np.inf, np.inf, (1,), np.float32), gym_spaces.Discrete(2))
    store = make(count=3, spaces=spaces)
    windows = store.windows(50, 3, discount=0.9)
    batch = windows.gather(np.arange(3), store.lengths - 1)
    for row in range(3):
        rewards = store.episode(row).rewards.astype(np.float64)
        for t in range(len(rewards)):
            wanted = sum(0.9**k * r for k, r in enumerate(rewards[t:]))
            assert batch.returns_to_go[row, t] == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_a_store_too_large_to_map_is_read_by_the_window(tmp_path, monkeypatch):
    mapped = make(path=tmp_path / "store")
    mapped.flush()
    wanted = [mapped.windows(4, 8).batch(step) for step in range(30)]
    monkeypatch.setattr(windows_module, "MAPPED", 0)
    store = TrajectoryStore.open(tmp_path / "store")
    last = len(store) - 1  # its windows end where the file's rows end
    ends = mapped.windows(4, 8).gather(np.full(3, last), np.arange(3))
    assert equal(store.windows(4, 8).gather(np.full(3, last), np.arange(3)), ends)
    assert all(equal(store.windows(4, 8).batch(step), batch) for step, batch in enumerate(wanted))


def test_a_file_cut_after_it_was_opened_is_no_source_of_windows(tmp_path, monkeypatch):
    make(path=tmp_path / "store").close()
    monkeypatch.setattr(windows_module, "MAPPED", 0)
    windows = TrajectoryStore.open(tmp_path / "store").windows(4, 64)
    file = max((tmp_path / "store").rglob("*.arrow"), key=lambda file: file.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(DataError, match="bytes at"):
        windows.batch(0)


def test_a_store_without_episodes_has_no_windows():
    with pytest.raises(DataError, match="empty-dataset"):
        TrajectoryStore.create(None, SPACES).windows()


def test_a_batch_size_that_processes_cannot_share_is_refused():
    with pytest.raises(ValueError, match="multiple of the 3 processes"):
        make(count=1).windows(batch_size=64, world_size=3)


def test_with_an_overrun_every_row_stands_at_every_place_of_a_window_equally_often():
    spaces = Spaces(gym_spaces.Discrete(4), gym_spaces.Discrete(4))
    store = make(count=6, spaces=spaces)
    windows = store.windows(4, 16, overrun=3)
    assert windows.rows == store.rows + 3 * int(store.terminated.sum())
    places = {number: [] for number in np.flatnonzero(store.terminated)}
    for number, seen in places.items():
        length = int(store.lengths[number])
        steps = np.arange(length + 3)
        batch = windows.gather(np.full_like(steps, number), steps)
        for row, place in zip(*np.nonzero(batch.valid.numpy()), strict=True):
            step = int(batch.timesteps[row, place])
            seen.append((step, int(place)))
            assert bool(batch.terminated[row, place]) == (step == length - 1)
        ends = np.minimum(steps, length - 1) - np.maximum(steps - 3, 0)
        assert np.array_equal(batch.valid.sum(1).numpy(), ends + 1)
        assert np.array_equal(batch.valid.sum(1).numpy() < 4, (steps < 3) | (steps >= length))
        full = [(step, place) for step, place in seen if step >= 3]
        assert sorted(full) == [(step, place) for step in range(3, length) for place in range(4)]


def test_no_window_ends_behind_an_episode_that_was_merely_cut():
    store = make(count=9)
    windows = store.windows(5, 4096, overrun=4)
    episodes, steps = windows.drawn(0)
    behind = steps >= store.lengths[episodes]
    assert behind.any()
    assert store.terminated[episodes[behind]].all()
    assert (steps < store.lengths[episodes] + 4).all()


def test_an_end_reward_stands_for_the_last_reward_of_what_terminated_and_of_nothing_else():
    store = make(count=9)
    for number in range(9):
        episode = store.episode(number)
        steps = np.arange(len(episode))
        batch = store.windows(1, 1, discount=0.9, end_reward=-7.0).gather(np.full_like(steps, number), steps)
        rewards = episode.rewards.astype(np.float64)
        if episode.terminated:
            rewards[-1] = -7.0
        returns = [sum(0.9**k * r for k, r in enumerate(rewards[t:])) for t in range(len(rewards))]
        assert np.allclose(batch.rewards[:, 0].numpy(), rewards)
        assert np.allclose(batch.returns_to_go[:, 0].numpy(), returns, atol=1e-5)


def test_an_overrun_as_long_as_the_window_is_refused():
    with pytest.raises(ValueError, match="overrun 5: expected at least 0 and less than the 5 rows"):
        make().windows(5, 8, overrun=5)


@pytest.mark.parametrize("mapped", [0, 1 << 30])
def test_what_follows_a_window_is_the_observation_behind_its_last_action_the_final_one_among_them(
    mapped, tmp_path, monkeypatch
):
    monkeypatch.setattr(windows_module, "MAPPED", mapped)
    store = make(count=9, path=tmp_path / "store")
    store.flush()
    windows = store.windows(4, 64, following=True)
    for number in range(9):
        episode = store.episode(number)
        steps = np.arange(len(episode))
        batch = windows.gather(np.full_like(steps, number), steps)
        for path, leaf in flatten(batch.following).items():
            wanted = flatten(episode.observations)[path][1:]
            assert np.allclose(leaf.numpy(), wanted)
            assert leaf.dtype == flatten(batch.observations)[path].dtype
    assert windows.rows == store.rows


def test_no_window_ends_where_nothing_that_follows_was_logged():
    spaces = Spaces(gym_spaces.Discrete(9), gym_spaces.Discrete(2))
    store = TrajectoryStore.create(None, spaces)
    zero = np.zeros
    store.append(Episode(np.arange(3), zero(3, np.int64), zero(3, np.float32), False, True, final_observation=False))
    store.append(Episode(np.arange(4), zero(3, np.int64), zero(3, np.float32), True, False))
    windows = store.windows(2, 256, following=True)
    batch = windows.batch(0)
    seen = batch.observations.gather(1, batch.valid.sum(1, keepdim=True) - 1)[:, 0]
    assert windows.rows == 5
    assert torch.equal(batch.following, seen + 1)
    assert set(seen[batch.terminated.any(1)].tolist()) == {2}
    with pytest.raises(ValueError, match="episode 0 was logged without a final observation"):
        windows.gather(np.array([0]), np.array([2]))
    with pytest.raises(ValueError, match="overrun and following"):
        store.windows(2, 1, overrun=1, following=True)


def test_a_share_of_the_windows_ends_where_episodes_do_whichever_process_draws_them():
    store = make(count=9)
    windows = store.windows(4, 64, seed=3, ends=0.25)
    episodes, steps = windows.drawn(5)
    assert (steps[:16] == store.lengths[episodes[:16]] - 1).all()
    assert len(set(episodes[:16].tolist())) > 4
    assert equal_draws(
        [part[16:] for part in windows.drawn(5)], [part[16:] for part in store.windows(4, 64, 3).drawn(5)]
    )
    shares = [store.windows(4, 64, seed=3, ends=0.25, rank=rank, world_size=4).drawn(5) for rank in range(4)]
    assert equal_draws([np.concatenate(parts) for parts in zip(*shares, strict=True)], (episodes, steps))
    with pytest.raises(ValueError, match="ends 1: expected a share"):
        store.windows(4, 64, ends=1)
