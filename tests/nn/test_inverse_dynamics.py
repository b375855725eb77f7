"""Inverse dynamics: a move looks the same wherever it happens."""

from __future__ import annotations

import torch

from seqwm.nn.inverse_dynamics import InverseDynamics


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
