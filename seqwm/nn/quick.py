"""Networks of frames for play: in bf16 where the machine computes in it, and as they are elsewhere.

Convolutions in bf16 take half the time of float32 on processors with AVX512-BF16 or AMX and on GPUs, and many times as
long where it is only imitated. On a processor their weights are put once in the order that oneDNN multiplies in,
which it otherwise does at every call: of small maps that is a quarter of the time.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from seqwm.nn.processor import computes_in_bf16, reaches_onednn
from seqwm.nn.unet import UNet

Model = TypeVar("Model")
_PACKS = reaches_onednn(in_bf16=True) and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def quick(model: Model) -> Model:
    """A copy of a model whose UNets run in bf16; the model itself where the machine does not, or there is none in it.

    What its output is added to, noise levels, and the scales of norms until they are used stay in float32.
    """
    if not isinstance(model, nn.Module) or not any(isinstance(part, UNet) for part in model.modules()):
        return model
    device = next(model.parameters()).device
    if not computes_in_bf16(device.type):
        return model
    copied = copy.deepcopy(model)
    for network in copied.modules():
        if isinstance(network, UNet):
            for part in network.modules():
                if isinstance(part, nn.Conv2d | nn.GroupNorm):
                    part.to(torch.bfloat16)
            network.modulate.to(torch.bfloat16)
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if device.type == "cpu" and _PACKS:
                _pack(network)
    return copied


def _pack(network: nn.Module) -> None:
    """Every convolution in a network replaced by a packed one."""
    for part in list(network.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.Conv2d):
                setattr(part, name, _Packed(child))


class _Packed(nn.Module):
    """A convolution for inference on a processor, bit for bit what it was: only the order of its weights is another.

    That order depends on the size of the first images that come; others come out the same, a little later.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.setting = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
        self.ordered: Tensor | None = None

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same as the convolution gave."""
        if self.ordered is None:
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            self.ordered = reorder(self.weight.to_mkldnn(), *self.setting, list(x.shape))
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(x, self.ordered, self.bias, *self.setting, "none", [], "")
        return out
