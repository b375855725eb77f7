"""Distributions of latents, actions, rewards and values, as functions of what a network gives; each in closed form.

- symlog and its inverse symexp (Hafner et al., "Mastering Diverse Domains through World Models", 2023);
- two-hot: a number as weights on its two neighbours among 255 bins, symexp of -20 ... 20, so that one loss serves
  rewards of any size. Weights are linear in the number itself, so a two-hot target has exactly it as its mean;
- categories mixed with 1 % of the uniform distribution, so that no likelihood is infinite, sampled with
  straight-through gradients: KL, entropy and log-probability are those of the mixture, too;
- normal distributions of actions: squashed by tanh (Dreamer V1), or with a mean and a deviation that are bounded (V3).

Noise is passed in: uniform in [0, 1) for categories, one number each; standard normal otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 255
_LARGEST = 20.0
_ROWS = 1024


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


def two_hot_bins(device: torch.device | str = "cpu") -> Tensor:
    """The 255 numbers that bins stand for, float32, symmetric around zero to the last bit."""
    half = symexp(torch.linspace(-_LARGEST, 0.0, BINS // 2 + 1, dtype=torch.float64)).float()
    return torch.cat([half, -half[:-1].flip(0)]).to(device)


def two_hot_weights(x: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """The bin at or below each number, int64 [...], at most the last but one, and the weight of the bin above it."""
    x = x.clamp(bins[0], bins[-1])
    below = (torch.searchsorted(bins, x.contiguous(), right=True) - 1).clamp(0, len(bins) - 2)
    low, high = bins[below], bins[below + 1]
    return below, (x - low) / (high - low)


def two_hot_loss(logits: Tensor, *targets: Tensor, bins: Tensor) -> Tensor:
    """Cross entropy between two-hot targets [...] and logits [..., 255], summed over targets; none is spread out.

    Gradients reach the logits alone.
    """
    below, above = two_hot_weights(torch.stack([target.detach().flatten() for target in targets], 1), bins)
    loss: Tensor = _CrossEntropy.apply(logits.flatten(0, -2), below, above)
    return loss.view(logits.shape[:-1])


class _CrossEntropy(torch.autograd.Function):
    """Of logits [N, 255] and, of each target, the bin below it and the weight of the one above it, [N, targets].

    In pieces of so many rows that a CPU keeps them near: what is made of them lies in no memory that is new each time.
    The loss is float32 whatever the logits are.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, below: Tensor, above: Tensor) -> Tensor:
        losses, totals = [], []
        for low, k, share in zip(*(part.split(_ROWS) for part in (logits, below, above)), strict=True):
            rows = low.to(above.dtype)
            totals.append(rows.logsumexp(1))
            ends = torch.lerp(rows.gather(1, k), rows.gather(1, k + 1), share)
            losses.append(k.shape[1] * totals[-1] - ends.sum(1))
        ctx.save_for_backward(logits, torch.cat(totals), below, above)
        return torch.cat(losses)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, total, below, above = ctx.saved_tensors
        of_logits = torch.empty_like(logits)
        pieces = (of_logits, logits, total[:, None], gradient[:, None], below, above)
        for out, low, own, weight, k, share in zip(*(part.split(_ROWS) for part in pieces), strict=True):
            rows = torch.sub(low.to(above.dtype), own).exp_().mul_(k.shape[1] * weight)
            rows.scatter_add_(1, k, -weight * (1 - share))
            rows.scatter_add_(1, k + 1, -weight * share)
            out.copy_(rows)
        return of_logits, None, None


def two_hot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """The mean of the bins under logits [..., 255].

    Bins of opposite sign are subtracted first, so that equal logits give zero exactly, however large the bins.
    """
    means, half = [], BINS // 2
    for rows in logits.flatten(0, -2).split(_ROWS):
        weights = rows.to(bins.dtype).softmax(-1)
        means.append(torch.mv(weights[:, half + 1 :] - weights[:, :half].flip(-1), bins[half + 1 :]))
    return torch.cat(means).view(logits.shape[:-1])


def mixed(logits: Tensor, uniform: float) -> Tensor:
    """Log-probabilities [..., K] of the categories of logits, mixed with a share of the uniform distribution."""
    return blended(logits.softmax(-1), uniform).log() if uniform else logits.log_softmax(-1)


def blended(probabilities: Tensor, uniform: float) -> Tensor:
    """Probabilities [..., K] mixed with a share of the uniform distribution."""
    return (1 - uniform) * probabilities + uniform / probabilities.shape[-1]


def straight_through(log_probabilities: Tensor, noise: Tensor | None) -> Tensor:
    """One-hot samples [..., K] whose gradient is that of the probabilities.

    `noise`, uniform [...], chooses the category in whose stretch of the cumulative probability it lies; without it, the
    likeliest is chosen.
    """
    probabilities = log_probabilities.exp()
    hot = one_hot(probabilities.detach(), noise)
    return hot + (probabilities - probabilities.detach()) if probabilities.requires_grad else hot


def one_hot(probabilities: Tensor, noise: Tensor | None) -> Tensor:
    """Samples [..., K] of probabilities [..., K], chosen as `straight_through` says."""
    if noise is None:
        chosen = probabilities.argmax(-1)
    else:
        chosen = (probabilities[..., :-1].cumsum(-1) <= noise[..., None]).sum(-1)
    classes = torch.arange(probabilities.shape[-1], device=chosen.device)
    return (chosen[..., None] == classes).to(probabilities.dtype)


