"""Small fully connected ReLU networks as fast as a CPU makes them: forward and backward pass written out.

What is notable: products go to oneDNN where torch has it, which on CPUs whose vectors torch's own library does not use
in full halves their time (256 x 256 weights, 256 rows, one AMD core: 0.15 ms in place of 0.31), at float32 like the
other. A whole network is one step of autograd, and leaves out the gradients that nobody asks for.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LARGE = 64 * 64  # entries of either factor below which calling oneDNN costs more than it saves
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Perceptron(nn.Module):
    """[B, I] to [B, O]; weights and biases begin as those of torch.nn.Linear.

    Args:
        inputs, outputs: I and O.
        layers, width: of the hidden part.
    """

    def __init__(self, inputs: int, outputs: int, layers: int, width: int) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for a, b in pairwise([inputs, *[width] * layers, outputs]):
            bound = 1 / math.sqrt(a)
            self.weights.append(nn.Parameter(torch.empty(b, a).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(b).uniform_(-bound, bound)))

    def forward(self, x: Tensor, *, held: bool = False) -> Tensor:
        """With `held`, gradients reach x alone and not the weights."""
        parameters = [*self.weights, *self.biases]
        out: Tensor = _Passes.apply(x, *(p.detach() if held else p for p in parameters))
        return out


class _Passes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        count = len(parameters) // 2
        weights, biases = parameters[:count], parameters[count:]
        inputs = [x]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            inputs.append(product(inputs[-1], weight, bias).relu_())
        ctx.save_for_backward(*inputs, *weights)
        return product(inputs[-1], weights[-1], biases[-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        count = len(ctx.saved_tensors) // 2
        inputs, weights = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        of_input, *of_parameters = ctx.needs_input_grad
        gradients: list[Tensor | None] = [None] * (2 * count)
        for layer in reversed(range(count)):
            if of_parameters[layer]:
                gradients[layer] = product(gradient.t(), inputs[layer].t())
                gradients[count + layer] = gradient.sum(0)
            if layer or of_input:
                gradient = product(gradient, weights[layer].t())
            if layer:
                gradient = torch.ops.aten.threshold_backward(gradient, inputs[layer], 0)
        return (gradient if of_input else None, *gradients)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b of [B, I] and [O, I], in whichever order they lie in memory."""
    large = min(x.numel(), weight.numel()) >= _LARGE
    if _ONEDNN and large and x.device.type == "cpu" and x.dtype == torch.float32:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)
