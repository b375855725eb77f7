"""A probabilistic ensemble: M networks of one shape that predict normal distributions, in one batched product a layer.

Chua et al., "Deep Reinforcement Learning in a Handful of Trials using Probabilistic Dynamics Models", 2018. Each
member gives the mean and the log variance of every output; the variance is held softly between learned bounds. What the
members disagree about is epistemic uncertainty, what each of them expects to vary is aleatoric.

What is notable: on a CPU all members are one step of autograd, whose products go to oneDNN one member at a time
(`seqwm.nn.perceptron`), and what is only asked goes through in pieces that stay in the cache. On a GPU it is one
batched product a layer. `tests/benchmarks/ensemble.py` measures both against separate networks.

Shapes: M members, E of them elites, B rows, I inputs, O outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqwm.nn.dense import initialise
from seqwm.nn.perceptron import product

CHUNK = 2048
"""Rows that go through a member at once on a CPU: their activations stay in its cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleOptions:
    """Sizes; the defaults are those of MBPO (Janner et al. 2019).

    Attributes:
        members: networks, M.
        elites: those with the least validation error, which predict.
        layers, width: of each network's hidden part.
    """

    members: int = 7
    elites: int = 5
    layers: int = 4
    width: int = 200

    def __post_init__(self) -> None:
        for name in ("members", "elites", "layers", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if self.elites > self.members:
            raise ValueError(f"elites: found {self.elites}, expected at most the {self.members} members")


@dataclass(frozen=True, slots=True)
class Normals:
    """Means and log variances, [M, B, O], or [B, O] where each row has its own member."""

    mean: Tensor
    log_variance: Tensor

    def negative_log_likelihood(self, target: Tensor) -> Tensor:
        """Of targets, entry by entry, in nats."""
        squares = (target - self.mean).square() * torch.exp(-self.log_variance)
        return 0.5 * (squares + self.log_variance + math.log(2 * math.pi))


class GaussianEnsemble(nn.Module):
    """M networks; inputs and outputs are in the units that the caller gives them.

    Args:
        options: sizes.
        inputs, outputs: of each network.
    """

    elites: Tensor

    def __init__(self, options: EnsembleOptions, inputs: int, outputs: int) -> None:
        super().__init__()
        self.options = options
        sizes = [inputs, *[options.width] * options.layers, 2 * outputs]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for a, b in pairwise(sizes):
            weight = torch.empty(options.members, a, b)
            initialise(weight, a)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(options.members, 1, b)))
        self.most = nn.Parameter(torch.full((outputs,), 0.5))  # bounds of log variances, as in both papers' code
        self.least = nn.Parameter(torch.full((outputs,), -10.0))
        self.register_buffer("elites", torch.arange(options.elites))

    def forward(self, x: Tensor) -> Normals:
        """What every member says about its own rows, [M, B, I]; rows for all, [B, I], are given to each."""
        x = x.expand(self.options.members, *x.shape) if x.ndim == 2 else x
        if x.device.type != "cpu" or x.requires_grad:
            return self._bounded(self._batched(x))
        if torch.is_grad_enabled():
            return self._bounded(_Passes.apply(x, *self.weights, *self.biases))
        return self._bounded(torch.stack([self._asked(number, own) for number, own in enumerate(x)]))

    def of_members(self, x: Tensor, member: Tensor) -> Normals:
        """What for each row, [B, I], the member with its number, int64 [B], says: each row goes through one network."""
        order = member.argsort(stable=True)
        counts = torch.bincount(member, minlength=self.options.members).tolist()
        joined = torch.cat([self._asked(number, rows) for number, rows in enumerate(x[order].split(counts))])
        return self._bounded(torch.empty_like(joined).index_copy(0, order, joined))

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """The members' mean likelihood losses added up, and a hundredth of the width between the variance's bounds."""
        likelihood: Tensor = self(x).negative_log_likelihood(target).mean((1, 2)).sum()
        return likelihood + 0.01 * (self.most - self.least).sum()

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
        *hidden, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in hidden:
            x = F.silu(torch.baddbmm(bias, x, weight))
        return torch.baddbmm(last[1], x, last[0])

    def _asked(self, number: int, x: Tensor) -> Tensor:
        """Outputs of one member, [B, 2 O], for rows [B, I]."""
        pieces = x.split(CHUNK if x.device.type == "cpu" else max(len(x), 1))
        *hidden, last = [
            (weight[number].t(), bias[number, 0]) for weight, bias in zip(self.weights, self.biases, strict=True)
        ]
        learning = torch.is_grad_enabled()
        linear = F.linear if learning else product  # which autograd cannot follow
        outputs = []
        for piece in pieces:
            for weight, bias in hidden:
                piece = F.silu(linear(piece, weight, bias), inplace=not learning)
            outputs.append(linear(piece, *last))
        return torch.cat(outputs)

    def _bounded(self, outputs: Tensor) -> Normals:
        mean, log_variance = outputs.chunk(2, -1)
        log_variance = self.most - F.softplus(self.most - log_variance)
        log_variance = self.least + F.softplus(log_variance - self.least)
        return Normals(mean, log_variance)


class _Passes(torch.autograd.Function):
    """Outputs [M, B, 2 O] of rows [M, B, I], and the gradients of weights and biases alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        count = len(parameters) // 2
        weights, biases = parameters[:count], parameters[count:]
        before, outputs = [], []
        for number, rows in enumerate(x):
            for layer in range(count):
                if layer:
                    rows = F.silu(rows)
                rows = product(rows, weights[layer][number].t(), biases[layer][number, 0])
                if layer < count - 1:
                    before.append(rows)
            outputs.append(rows)
        ctx.save_for_backward(x, *before, *weights)
        return torch.stack(outputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        members = len(gradient)
        x, *saved = ctx.saved_tensors
        count = (len(saved) + members) // (members + 1)
        weights = saved[-count:]
        of_weights = [torch.empty_like(weight) for weight in weights]
        of_biases = [gradient.new_empty(members, 1, weight.shape[2]) for weight in weights]
        for number, rows in enumerate(gradient):
            before = saved[number * (count - 1) : (number + 1) * (count - 1)]
            for layer in reversed(range(count)):
                taken = F.silu(before[layer - 1]) if layer else x[number]  # cheaper than to have kept it
                of_weights[layer][number] = product(taken.t(), rows.t())
                of_biases[layer][number] = rows.sum(0)
                if layer:
                    rows = torch.ops.aten.silu_backward(product(rows, weights[layer][number]), before[layer - 1])
        return None, *of_weights, *of_biases
