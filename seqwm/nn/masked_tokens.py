"""Frames drawn as masked tokens: what training hides, and how play fills in.

Chang et al., "MaskGIT: Masked Generative Image Transformer", 2022. A frame begins with every token masked. In each of K
steps a network says how likely every token is at every masked place; one is drawn for each, the surest stay, and the
others are masked again. After step k there are floor(N cos(pi k / 2K)) of N places still masked.

Training hides a share of cos(pi u / 2) of the places, u uniform: the shares that play meets on its way.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_SURE = 1e-20  # no probability is below it


def still_masked(places: int, steps: int) -> list[int]:
    """How many of N places are masked after each of K steps; none after the last, and each step fills some."""
    left = [math.floor(places * math.cos(math.pi / 2 * (step + 1) / steps)) for step in range(steps - 1)]
    return [min(count, places - 1 - step) for step, count in enumerate(left)] + [0]


def training_mask(shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Which places are hidden, bool [..., N], with a share of its own for every frame and one place at least."""
    *frames, places = shape
    hidden = (places * (math.pi / 2 * torch.rand(*frames, 1, device=device)).cos()).ceil().clamp_min(1)
    rank = torch.rand(shape, device=device).argsort(-1).argsort(-1)
    return rank < hidden


def fill_in(
    logits: Callable[[Tensor], Tensor],
    tokens: Tensor,
    masked: int,
    steps: int,
    temperature: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw the tokens of frames.

    Args:
        logits: of every token at every place [B, N, V], given tokens [B, N] of which some are `masked`.
        tokens: int64 [B, N], all `masked`.
        masked: the token that stands for none.
        steps: K, no more than N are made.
        temperature: that logits are divided by.
        generator: of the draws; the likeliest token is taken without one.
    """
    for left in still_masked(tokens.shape[1], min(steps, tokens.shape[1])):
        hidden = tokens == masked
        probability = (logits(tokens).float() / temperature).softmax(-1)
        if generator is None:
            sure, drawn = probability.max(-1)
        else:
            chance = torch.rand(tokens.shape, generator=generator, device=tokens.device)
            below = probability.cumsum(-1) <= chance.unsqueeze(-1)
            drawn = below.sum(-1).clamp_max(probability.shape[-1] - 1)
            sure = probability.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        tokens = torch.where(hidden, drawn, tokens)
        # what stood before stays; of what is new, the least sure are masked again
        order = sure.clamp_min(_SURE).masked_fill(~hidden, math.inf).argsort(dim=-1, stable=True)
        tokens = tokens.scatter(-1, order[:, :left], masked)
    return tokens
