"""Layers of linear map, RMS norm and SiLU as one step of autograd, forward and backward pass written out for a CPU.

    y = W x + b,    n = y / sqrt(mean(y^2) + eps),    out = silu(g n)

What is notable: autograd would take each of a dozen elementwise passes for a step of its own, and keep what it needs
for all of them. Here a layer keeps n and its output, the rest is made again; products go to oneDNN where it is the
faster (`seqwm.nn.perceptron.product`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from seqwm.nn.perceptron import product

Parameters: TypeAlias = tuple[Tensor, Tensor, Tensor]  # W [O, I], b [O], g [O]
Normed: TypeAlias = tuple[Tensor, Tensor, Tensor]  # n [B, O], its scale [B, 1], silu(g n) [B, O]


def rms_layers(
    x: Tensor, layers: Sequence[Parameters], eps: float, output: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """[..., I] to [..., O] through layers, then the linear map `output` where there is one."""
    parameters = [p for layer in layers for p in layer]
    flat: Tensor = _Passes.apply(x.reshape(-1, x.shape[-1]), eps, *parameters, *(output or ()))
    return flat.view(*x.shape[:-1], flat.shape[-1])


def rms_silu(y: Tensor, gain: Tensor, eps: float) -> Normed:
    """Norm and activation of y [B, O], whose memory becomes that of n."""
    scale = torch.linalg.vector_norm(y, dim=1, keepdim=True).square_().div_(y.shape[1]).add_(eps).rsqrt_()
    n = y.mul_(scale)
    return n, scale, F.silu(n * gain, inplace=True)


def rms_silu_backward(gradient: Tensor, normed: Normed, gain: Tensor) -> tuple[Tensor, Tensor]:
    """From the gradient of the output, [B, O], that of y, and what sums over B to that of the gain."""
    n, scale, _ = normed
    gradient = torch.ops.aten.silu_backward(gradient, n * gain)
    of_gain = gradient * n
    # The mean square takes away the part of the gradient that lies along n.
    along = torch.mv(of_gain, gain).div_(-n.shape[1])[:, None]
    return gradient.mul_(gain).addcmul_(n, along).mul_(scale), of_gain


class _Passes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, *parameters: Tensor) -> Tensor:
        layers = len(parameters) // 3
        inputs: list[Tensor] = [x]
        kept: list[Tensor] = []
        for weight, bias, gain in zip(*(parameters[k : 3 * layers : 3] for k in range(3)), strict=True):
            normed = rms_silu(product(inputs[-1], weight, bias), gain, eps)
            inputs.append(normed[2])
            kept += normed[:2]
        ctx.save_for_backward(*parameters, *inputs, *kept)
        ctx.count = len(parameters)
        return product(inputs[-1], *parameters[-2:]) if len(parameters) % 3 else inputs[-1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        layers, count, saved = ctx.count // 3, ctx.count, ctx.saved_tensors
        parameters, inputs, kept = saved[:count], saved[count : count + layers + 1], saved[count + layers + 1 :]
        of_input, _, *wanted = ctx.needs_input_grad
        gradients: list[Tensor | None] = [None] * count
        if count % 3:
            if wanted[-1]:
                gradients[-2:] = gradient.t() @ inputs[-1], gradient.sum(0)
            gradient = product(gradient, parameters[-2].t())
        for layer in reversed(range(layers)):
            own = slice(3 * layer, 3 * layer + 3)
            weight, _, gain = parameters[own]
            normed = (*kept[2 * layer : 2 * layer + 2], inputs[layer + 1])
            gradient, of_gain = rms_silu_backward(gradient, normed, gain)
            if wanted[3 * layer]:
                gradients[own] = gradient.t() @ inputs[layer], gradient.sum(0), of_gain.sum(0)
            if layer or of_input:
                gradient = product(gradient, weight.t())
        return (gradient if of_input else None, None, *gradients)
