"""Mixtures of normal distributions for every number of a vector (Bishop, "Mixture Density Networks", 1994).

A mixture is [..., 3, Z, K]: log-shares, means and log-deviations of K normals for each of Z numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mixture_of(outputs: Tensor, size: int) -> Tensor:
    """What a network's outputs [..., 3 Z K] stand for, with Z = `size`."""
    logits, mean, spread = outputs.unflatten(-1, (3, size, -1)).unbind(-3)
    return torch.stack([logits.log_softmax(-1), mean, spread.clamp(-7, 5)], -3)


def mixture_log_probability(mixture: Tensor, value: Tensor) -> Tensor:
    """Log-density [..., Z] of value [..., Z]."""
    shares, mean, spread = mixture.unbind(-3)
    surprise = 0.5 * ((value[..., None] - mean) * (-spread).exp()).square() + spread + 0.5 * math.log(2 * math.pi)
    return (shares - surprise).logsumexp(-1)


def likeliest(mixture: Tensor) -> Tensor:
    """The mean of the normal with the largest share, [..., Z]."""
    shares, mean, _ = mixture.unbind(-3)
    return mean.gather(-1, shares.argmax(-1, keepdim=True))[..., 0]


def draw(mixture: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """A value [..., Z]: log-shares divided by the temperature, deviations multiplied by its root."""
    shares, mean, spread = mixture.unbind(-3)
    uniform = torch.rand(shares.shape, generator=generator, device=mean.device)
    noise = torch.randn(mean.shape[:-1], generator=generator, device=mean.device)
    gumbel = -(-uniform.clamp_min(1e-20).log()).log()
    chosen = (shares / temperature + gumbel).argmax(-1, keepdim=True)
    deviation = math.sqrt(temperature) * spread.gather(-1, chosen)[..., 0].exp()
    return mean.gather(-1, chosen)[..., 0] + deviation * noise
