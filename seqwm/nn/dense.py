"""Fully connected layers as latent dynamics models use them: linear map, normalisation, activation.

Weights begin as normal draws cut at two deviations with variance 1 / fan-in, biases at zero (danijar/dreamerv3). Of
block-diagonal weights the fan-in counts all blocks, as there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqwm.nn.rms_layers import raised, rms_layers

Norm = Literal["rms", "layer", "none"]
Activation = Literal["silu", "elu"]

EPSILON = {"rms": 1e-4, "layer": 1e-3}
_ROWS = 2048  # whose activations stay in a processor's cache


def normalisation(kind: Norm, width: int) -> nn.Module:
    """The norm of that name over the last dimension."""
    if kind == "none":
        return nn.Identity()
    if kind == "rms":
        return nn.RMSNorm(width, eps=EPSILON[kind])
    return nn.LayerNorm(width, eps=EPSILON[kind])


def activate(x: Tensor, kind: Activation) -> Tensor:
    """The activation of that name."""
    return F.silu(x) if kind == "silu" else F.elu(x)


def norm_is_written_out(norm: Norm, activation: Activation, x: Tensor) -> bool:
    """Whether `seqwm.nn.rms_layers` has what takes x through this norm and activation."""
    return norm == "rms" and activation == "silu" and x.device.type == "cpu"


@torch.no_grad()
def initialise(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Normal draws cut at two deviations, of variance scale^2 / fan_in."""
    deviation = 1.1368 * scale / math.sqrt(fan_in)  # 1.1368 makes up for the cut
    if deviation:
        nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    else:
        weight.zero_()


class Linear(nn.Linear):
    """A linear map with those initial weights.

    Args:
        inputs, outputs: sizes.
        scale: of the initial weights; zero begins with outputs of zero.
        bias: whether there is one.
        fan_in: of the whole map, where this is a part of one that reads several inputs.
    """

    def __init__(
        self, inputs: int, outputs: int, scale: float = 1.0, *, bias: bool = True, fan_in: int | None = None
    ) -> None:
        self.scale, self.fan_in = scale, fan_in or inputs
        super().__init__(inputs, outputs, bias)

    def reset_parameters(self) -> None:
        """Draw initial weights."""
        initialise(self.weight, self.fan_in, self.scale)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class BlockLinear(nn.Module):
    """A linear map whose weight is block-diagonal: block k of the outputs reads block k of the inputs.

    Args:
        inputs, outputs: over all blocks.
        blocks: how many.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(blocks, inputs // blocks, outputs // blocks))
        self.bias = nn.Parameter(torch.zeros(blocks, 1, outputs // blocks))
        initialise(self.weight, inputs)

    def forward(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        """[K, B, inputs / K] to [K, B, outputs / K]: the block is the first dimension, so that one product does all.

        Of each block's inputs the last may be `shared` by all, [B, S]; they are then not repeated but multiplied once.
        """
        if shared is None:
            return torch.baddbmm(self.bias, x, self.weight)
        own, common = self.weight.split([x.shape[-1], shared.shape[-1]], 1)
        added = (shared @ common.transpose(0, 1).flatten(1)).unflatten(-1, (len(own), -1)).transpose(0, 1)
        return torch.baddbmm(added + self.bias, x, own)


class Layer(nn.Module):
    """Linear map, norm, activation."""

    def __init__(self, inputs: int, width: int, norm: Norm, activation: Activation) -> None:
        super().__init__()
        self.linear = Linear(inputs, width)
        self.norm = normalisation(norm, width)
        self.kind: Norm = norm
        self.activation: Activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., width]."""
        if norm_is_written_out(self.kind, self.activation, x):
            return rms_layers(x, [self.parts()], EPSILON["rms"])
        return activate(self.norm(raised(self.linear(x))), self.activation)

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weight, bias, and the norm's gain."""
        return self.linear.weight, self.linear.bias, self.norm.weight  # type: ignore[return-value]


class MLP(nn.Module):
    """Layers and a linear output.

    Args:
        inputs, outputs: sizes; `outputs` None leaves the last layer's features.
        layers, width: of the hidden part.
        scale: of the output's initial weights; zero begins with outputs of zero.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int | None,
        layers: int,
        width: int,
        norm: Norm,
        activation: Activation,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        sizes = [inputs] + [width] * layers
        self.hidden = nn.Sequential(*[Layer(a, b, norm, activation) for a, b in pairwise(sizes)])
        self.output = Linear(sizes[-1], outputs, scale) if outputs is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]; under `torch.autocast` of the type that products are made in."""
        return passed(x, self.hidden, self.output)


def passed(x: Tensor, hidden: nn.Sequential, output: nn.Module) -> Tensor:
    """[..., inputs] through layers and an output, which is a linear map or leaves their features."""
    first: Any = hidden[0]
    if norm_is_written_out(first.kind, first.activation, x):
        last = (output.weight, output.bias) if isinstance(output, Linear) else None
        return rms_layers(x, [layer.parts() for layer in hidden], EPSILON["rms"], last)  # type: ignore
    out: Tensor = output(hidden(x))
    return out


def in_pieces(read: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What `read` gives for x, [..., I] to [...]: a few rows at a time on a CPU, unless gradients are asked for."""
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return read(x)
    return torch.cat([read(rows) for rows in x.flatten(0, -2).split(_ROWS)]).view(x.shape[:-1])
