"""Inverse dynamics: a move looks the same wherever it happens."""

from __future__ import annotations

import torch

from seqwm.nn.inverse_dynamics import InverseDynamics, with_neighbours


def moved(row, column):
    frames = torch.zeros(1, 2, 3, 24, 24)
    frames[:, 0, :, row : row + 2, column : column + 2] = 1
    frames[:, 1, :, row : row + 2, column + 1 : column + 3] = 1
    return frames


def test_a_move_far_from_the_border_looks_the_same_wherever_it_happens():
    torch.manual_seed(0)
    model = InverseDynamics(2, 3, 4, 16)
    torch.testing.assert_close(model(moved(8, 10)), model(moved(12, 8)))
    assert (model(moved(8, 10)) - model(moved(8, 10).flip(1))).abs().max() > 1e-4


def test_what_stands_still_far_from_a_move_is_not_seen_without_labels():
    torch.manual_seed(0)
    model = InverseDynamics(2, 3, 4, 16, 2, changed=0.1)
    frames, scene = moved(8, 10), moved(8, 10)
    scene[..., 20:22, 4:6] = 1
    torch.testing.assert_close(model(scene), model(frames))
    scene[:, 1, :, 20:22, 4:6] = 0
    assert (model(scene) - model(frames)).abs().max() > 1e-4


def test_without_what_is_around_it_a_move_looks_the_same_before_any_scene():
    torch.manual_seed(0)
    model = InverseDynamics(2, 3, 4, 16, 2, changed=0.1, around=False)
    frames, scene = moved(8, 10), moved(8, 10)
    scene[..., 7, 8:15] = scene[..., 12, 8:15] = 0.5
    torch.testing.assert_close(model(scene), model(frames))
    assert (model(moved(9, 10)) - model(frames)).abs().max() > 1e-4


def test_a_step_that_is_seen_from_any_direction_is_the_same_turned_and_another_mirrored():
    torch.manual_seed(0)
    model = InverseDynamics(2, 3, 4, 16, any_direction=True)
    frames = moved(8, 10)
    frames[:, 1, :, 10] = frames[:, 1, :, 8]  # it moves and leaves something on one side
    for turns in range(1, 4):
        torch.testing.assert_close(model(frames.rot90(turns, (-2, -1))), model(frames))
    assert (model(frames.flip(-1)) - model(frames)).abs().max() > 1e-4


def test_squares_that_hold_something_and_those_next_to_them_are_told_from_the_rest():
    pixels = torch.zeros(1, 1, 8, 12)
    pixels[0, 0, 1, 5] = 1
    expected = torch.zeros(1, 1, 8, 12)
    expected[..., :4, 2:8] = 1  # of squares of 2 pixels the one in row 0 and column 2
    assert torch.equal(with_neighbours(pixels, 2), expected)
