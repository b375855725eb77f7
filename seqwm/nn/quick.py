"""Networks of frames for play: in bf16 where the machine computes in it, and as they are elsewhere.

Convolutions in bf16 take half the time of float32 on processors with AVX512-BF16 or AMX and on GPUs, and many times as
long where it is only imitated. What the machine can do is asked once; nothing is timed, for a run that chose by the
clock would not be the same twice.
"""

from __future__ import annotations

import copy
import functools
from typing import TypeVar

import torch
from torch import nn

from seqwm.nn.unet import UNet

Model = TypeVar("Model")


@functools.cache
def computes_in_bf16(kind: str) -> bool:
    """Whether devices of a kind ('cpu', 'cuda') have instructions for products in bf16."""
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
    if kind != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, question, bool)()) for question in questions)


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
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return copied
