"""A variational autoencoder of frames (Kingma and Welling, "Auto-Encoding Variational Bayes", 2014).

Strided convolutions down to SMALLEST pixels a side and back, as in the appendix of Ha and Schmidhuber, "World Models",
2018, whose 64 pixels take four of them.
"""

from __future__ import annotations

import itertools
import math

from torch import Tensor, nn

SMALLEST = 4
"""Pixels along each side where convolution ends."""


class VariationalFrames(nn.Module):
    """Encoder and decoder of square frames.

    Args:
        shape: of a frame, [H, H, C], H a power of two and at least SMALLEST.
        latent: numbers in z.
    """

    def __init__(self, shape: tuple[int, ...], latent: int) -> None:
        super().__init__()
        side, _, channels = shape
        halvings = side.bit_length() - SMALLEST.bit_length()
        widths = [channels, *(min(32 * 2**i, 256) for i in range(halvings))]
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            down += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
            up = [nn.ReLU(), nn.ConvTranspose2d(after, before, 4, stride=2, padding=1), *up]
        self.down, self.up = nn.Sequential(*down), nn.Sequential(*up)
        self.features = (widths[-1], SMALLEST, SMALLEST)
        self.parameters_of_z = nn.Linear(math.prod(self.features), 2 * latent)
        self.restore = nn.Linear(latent, math.prod(self.features))

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of z, [N, Z] each, of frames uint8 [N, H, H, C]."""
        mean, spread = self.parameters_of_z(self.down(scaled(frames)).flatten(1)).chunk(2, -1)
        return mean, spread.clamp(-7, 5).exp()

    def decode(self, z: Tensor) -> Tensor:
        """Frames [N, C, H, H] in 0 .. 1 that z [N, Z] stands for."""
        frames: Tensor = self.up(self.restore(z).unflatten(1, self.features)).sigmoid()
        return frames


def divergence(mean: Tensor, deviation: Tensor) -> Tensor:
    """Of a normal distribution from the standard one, in nats, entry by entry."""
    return 0.5 * (mean.square() + deviation.square() - 1) - deviation.log()


def scaled(frames: Tensor) -> Tensor:
    """uint8 [N, H, W, C] to float [N, C, H, W] in 0 .. 1."""
    return frames.movedim(-1, 1).float() / 255
