"""Predicted frames beside what happened: closed forms of constant errors, and video without actions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from seqwm.core.protocols import Step
from seqwm.evaluation.frame_table import frame_table
from seqwm.evaluation.prediction import Rollouts, predict
from tests.fakes.frames import shaded_logs


def test_errors_are_pooled_over_the_clips_that_go_on_so_far_and_moving_pixels_are_those_that_changed_since():
    before = np.full((2, 12, 12, 3), 100, np.uint8)
    happened = np.repeat(before[:, None], 2, 1)
    happened[:, :, 0, 0] = 200  # one pixel moves, and stays so
    predicted = happened.copy()
    predicted[0, 0] += 4
    predicted[1, 1] += 9  # where the log of the second clip has ended
    predicted[0, 1, 0, 0] -= 10
    nothing = np.zeros((2, 2), np.float32)
    there = np.array([[True, True], [True, False]])
    table = frame_table(Rollouts({"": before}, {"": predicted}, {"": happened}, nothing, None, there), "")

    def decibels(error):
        return pytest.approx(20 * math.log10(255) - 10 * math.log10(error))

    assert table.horizons == [1, 2]
    assert table.psnr == [decibels(16 / 2), decibels(100 / 144)]
    assert table.copied == [decibels(100**2 / 144)] * 2
    assert table.moving_psnr == [decibels(16 / 2), decibels(100)]
    assert table.moving_copied == [decibels(100**2)] * 2
    assert str(table).splitlines()[0].split() == ["horizon", "PSNR", "copied", "moving", "pixels", "copied", "SSIM"]


class Still:
    """A world of video without actions, in which nothing moves."""

    def encode(self, context):
        lanes = torch.arange(len(context.valid))
        return {"frame": context.observations[lanes, context.valid.sum(1) - 1]}

    def step(self, state, action, generator):
        assert action.shape == (len(state["frame"]),)
        return Step(state, torch.zeros(len(action)), torch.zeros(len(action), dtype=torch.bool))

    def decode(self, state):
        return state["frame"]


def test_video_without_actions_is_predicted_and_a_world_in_which_nothing_moves_copies():
    store = shaded_logs(episodes=4, pixels=12, actions=False, rewards=False)
    table = frame_table(predict(Still(), store.windows(3, 1), horizon=3, contexts=20), "")
    assert table.psnr == table.copied
    assert table.moving_psnr == table.moving_copied
