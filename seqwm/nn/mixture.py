"""Mixtures of normal distributions of vectors (Bishop, "Mixture Density Networks", 1994).

The whole vector is drawn from one of K normals with independent entries. Were every entry drawn from a mixture of its
own, a vector of two possible futures would be put together of both.

A mixture is log-shares [..., K], means [..., K, Z] and log-deviations [..., K, Z].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Mixture(NamedTuple):
    """K normals of vectors of Z numbers."""

    shares: Tensor
    mean: Tensor
    spread: Tensor


def outputs_of(size: int, normals: int) -> int:
    """How many outputs of a network a mixture takes."""
    return normals * (1 + 2 * size)


def mixture_of(outputs: Tensor, size: int) -> Mixture:
    """What a network's outputs [..., K (1 + 2 Z)] stand for, with Z = `size`."""
    shares, mean, spread = outputs.unflatten(-1, (-1, 1 + 2 * size)).split([1, size, size], -1)
    return Mixture(shares[..., 0].log_softmax(-1), mean, spread.clamp(-7, 5))


def mixture_log_probability(mixture: Mixture, value: Tensor) -> Tensor:
    """Log-density [...] of value [..., Z]."""
    shares, mean, spread = mixture
    surprise = 0.5 * ((value[..., None, :] - mean) * (-spread).exp()).square() + spread + 0.5 * math.log(2 * math.pi)
    return (shares - surprise.sum(-1)).logsumexp(-1)


def likeliest(mixture: Mixture) -> Tensor:
    """The mean of the normal with the largest share, [..., Z]."""
    return _of(mixture.mean, mixture.shares.argmax(-1))


def draw(mixture: Mixture, temperature: float, generator: torch.Generator) -> Tensor:
    """A value [..., Z]: log-shares divided by the temperature, deviations multiplied by its root."""
    shares, mean, spread = mixture
    uniform = torch.rand(shares.shape, generator=generator, device=mean.device)
    gumbel = -(-uniform.clamp_min(1e-20).log()).log()
    chosen = (shares / temperature + gumbel).argmax(-1)
    centre = _of(mean, chosen)
    noise = torch.randn(centre.shape, generator=generator, device=mean.device)
    return centre + math.sqrt(temperature) * _of(spread, chosen).exp() * noise


def _of(entries: Tensor, normal: Tensor) -> Tensor:
    """Entries [..., Z] of one normal [...] of [..., K, Z]."""
    place = normal[..., None, None].expand(*normal.shape, 1, entries.shape[-1])
    return entries.gather(-2, place)[..., 0, :]
