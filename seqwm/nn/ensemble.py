"""A probabilistic ensemble: M networks of one shape that predict normal distributions, in one batched product a layer.

Chua et al., "Deep Reinforcement Learning in a Handful of Trials using Probabilistic Dynamics Models", 2018. Each
member gives the mean and the log variance of every output; the variance is held softly between learned bounds. What the
members disagree about is epistemic uncertainty, what each of them expects to vary is aleatoric.

What is notable: a gradient step is written out, one batched product a layer forward and two backward. What is only
asked goes through a member on a CPU in pieces that stay in its cache. `tests/benchmarks/ensemble.py` measures both
against separate networks.

Shapes: M members, E of them elites, B rows, I inputs, O outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqwm.nn.dense import initialise
from seqwm.nn.perceptron import goes_to_onednn, product

CHUNK = 1024
"""Rows that go through a member at once on a CPU: their activations stay in its cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleOptions:
    """Sizes; the defaults are those of MBPO (Janner et al. 2019).

    Attributes:
        members: networks, M.
        elites: those with the least validation error, which predict.
        layers, width: of each network's hidden part.
        precision: of products between hidden layers; 'bf16' takes half the time where the processor has instructions
            for it. Weights and their gradients, what is read and what is predicted are float32 in either.
    """

    members: int = 7
    elites: int = 5
    layers: int = 4
    width: int = 200
    precision: Literal["float32", "bf16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("members", "elites", "layers", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if self.elites > self.members:
            raise ValueError(f"elites: found {self.elites}, expected at most the {self.members} members")


@dataclass(frozen=True, slots=True)
class Normals:
    """Means and log variances, [M, B, O], or [B, O] where each row has its own member.

    The last `flags` entries are no normal distributions but coins: their mean is the logit, their variance nothing.
    """

    mean: Tensor
    log_variance: Tensor
    flags: int = 0

    def negative_log_likelihood(self, target: Tensor) -> Tensor:
        """Of targets, entry by entry, in nats."""
        squares = (target - self.mean).square() * torch.exp(-self.log_variance)
        normal = 0.5 * (squares + self.log_variance + math.log(2 * math.pi))
        count = normal.shape[-1] - self.flags
        coins = F.binary_cross_entropy_with_logits(self.mean[..., count:], target[..., count:], reduction="none")
        return torch.cat([normal[..., :count], coins], -1)

    def of(self, member: Tensor) -> Normals:
        """What for each row of [M, B, O] the member with its number, int64 [B], says, [B, O]."""
        row = torch.arange(len(member), device=member.device)
        return Normals(self.mean[member, row], self.log_variance[member, row], self.flags)

    def expected(self) -> Tensor:
        """Means, and the probabilities of flags."""
        count = self.mean.shape[-1] - self.flags
        return torch.cat([self.mean[..., :count], self.mean[..., count:].sigmoid()], -1)


class GaussianEnsemble(nn.Module):
    """M networks; inputs and outputs are in the units that the caller gives them.

    Args:
        options: sizes.
        inputs, outputs: of each network.
        flags: how many of the last outputs are logits of something that is 0 or 1.
    """

    elites: Tensor

    def __init__(self, options: EnsembleOptions, inputs: int, outputs: int, flags: int = 0) -> None:
        super().__init__()
        self.options, self.flags = options, flags
        sizes = [inputs, *[options.width] * options.layers, 2 * outputs]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for a, b in pairwise(sizes):
            weight = torch.empty(options.members, b, a)
            initialise(weight, a)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(options.members, 1, b)))
        self.most = nn.Parameter(torch.full((outputs,), 0.5))  # bounds of log variances, as in both papers' code
        self.least = nn.Parameter(torch.full((outputs,), -10.0))
        self.register_buffer("elites", torch.arange(options.elites))

    def forward(self, x: Tensor) -> Normals:
        """What every member says about its own rows, [M, B, I]; rows for all, [B, I], are given to each."""
        x = x.expand(self.options.members, *x.shape) if x.ndim == 2 else x
        if x.device.type != "cpu" or torch.is_grad_enabled():
            return self._bounded(self._batched(x))
        return self._bounded(torch.stack([self._asked(*both) for both in zip(self._apart(), x, strict=True)]))

    def of_members(self, x: Tensor, member: Tensor) -> Normals:
        """What for each row, [B, I], the member with its number, int64 [B], says: each row goes through one network."""
        order = member.argsort(stable=True)
        counts = torch.bincount(member, minlength=self.options.members).tolist()
        joined = torch.cat([self._asked(*both) for both in zip(self._apart(), x[order].split(counts), strict=True)])
        return self._bounded(torch.empty_like(joined).index_copy(0, order, joined))

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """The members' mean likelihood losses added up, and a hundredth of the width between the variance's bounds."""
        likelihood: Tensor = self(x).negative_log_likelihood(target).mean((1, 2)).sum()
        return likelihood + 0.01 * (self.most - self.least).sum()

    @torch.no_grad()
    def learn(self, x: Tensor, target: Tensor) -> Tensor:
        """Set the gradients of `loss`, 0-d, which is returned; rows [M, B, I] and targets [M, B, O] of each member."""
        maps = self._maps()
        inputs, made = [x], []
        for (weight, bias), (following, _) in pairwise(maps):
            made.append(products(inputs[-1], weight.mT, bias))
            inputs.append(F.silu(made[-1]).to(following.dtype))
        outputs = products(inputs[-1], maps[-1][0].mT, maps[-1][1])
        loss, gradient, of_bounds = self._likelihood(outputs, target)
        for layer in reversed(range(len(maps))):
            weight = maps[layer][0]
            gradient = gradient.to(weight.dtype)
            self.weights[layer].grad = products(gradient.mT, inputs[layer]).to(x.dtype)
            self.biases[layer].grad = gradient.sum(1, keepdim=True, dtype=x.dtype)
            if layer:
                gradient = products(gradient, weight).to(made[layer - 1].dtype)
                gradient = torch.ops.aten.silu_backward(gradient, made[layer - 1])
        self.most.grad, self.least.grad = of_bounds[0] + 0.01, of_bounds[1] - 0.01
        return loss + 0.01 * (self.most - self.least).sum()

    def _likelihood(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The members' mean losses of outputs [M, B, 2 O] added up, and gradients: of these, and of the bounds, [2, O].

        With v bounded to u = most - softplus(most - v) and s = least + softplus(u - least), the loss of an entry is
        (e^2 exp(-s) + s + log 2 pi) / 2 for an error e, so that ds/du = sigmoid(u - least), du/dv = sigmoid(most - v).
        That of a flag has the slope p - target in its logit.
        """
        (mean, v), said, entries = outputs.chunk(2, -1), self._bounded(outputs), target[0].numel()
        flags = slice(target.shape[-1] - self.flags, None)
        of_mean = (mean - target) * torch.exp(-said.log_variance) / entries
        of_s = 0.5 / entries - 0.5 * of_mean * (mean - target)
        of_mean[..., flags] = (mean[..., flags].sigmoid() - target[..., flags]) / entries
        of_s[..., flags] = 0
        room = self.most - v
        of_u = of_s * torch.sigmoid(self.most - F.softplus(room) - self.least)
        of_v = of_u * torch.sigmoid(room)
        bounds = torch.stack([of_u - of_v, of_s - of_u]).sum((1, 2))
        return said.negative_log_likelihood(target).sum() / entries, torch.cat([of_mean, of_v], -1), bounds

    @torch.no_grad()
    def choose_elites(self, errors: Tensor) -> None:
        """Let the members with the least validation errors, [M], predict; ties go to the lower number."""
        self.elites.copy_(errors.argsort(stable=True)[: self.options.elites])

    def uncertainties(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Epistemic and aleatoric variance of rows [B, I], each [B, O]: of the elites' means, and their mean variance.

        Their sum is the variance of the elites' mixture.
        """
        said = self(x)
        means, variances = said.mean[self.elites], said.log_variance[self.elites].exp()
        return means.var(0, correction=0), variances.mean(0)

    def _batched(self, x: Tensor) -> Tensor:
        """Every member's outputs, [M, B, 2 O], for rows of their own, [M, B, I]."""
        *hidden, last = self._maps()
        for weight, bias in hidden:
            x = F.silu(torch.baddbmm(bias, x.to(weight.dtype), weight.mT))
        return torch.baddbmm(last[1], x.to(last[0].dtype), last[0].mT)

    def _maps(self) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases of each layer in the type of its products."""
        maps = list(zip(self.weights, self.biases, strict=True))
        if self.options.precision == "bf16":
            maps[1:-1] = [(weight.bfloat16(), bias.bfloat16()) for weight, bias in maps[1:-1]]
        return maps

    def _apart(self) -> list[list[tuple[Tensor, Tensor]]]:
        """The same of each member."""
        maps = self._maps()
        return [[(weight[number], bias[number, 0]) for weight, bias in maps] for number in range(self.options.members)]

    def _asked(self, member: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
        """Outputs, [B, 2 O], of one member's weights and biases for rows [B, I]."""
        pieces = x.split(CHUNK if x.device.type == "cpu" else max(len(x), 1))
        *hidden, last = member
        learning = torch.is_grad_enabled()
        linear = F.linear if learning else product  # which autograd cannot follow
        outputs = []
        for piece in pieces:
            for weight, bias in hidden:
                piece = F.silu(linear(piece.to(weight.dtype), weight, bias), inplace=not learning)
            outputs.append(linear(piece.to(last[0].dtype), *last))
        return torch.cat(outputs)

    def _bounded(self, outputs: Tensor) -> Normals:
        mean, log_variance = outputs.chunk(2, -1)
        log_variance = self.most - F.softplus(self.most - log_variance)
        log_variance = self.least + F.softplus(log_variance - self.least)
        return Normals(mean, log_variance, self.flags)


def products(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W + b of each member: [M, B, I], [M, I, O] and [M, 1, O] to [M, B, O]."""
    if goes_to_onednn(x[0], weight[0]):
        own = range(len(x))
        return torch.stack([product(x[m], weight[m].t(), None if bias is None else bias[m, 0]) for m in own])
    return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias, x, weight)
