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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqwm.nn.processor import half_used_by_mkl, reaches_onednn

_LARGE = 64 * 64  # entries of either factor below which calling oneDNN costs more than it saves
_MANY = 2048  # rows of x from which on oneDNN is the faster on any processor: MKL does not keep them near
_REACHED, _HALF = reaches_onednn(), reaches_onednn(in_bf16=True)
_ONEDNN = _REACHED and half_used_by_mkl()


class Perceptron(nn.Module):
    """[B, I] to [B, O]; weights and biases begin as those of torch.nn.Linear.

    Args:
        inputs, outputs: I and O.
        layers, width: of the hidden part.
        kind: of products between hidden layers, if another than the weights'; what is read and given is as they are.
    """

    def __init__(self, inputs: int, outputs: int, layers: int, width: int, kind: torch.dtype | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for a, b in pairwise([inputs, *[width] * layers, outputs]):
            bound = 1 / math.sqrt(a)
            self.weights.append(nn.Parameter(torch.empty(b, a).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(b).uniform_(-bound, bound)))

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        if not torch.is_grad_enabled():
            return self.passed(x)[-1]
        *hidden, last = self._maps()
        for weight, bias in hidden:
            x = F.linear(x.to(weight.dtype), weight, bias).relu()
        return F.linear(x.to(last[0].dtype), *last)

    @torch.no_grad()
    def passed(self, x: Tensor) -> list[Tensor]:
        """What goes into each layer, x [B, I] first, and behind these the outputs [B, O]."""
        maps, passed = self._maps(), [x]
        for (weight, bias), (following, _) in pairwise(maps):
            passed.append(product(passed[-1], weight, bias).relu_().to(following.dtype))
        return [*passed, product(passed[-1], *maps[-1])]

    @torch.no_grad()
    def learn(self, passed: list[Tensor], gradient: Tensor, rows: int) -> Tensor:
        """Set the gradients of weights and biases, and give that of x in rows that nothing is learned from.

        Args:
            passed: what `passed` gave.
            gradient: of the outputs, [B, O].
            rows: how many of the first count for the weights; of the others the gradient of x is given, [B - rows, I].
        """
        inputs = passed[:-1]
        for layer, (weight, _) in reversed(list(enumerate(self._maps()))):
            gradient = gradient.to(weight.dtype)
            own = gradient[:rows]
            self.weights[layer].grad = product(own.t(), inputs[layer][:rows].t()).to(passed[0].dtype)
            self.biases[layer].grad = own.sum(0, dtype=passed[0].dtype)
            if layer:
                gradient = product(gradient, weight.t()).to(inputs[layer].dtype)
                gradient = torch.ops.aten.threshold_backward(gradient, inputs[layer], 0)
        return product(gradient[rows:], self.weights[0].t())

    def _maps(self) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases of each layer in the type of its products."""
        maps: list[tuple[Tensor, Tensor]] = list(zip(self.weights, self.biases, strict=True))
        if self.kind is not None:
            maps[1:-1] = [(weight.to(self.kind), bias.to(self.kind)) for weight, bias in maps[1:-1]]
        return maps


def goes_to_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether `product` leaves products of such factors in float32 to it."""
    if not (_ONEDNN or (_REACHED and len(x) >= _MANY)) or x.dtype != torch.float32 or x.device.type != "cpu":
        return False
    return min(x.numel(), weight.numel()) >= _LARGE


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b of [B, I] and [O, I], in whichever order they lie in memory."""
    half = _HALF and x.dtype == torch.bfloat16 and x.device.type == "cpu"
    if goes_to_onednn(x, weight) or (half and min(x.numel(), weight.numel()) >= _LARGE):
        made: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
        return made
    return F.linear(x, weight, bias)
