"""Layers of linear map, RMS norm and SiLU as one step of autograd, forward and backward pass written out for a CPU.

    y = W x + b,    n = y / sqrt(mean(y^2) + eps),    out = silu(g n)

What is notable: autograd would take each of a dozen elementwise passes for a step of its own, and keep what it needs
for all of them. Here a layer keeps n and its output, the rest is made again. Under `torch.autocast` products are in
bf16, which takes half the time on processors with instructions for it, and so is what a linear map at the end gives;
norms, activations and the gradients of weights stay in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from seqwm.nn.perceptron import product

Parameters: TypeAlias = tuple[Tensor, Tensor, Tensor]  # W [O, I], b [O], g [O]
Normed: TypeAlias = tuple[Tensor, Tensor, Tensor]  # n [B, O], its scale [B, 1], silu(g n) [B, O]


def product_type(x: Tensor) -> torch.dtype:
    """What products of x are to be made in: what `torch.autocast` asks for, its own type without."""
    asked = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if asked else x.dtype


def raised(x: Tensor) -> Tensor:
    """What a network gives, in float32 where it was made in half precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def rms_layers(
    x: Tensor, layers: Sequence[Parameters], eps: float, output: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """[..., I] to [..., O] through layers, then the linear map `output` where there is one."""
    parameters = [p for layer in layers for p in layer]
    flat: Tensor = _Passes.apply(x.reshape(-1, x.shape[-1]), eps, product_type(x), *parameters, *(output or ()))
    return flat.view(*x.shape[:-1], flat.shape[-1])


def rms_silu(y: Tensor, gain: Tensor, eps: float) -> Normed:
    """Norm and activation of y [B, O], whose memory becomes that of n."""
    scale = _scale(y, eps)
    n = y.mul_(scale)
    return n, scale, F.silu(n * gain, inplace=True)


def rms_silu_(y: Tensor, gain: Tensor, eps: float) -> Tensor:
    """The same of y [..., O] in its own memory, where nothing is kept for a backward pass."""
    return F.silu(y.mul_(_scale(y, eps)).mul_(gain), inplace=True)


def _scale(y: Tensor, eps: float) -> Tensor:
    norm = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    scale: Tensor = torch.addcmul(_constant(eps, y.dtype), norm, norm, value=1 / y.shape[-1]).rsqrt_()
    return scale


@functools.cache
def _constant(value: float, dtype: torch.dtype) -> Tensor:
    return torch.tensor(value, dtype=dtype)


def rms_silu_backward(gradient: Tensor, normed: Sequence[Tensor], gain: Tensor) -> tuple[Tensor, Tensor]:
    """From the gradient of the output, [B, O], that of y, and what sums over B to that of the gain."""
    n, scale = normed[:2]
    gradient = torch.ops.aten.silu_backward.default(gradient, n * gain)
    of_gain = gradient * n
    # The mean square takes away the part of the gradient that lies along n.
    along = torch.mv(of_gain, gain).div_(-n.shape[1])[:, None]
    return gradient.mul_(gain).addcmul_(n, along).mul_(scale), of_gain


class _Passes(torch.autograd.Function):
    """Of the parameters each layer takes three, the map at the end two; products are of type `kind`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, kind: torch.dtype, *parameters: Tensor) -> Tensor:
        layers, out, keep = len(parameters) // 3, x, any(ctx.needs_input_grad)
        lowered = [p.to(kind) if k % 3 != 2 else p for k, p in enumerate(parameters)]
        inputs: list[Tensor] = [x.to(kind)]
        kept: list[Tensor] = []
        for k in range(0, 3 * layers, 3):
            made = product(inputs[-1], lowered[k], lowered[k + 1]).to(parameters[k].dtype)
            if keep:
                *normed, out = rms_silu(made, parameters[k + 2], eps)
                kept += normed
            else:
                inputs, out = [], rms_silu_(made, parameters[k + 2], eps)
            inputs.append(out.to(kind))
        if keep:
            ctx.save_for_backward(*parameters, *lowered[::3], *inputs, *kept)
        ctx.count, ctx.kinds = len(parameters), (kind, x.dtype)
        return product(inputs[-1], *lowered[-2:]) if len(parameters) % 3 else out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        layers, saved, (kind, kind_of_x) = ctx.count // 3, list(ctx.saved_tensors), ctx.kinds
        maps = -(-ctx.count // 3)
        full = saved[0].dtype
        parameters, lowered, inputs, kept = (
            [saved.pop(0) for _ in range(many)] for many in (ctx.count, maps, layers + 1, 2 * layers)
        )
        of_input, _, _, *wanted = ctx.needs_input_grad
        gradients: list[Tensor | None] = [None] * ctx.count
        for layer in reversed(range(maps)):
            own, of_gain = slice(3 * layer, 3 * layer + 3), []
            if layer < layers:
                gain, normed = parameters[3 * layer + 2], kept[2 * layer : 2 * layer + 2]
                gradient, of_gains = rms_silu_backward(gradient, normed, gain)
                of_gain = [of_gains]
            low = gradient.to(kind)
            if wanted[3 * layer]:
                of_weight = (low.t() @ inputs[layer]).to(full)
                gradients[own] = [of_weight, gradient.sum(0, dtype=full), *(part.sum(0) for part in of_gain)]
            if layer or of_input:
                gradient = product(low, lowered[layer].t()).to(full if layer else kind_of_x)
        return (gradient if of_input else None, None, None, *gradients)
