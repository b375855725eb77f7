from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from seqwm.control.collect import collect
from seqwm.envs.make import make_vector
from seqwm.envs.rooms import BESIDE, DOOR_SILL, GOAL, RADIUS, REACH, moved

ID = "seqwm/TwoRooms-v0"


def test_it_is_an_environment_as_gymnasium_checks_them() -> None:
    check_env(gymnasium.make(ID, render_mode="rgb_array").unwrapped, skip_render_check=True)


def test_a_push_moves_by_its_share_of_the_reach() -> None:
    assert moved(np.array([0.3, 0.1]), np.array([1.0, -0.5])) == pytest.approx([0.3 + REACH, 0.1 - REACH / 2])
    assert moved(np.array([0.3, 0.1]), np.array([9.0, -9.0])) == pytest.approx([0.3 + REACH, 0.1 - REACH])
    assert moved(np.array([0.95, -0.45]), np.array([1.0, -1.0])).tolist() == [1.0, -0.5]


def test_the_wall_stops_what_crosses_below_the_door_and_lets_through_what_crosses_in_it() -> None:
    below, above = np.array([-0.05, 0.0]), np.array([-0.05, 0.3])
    assert moved(below, np.array([1.0, 0.2])) == pytest.approx([-BESIDE, 0.2 * REACH])
    assert moved(above, np.array([1.0, 0.2])) == pytest.approx([REACH - 0.05, 0.3 + 0.2 * REACH])
    back = np.array([0.05, 0.0])
    assert moved(back, np.array([-1.0, 0.0])) == pytest.approx([BESIDE, 0.0])
    # two thirds of the way to the wall the line is still below the sill, at the wall it is above
    slope = np.array([-0.1, DOOR_SILL - 0.09])
    assert moved(slope, np.array([0.9, 0.9]))[0] > 0
    assert moved(slope - [0, 0.02], np.array([0.9, 0.9]))[0] == -BESIDE


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=60), st.integers(0, 1000))
def test_nobody_is_ever_found_in_the_other_room_without_a_step_through_the_door(pushes, seed) -> None:
    place = np.random.default_rng(seed).uniform([-1, -0.5], [1, 0.5])
    for push in pushes:
        before, place = place, moved(place, np.array(push))
        assert -1 <= place[0] <= 1
        assert -0.5 <= place[1] <= 0.5
        if (before[0] < 0) != (place[0] < 0):
            at_wall = np.interp(0.0, *zip(*sorted([tuple(before), tuple(place)]), strict=True))
            assert at_wall >= DOOR_SILL - 1e-9


def test_the_reward_is_one_for_arriving_which_ends_the_episode() -> None:
    environment = gymnasium.make(ID)
    environment.reset(seed=0)
    environment.unwrapped._place = (GOAL - [RADIUS + REACH - 0.01, 0]).astype(np.float32)
    _, reward, terminated, _, _ = environment.step(np.array([-1, 0], np.float32))
    assert (reward, terminated) == (0.0, False)
    environment.step(np.array([1, 0], np.float32))
    _, reward, terminated, truncated, _ = environment.step(np.array([1, 0], np.float32))
    assert (reward, terminated, truncated) == (1.0, True, False)


def test_the_far_start_is_behind_the_wall_and_a_known_way_leads_from_it_to_the_goal() -> None:
    vector = make_vector(ID, 50, options={"start": "far"})
    observation, _ = vector.reset(seed=0)
    assert (observation[:, 0] < -0.69).all()
    assert (observation[:, 1] < -0.19).all()
    rewards = 0
    for step in range(30):
        waypoint = [-0.1, 0.35] if step < 8 else [0.1, 0.35] if step < 12 else GOAL
        observation, reward, _, _, _ = vector.step(((waypoint - observation) / REACH).clip(-1, 1).astype(np.float32))
        rewards += reward.sum()
    assert rewards == 50


def test_a_random_walk_logs_starts_everywhere_and_an_end_after_a_hundred_steps() -> None:
    store = collect(ID, None, 3000, None, lanes=8, progress=False)
    starts = np.stack([episode.observations[0] for episode in store.episodes()])
    assert (starts[:, 0] < 0).any()
    assert (starts[:, 0] > 0).any()
    assert store.lengths.max() == 100
    assert (store.returns == store.terminated).all()


def test_the_picture_shows_point_goal_and_wall() -> None:
    environment = gymnasium.make(ID, render_mode="rgb_array", start="far")
    environment.reset(seed=0)
    picture = environment.render()
    assert picture.shape == (100, 200, 3)
    assert tuple(picture[90, 100]) != tuple(picture[10, 100])
    assert len({tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}) == 4
    with pytest.raises(ValueError, match="start: found 'near', expected 'anywhere' or 'far'"):
        gymnasium.make(ID, start="near")