def drawn(logits: Tensor, uniform: float, noise: Tensor | None) -> Tensor:
    """`straight_through(mixed(logits, uniform), noise)` without gradients, in a third of the time.

    Classes come first in memory, so that a CPU's vectors run over the many samples and not over the few classes.
    """
    classes = logits.shape[-1]
    if noise is None:
        return one_hot(logits, None)
    x = logits.flatten(0, -2).t().contiguous()
    rows = x.unbind()
    largest = rows[0].clone()
    for row in rows[1:]:
        torch.maximum(largest, row, out=largest)
    x.sub_(largest).exp_()
    for before, row in pairwise(rows):  # several times as fast as cumsum over the first dimension
        row.add_(before)
    beneath = torch.arange(1, classes, device=x.device)[:, None] * (uniform / classes)
    levels = (noise.flatten() - beneath).mul_(rows[-1] / (1 - uniform))
    above = x.new_ones(classes + 1, x.shape[1])  # whether categories up to this one reach above the noise
    above[0] = 0
    torch.gt(x[:-1], levels, out=above[1:-1])
    return (above[1:] - above[:-1]).t().reshape(logits.shape)


def categorical_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities [..., K], [...]."""
    return (p.exp() * (p - q)).sum(-1)


def categorical_entropy(p: Tensor) -> Tensor:
    """Entropy of log-probabilities [..., K], [...]."""
    return -(p.exp() * p).sum(-1)


def normal_kl(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> Tensor:
    """KL(N(mean, std) || N(other_mean, other_std)), summed over the last dimension."""
    ratio = (std / other_std).square()
    return 0.5 * (ratio + ((mean - other_mean) / other_std).square() - 1 - ratio.log()).sum(-1)


def normal_log_density(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of independent normal distributions, summed over the last dimension."""
    return -(((x - mean) / std).square() / 2 + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)


@dataclass(frozen=True, slots=True)
class Categories:
    """One category out of K; actions are one-hot [..., K].

    Attributes:
        log_probabilities: [..., K], normalised.
    """

    log_probabilities: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """One-hot with straight-through gradients; `noise` is uniform [..., 1]."""
        return straight_through(self.log_probabilities, noise[..., 0])

    def mode(self) -> Tensor:
        """The likeliest."""
        return straight_through(self.log_probabilities, None)

    def log_density(self, action: Tensor) -> Tensor:
        """[...] of one-hot [..., K]."""
        return (self.log_probabilities * action).sum(-1)

    def entropy(self, noise: Tensor | None = None) -> Tensor:
        """[...]; exact, `noise` is not looked at."""
        return categorical_entropy(self.log_probabilities)


@dataclass(frozen=True, slots=True)
class BoundedNormal:
    """Dreamer V3's continuous action: normal around tanh of a network's output, deviation between 0.1 and 1.

    Samples may lie outside [-1, 1]; what acts clips them.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, mean: Tensor, raw_std: Tensor) -> BoundedNormal:
        """From two outputs of a network, both [..., D]."""
        return cls(mean.tanh(), 0.1 + 0.9 * torch.sigmoid(raw_std + 2))

    def sample(self, noise: Tensor) -> Tensor:
        """Reparameterised; `noise` is standard normal [..., D]."""
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def log_density(self, action: Tensor) -> Tensor:
        """[...] of [..., D]."""
        return normal_log_density(action, self.mean, self.std)

    def entropy(self, noise: Tensor | None = None) -> Tensor:
        """[...]; exact, `noise` is not looked at."""
        return (self.std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


@dataclass(frozen=True, slots=True)
class TanhNormal:
    """Dreamer V1's continuous action: tanh of a normal whose mean is kept within 5 and whose deviation begins at 5."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, mean: Tensor, raw_std: Tensor) -> TanhNormal:
        """From two outputs of a network, both [..., D]."""
        return cls(5 * torch.tanh(mean / 5), F.softplus(raw_std + math.log(math.expm1(5.0))) + 1e-4)

    def sample(self, noise: Tensor) -> Tensor:
        """Reparameterised; `noise` is standard normal [..., D]."""
        return torch.tanh(self.mean + self.std * noise)

    def mode(self) -> Tensor:
        """The median, tanh of the mean."""
        return self.mean.tanh()

    def log_density(self, action: Tensor) -> Tensor:
        """[...] of [..., D], within (-1, 1); actions at the bounds count as just inside."""
        return self._log_density_before(torch.atanh(action.clamp(-1 + 1e-6, 1 - 1e-6)))

    def entropy(self, noise: Tensor | None = None) -> Tensor:
        """[...], estimated without bias: minus the log-density at the sample that `noise` [..., D] makes."""
        assert noise is not None
        return -self._log_density_before(self.mean + self.std * noise)

    def _log_density_before(self, x: Tensor) -> Tensor:
        """Log-density of tanh(x); log(1 - tanh(x)^2) in a form that does not cancel."""
        stretch = 2 * (math.log(2.0) - x - F.softplus(-2 * x))
        return normal_log_density(x, self.mean, self.std) - stretch.sum(-1)
