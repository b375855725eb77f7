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

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels: found {list(levels)}, expected one number of at least 2 for each coordinate")
        self.size = math.prod(levels)
        self._levels = tuple(levels)

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The highest digit and the place value of each coordinate; no buffers, which a loaded model would lack."""
        places = [math.prod(self._levels[:number]) for number in range(len(self._levels))]
        return torch.tensor(self._levels, device=device) - 1, torch.tensor(places, device=device)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [..., D] of any size to points in -1 .. 1, float32 [..., D], and their codes, int64 [...]."""
        highest, place = self._constants(x.device)
        bounded = x.float().tanh()
        digits = ((bounded + 1) / 2 * highest).round()
        points = digits / highest * 2 - 1
        code: Tensor = (digits.long() * place).sum(-1)
        return bounded + (points - bounded).detach(), code

    def values(self, code: Tensor) -> Tensor:
        """The point of each code, float32 [..., D]."""
        highest, place = self._constants(code.device)
        digits = code.unsqueeze(-1) // place % (highest + 1)
        return digits.float() / highest * 2 - 1
