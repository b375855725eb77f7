"""Sampling sequences without replacement: Gumbel noise that a beam search can rank by.

Log-probabilities plus independent Gumbel noise, ranked, are a sample without replacement. For sequences that grow a
code at a time, the noise of the children is drawn given that their maximum is the parent's, so that the largest k of
any generation are such a sample (Kool, van Hoof and Welling, "Stochastic Beams and Where to Find Them", 2019, section
4.1 and appendix B).

The noise is a pure function of an environment's key and the place in the search, so lanes of a batch draw what they
would draw alone. The hash is SplitMix64, as in `seqwm.core.random`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class GumbelNoise:
    """Noise for E environments; `keys`, int64 [E], name the draws of each."""

    def __init__(self, keys: Tensor) -> None:
        self._keys = keys

    def perturb(self, log_probability: Tensor, parent: Tensor, place: tuple[int, int]) -> Tensor:
        """Log-probabilities [E, N, M, V] with noise, such that the maximum over V is the parent's [E, N, M].

        Args:
            log_probability: of whole sequences, as far as they go.
            parent: what their common beginnings were perturbed to.
            place: two small numbers that name the draw.
        """
        environments, *rest = log_probability.shape
        salt = _mix(_mix(self._keys + _GAMMA) ^ (place[0] * 65_537 + place[1]))
        counters = torch.arange(math.prod(rest), device=self._keys.device)
        bits = _mix(salt[:, None] + counters * _GAMMA) & 0x7FFFFF
        uniform = (bits + 0.5) * 2.0**-23
        free = log_probability - torch.log(-torch.log(uniform)).view(environments, *rest)
        most = free.amax(-1, keepdim=True)
        excess = parent[..., None] - free + torch.log1p(-torch.exp(free - most))
        held = parent[..., None] - excess.clamp(min=0) - torch.log1p(torch.exp(-excess.abs()))
        return held.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)  # as a signed integer


def _mix(z: Tensor) -> Tensor:
    z = (z ^ (z >> 30) & 0x3FFFFFFFF) * (0xBF58476D1CE4E5B9 - (1 << 64))
    z = (z ^ (z >> 27) & 0x1FFFFFFFFF) * (0x94D049BB133111EB - (1 << 64))
    return z ^ (z >> 31) & 0x1FFFFFFFF
