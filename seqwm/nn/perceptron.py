"""Small fully connected ReLU networks as fast as a CPU makes them: forward and backward pass written out.

What is notable: no autograd in what learns. `passed` keeps what goes into each layer, `learn` makes gradients of it: of
the weights from some rows, of the input in the others, so that one pass serves rows to learn from and rows that are
only judged. Products go to oneDNN on processors whose vectors torch's own library, MKL, leaves half unused:
AMD's with 512-bit units, from family 26 on (256 x 256 weights, 256 rows: 0.15 ms in place of 0.31). On others both are
as fast, and calling oneDNN costs more (family 25: a fifth of an update of soft actor-critic at width 128), but for
thousands of rows, which MKL takes up to twice as long for (8 192 rows, 128 x 255 weights: 11.8 ms in place of 6.3).
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LARGE = 64 * 64  # entries of either factor below which calling oneDNN costs more than it saves


def _half_used() -> bool:
    """Whether this is a processor that MKL leaves half unused."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not on Linux
        return False
    first = dict(line.replace("\t", "").split(": ", 1) for line in lines[:10] if ": " in line)
    return first.get("vendor_id") == "AuthenticAMD" and int(first.get("cpu family", "0")) >= 26


_MANY = 2048  # rows of x from which on oneDNN is the faster on any processor: MKL does not keep them near
_REACHED = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_ONEDNN = _REACHED and _half_used()


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

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        if not torch.is_grad_enabled():
            return self.passed(x)[-1]
        *hidden, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in hidden:
            x = F.linear(x, weight, bias).relu()
        return F.linear(x, *last)

    @torch.no_grad()
    def passed(self, x: Tensor) -> list[Tensor]:
        """What goes into each layer, x [B, I] first, and behind these the outputs [B, O]."""
        *hidden, last = zip(self.weights, self.biases, strict=True)
        passed = [x]
        for weight, bias in hidden:
            passed.append(product(passed[-1], weight, bias).relu_())
        return [*passed, product(passed[-1], *last)]

    @torch.no_grad()
    def learn(self, passed: list[Tensor], gradient: Tensor, rows: int) -> Tensor:
        """Set the gradients of weights and biases, and give that of x in rows that nothing is learned from.

        Args:
            passed: what `passed` gave.
            gradient: of the outputs, [B, O].
            rows: how many of the first count for the weights; of the others the gradient of x is given, [B - rows, I].
        """
        inputs = passed[:-1]
        for layer in reversed(range(len(inputs))):
            own = gradient[:rows]
            self.weights[layer].grad = product(own.t(), inputs[layer][:rows].t())
            self.biases[layer].grad = own.sum(0)
            if layer:
                gradient = product(gradient, self.weights[layer].t())
                gradient = torch.ops.aten.threshold_backward(gradient, inputs[layer], 0)
        return product(gradient[rows:], self.weights[0].t())


def goes_to_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether `product` leaves products of such factors in float32 to it."""
    if not _REACHED or x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    return min(x.numel(), weight.numel()) >= _LARGE and (_ONEDNN or len(x) >= _MANY)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b of [B, I] and [O, I], in whichever order they lie in memory."""
    half = x.dtype == torch.bfloat16 and x.device.type == "cpu" and min(x.numel(), weight.numel()) >= _LARGE
    if goes_to_onednn(x, weight) or (half and _REACHED):
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return made
    return F.linear(x, weight, bias)
