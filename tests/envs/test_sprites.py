"""The sprite world: its rules, and that a frame tells its whole state."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from seqwm.envs.make import make_vector
from seqwm.envs.sprites import (
    BODY,
    MOVES,
    TILES,
    Sprite,
    blocked_places,
    moved,
    sprite_places,
    wall_tiles,
)


def played(pixels=16, episodes=20, seed=0):
    """Rows of (environment, frame before, action, sprite before, frame after, reward, ended) of random play."""
    draw = np.random.default_rng(seed)
    world = Sprite(pixels)
    for episode in range(episodes):
        frame, _ = world.reset(seed=episode)
        ended, steps = False, 0
        while not ended and steps < 50:
            action, place = int(draw.integers(len(MOVES))), world.sprite.copy()
            after, reward, ended, _, _ = world.step(action)
            yield world, frame, action, place, after, reward, ended
            frame, steps = after, steps + 1


@pytest.mark.parametrize("pixels", [16, 32, 48])
def test_the_sprite_is_read_off_every_frame_where_it_is(pixels):
    for world, _, _, _, after, _, _ in played(pixels, 4):
        np.testing.assert_array_equal(sprite_places(after), world.sprite)


def test_what_moved_says_from_a_frame_alone_is_what_happens():
    blocked_moves = 0
    for _, frame, action, place, after, _, _ in played():
        expected = moved(sprite_places(frame), np.array(action), blocked_places(wall_tiles(frame)))
        np.testing.assert_array_equal(sprite_places(after), expected)
        blocked_moves += action != 0 and (expected == place).all()
    assert blocked_moves > 10


def test_moved_takes_many_boards_at_once():
    rows = [(frame, action) for _, frame, action, _, _, _, _ in played(episodes=3)]
    frames, actions = np.stack([frame for frame, _ in rows]), np.array([action for _, action in rows])
    blocked = blocked_places(wall_tiles(frames))
    together = moved(sprite_places(frames), actions, blocked)
    alone = [moved(sprite_places(f), a, b) for f, a, b in zip(frames, actions, blocked, strict=True)]
    np.testing.assert_array_equal(together, alone)


def test_a_body_is_blocked_where_any_of_its_tiles_is_a_wall():
    draw = np.random.default_rng(0)
    tiles = draw.random((TILES, TILES)) < 0.1
    blocked = blocked_places(tiles)
    for row in range(TILES - BODY + 1):
        for column in range(TILES - BODY + 1):
            assert blocked[row, column] == tiles[row : row + BODY, column : column + BODY].any()


def test_reward_and_end_come_with_touching_and_never_otherwise():
    rewards = []
    for world, _, _, _, _, reward, ended in played(episodes=60):
        hit = (np.abs(world.sprite - world.ball) < BODY).all()
        found = (np.abs(world.sprite - world.coin) < BODY).all()
        assert (reward, ended) == (-1.0 if hit else float(found), hit or found)
        rewards.append(reward)
    assert {-1.0, 0.0, 1.0} == set(rewards)


def test_the_ball_moves_at_most_one_tile_along_each_axis_and_never_into_a_wall():
    world = Sprite(16)
    for seed in range(10):
        world.reset(seed=seed)
        for _ in range(40):
            before = world.ball
            world.step(0)
            assert np.abs(world.ball - before).max() <= 1
            assert not world._blocked[tuple(world.ball)]


def test_the_same_seed_and_actions_give_the_same_frames_in_a_vector_environment():
    vectors = [make_vector("seqwm/Sprite-v0", 3, options={"pixels": 16}) for _ in range(2)]
    first = [vector.reset(seed=5)[0] for vector in vectors]
    np.testing.assert_array_equal(first[0], first[1])
    assert first[0].shape == (3, 16, 16, 3)
    assert len({frame.tobytes() for frame in first[0]}) == 3
    for action in (1, 4, 2):
        steps = [vector.step(np.full(3, action)) for vector in vectors]
        np.testing.assert_array_equal(steps[0][0], steps[1][0])


def test_it_passes_gymnasiums_own_check_and_is_truncated_after_fifty_steps():
    from gymnasium.utils.env_checker import check_env

    environment = gymnasium.make("seqwm.envs:seqwm/Sprite-v0", render_mode="rgb_array")
    check_env(environment.unwrapped, skip_render_check=True)
    assert environment.spec is not None
    assert environment.spec.max_episode_steps == 50


def test_a_size_that_tiles_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="pixels: found 20, expected a multiple of 16"):
        Sprite(20)
