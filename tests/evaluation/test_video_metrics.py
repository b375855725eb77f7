"""Figures of video against closed forms and brute force, and worlds that obey by construction or do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from seqwm.control.collect import collect
from seqwm.core.protocols import Step
from seqwm.envs.sprites import Sprite, blocked_places, moved, sprite_places, wall_tiles
from seqwm.evaluation.video_metrics import (
    MOVING,
    clips,
    delta_psnr,
    dreamt,
    drift,
    judge,
    moving,
    obedience,
    one_step,
    psnr,
    ssim,
)

HORIZON = 4


class SpriteRules:
    """A world that draws the sprite where it must be; `deaf`, it does something else than it is told."""

    def __init__(self, deaf=False):
        self.deaf = deaf

    def encode(self, context):
        last = context.valid.sum(1) - 1
        return {"frame": context.observations[torch.arange(len(last)), last]}

    def step(self, state, action, generator):
        frames = state["frame"].numpy().copy()
        places, blocked = sprite_places(frames), blocked_places(wall_tiles(frames))
        acts = (action.numpy() + 1) % 5 if self.deaf else action.numpy()
        after = moved(places, acts, blocked)
        scale = frames.shape[1] // 16
        for frame, (r, c), (r2, c2) in zip(frames, places, after, strict=True):
            body = frame[r * scale, c * scale].copy()
            frame[r * scale : (r + 2) * scale, c * scale : (c + 2) * scale] = 20
            frame[r2 * scale : (r2 + 2) * scale, c2 * scale : (c2 + 2) * scale] = body
        lanes = len(frames)
        return Step({"frame": torch.from_numpy(frames)}, torch.zeros(lanes), torch.zeros(lanes, dtype=torch.bool))

    def decode(self, state):
        return state["frame"]


@pytest.fixture(scope="module")
def store():
    return collect("seqwm/Sprite-v0", None, 3000, None, options={"pixels": 16}, progress=False)


def expected_places(frames, actions):
    before = sprite_places(frames)
    after = moved(before, actions, blocked_places(wall_tiles(frames)))
    return np.where(((after == before).all(-1) & (actions != 0))[:, None], -1, after)


def random_frames(shape, seed):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_psnr_of_a_constant_error_is_its_closed_form_and_errors_are_pooled_before_the_logarithm():
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(frames, frames + np.uint8(5)) == pytest.approx(20 * math.log10(255 / 5))
    mixed = frames.copy()
    mixed[1] = 10
    assert psnr(frames, mixed) == pytest.approx(20 * math.log10(255) - 10 * math.log10(50))
    assert psnr(frames, frames) == 100.0


def test_moving_pixels_are_those_above_the_threshold_and_psnr_takes_only_them():
    before = np.full((1, 2, 2, 3), 100, np.uint8)
    after = before.copy()
    after[0, 0, 0, 1] += MOVING + 1
    after[0, 1, 1, 2] -= MOVING
    where = moving(before, after)
    assert where.tolist() == [[[True, False], [False, False]]]
    error = (MOVING + 1) ** 2 / 3
    assert psnr(before, after, where) == pytest.approx(20 * math.log10(255) - 10 * math.log10(error))


def test_ssim_equals_a_sum_over_every_window_one_by_one():
    frames, others = random_frames((2, 13, 12, 3), 0), random_frames((2, 13, 12, 3), 1)
    others = (0.5 * frames + 0.5 * others).astype(np.uint8)
    weights = np.exp(-np.square(np.arange(11) - 5) / (2 * 1.5**2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    c1, c2, found = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for frame, other in zip(frames.astype(float), others.astype(float), strict=True):
        for row in range(3):
            for column in range(2):
                for colour in range(3):
                    x, y = (f[row : row + 11, column : column + 11, colour] for f in (frame, other))
                    mu, nu = (window * x).sum(), (window * y).sum()
                    var, other_var = (window * (x - mu) ** 2).sum(), (window * (y - nu) ** 2).sum()
                    both = (window * (x - mu) * (y - nu)).sum()
                    found.append((2 * mu * nu + c1) * (2 * both + c2) / ((mu**2 + nu**2 + c1) * (var + other_var + c2)))
    assert ssim(frames, others) == pytest.approx(np.mean(found), rel=1e-9)
    assert ssim(frames, frames) == pytest.approx(1.0)


def test_clips_are_rows_of_the_log_and_begin_where_their_context_ends(store):
    given = clips(store, 3, HORIZON, 20)
    assert given.frames.shape == (20, HORIZON + 1, 16, 16, 3)
    np.testing.assert_array_equal(given.frames[:, 0], given.context.observations[:, -1].numpy())
    assert given.context.valid.all()
    places = sprite_places(given.frames)
    for t in range(HORIZON):
        blocked = blocked_places(wall_tiles(given.frames[:, t]))
        np.testing.assert_array_equal(moved(places[:, t], given.actions[:, t].numpy(), blocked), places[:, t + 1])
    with pytest.raises(ValueError, match="no episode of 102 steps"):
        clips(store, 3, 100, 20)


def test_a_world_that_copies_has_the_psnr_of_copying_and_drifts_as_it_does(store):
    given = clips(store, 1, HORIZON, 30)
    still = np.repeat(given.frames[:, :1], HORIZON + 1, 1)
    figures = one_step(given.frames, still)
    assert figures.psnr == figures.copied > 15
    assert figures.moving_psnr == figures.moving_copied < figures.copied
    along, copied = drift(given.frames, still)
    assert along == copied
    assert drift(given.frames, given.frames)[0] == [100.0] * HORIZON


def test_obedience_is_one_of_a_world_by_the_rules_and_little_of_one_that_does_something_else(store):
    given = clips(store, 1, HORIZON, 60)

    def read(before, after):
        return sprite_places(after)

    assert obedience(SpriteRules(), given, 5, read, expected_places) == 1.0
    assert obedience(SpriteRules(deaf=True), given, 5, read, expected_places) < 0.1
    with pytest.raises(ValueError, match="of no step"):
        obedience(SpriteRules(), given, 5, read, lambda frames, actions: np.full((len(frames), 1), -1))


def test_true_actions_lead_nearer_to_the_truth_than_those_of_others_where_actions_count(store):
    given = clips(store, 1, HORIZON, 60)
    assert delta_psnr(SpriteRules(), given) > 1.0
    assert delta_psnr(SpriteRules(), given, step=HORIZON) > 1.0


def test_a_judge_learns_which_action_lies_between_real_frames_and_finds_it_in_obedient_dreams(store):
    inverse = judge(store, 5, updates=150)

    def named(before, after):
        return inverse.name(np.stack([before, after], 1))

    given = clips(store, 1, HORIZON, 100)
    before, after, actions = given.frames[:, 0], given.frames[:, 1], given.actions[:, 0].numpy()
    told = (expected_places(before, actions) >= 0).all(-1)
    assert (named(before, after) == actions)[told].mean() > 0.9

    def wanted(frames, actions):
        return np.where((expected_places(frames, actions) >= 0).all(-1), actions, -1)

    assert obedience(SpriteRules(), given, 5, named, wanted) > 0.9
    assert obedience(SpriteRules(deaf=True), given, 5, named, wanted) < 0.2


def test_a_dream_goes_on_from_the_context_step_by_step(store):
    given = clips(store, 1, HORIZON, 5)
    dream = dreamt(SpriteRules(), given.context, given.actions)
    np.testing.assert_array_equal(dream[:, 0], given.frames[:, 0])
    np.testing.assert_array_equal(sprite_places(dream), sprite_places(given.frames))
    assert Sprite(16).observation_space.contains(dream[0, -1])
