"""Finite scalar quantisation: every coordinate is rounded to one of a few levels, and a code is which ones.

Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", 2023. There is no codebook to learn, and so none whose
entries die; gradients pass the rounding as if it were not there. Their bound is shifted for even numbers of levels;
here levels lie evenly on -1 .. 1, ends included, for either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FiniteScalar(nn.Module):
    """Vectors to the nearest of prod(levels) points.

    Args:
        levels: of each of D coordinates, 2 at least.

    Raises:
        ValueError: fewer than two levels.
    """

    highest: Tensor
    place: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels: found {list(levels)}, expected one number of at least 2 for each coordinate")
        self.size = math.prod(levels)
        self.register_buffer("highest", torch.tensor([level - 1 for level in levels]), persistent=False)
        places = [math.prod(levels[:number]) for number in range(len(levels))]
        self.register_buffer("place", torch.tensor(places), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [..., D] of any size to points in -1 .. 1, float32 [..., D], and their codes, int64 [...]."""
        bounded = x.float().tanh()
        digits = ((bounded + 1) / 2 * self.highest).round()
        points = digits / self.highest * 2 - 1
        code: Tensor = (digits.long() * self.place).sum(-1)
        return bounded + (points - bounded).detach(), code

    def values(self, code: Tensor) -> Tensor:
        """The point of each code, float32 [..., D]."""
        digits = code.unsqueeze(-1) // self.place % (self.highest + 1)
        return digits.float() / self.highest * 2 - 1
