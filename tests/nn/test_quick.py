"""Networks for play: near those in float32, and those themselves where the machine has no bf16."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from seqwm.nn import quick as quick_module
from seqwm.nn.quick import quick
from seqwm.nn.unet import UNet


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.network, self.head = UNet(5, 3, (16, 32), 1, 8, 2), nn.Linear(4, 4)
        torch.nn.init.normal_(self.network.leave.weight, std=0.1)


@pytest.mark.parametrize("lanes", [1, 3])
def test_what_a_quick_network_says_is_near_what_it_says_in_float32(lanes, monkeypatch):
    monkeypatch.setattr(quick_module, "computes_in_bf16", lambda kind: True)
    torch.manual_seed(0)
    model = Model()
    before = copy.deepcopy(model.state_dict())
    faster = quick(model)
    x, condition = torch.randn(lanes, 5, 16, 16), torch.randn(lanes, 8)
    with torch.no_grad():
        wanted, found = model.network(x, condition), faster.network(x, condition)
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).square().mean() < 1e-4 * wanted.square().mean()
    assert faster.head.weight.dtype == torch.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.skipif(not quick_module._PACKS, reason="oneDNN does not compute in bf16 here")
@pytest.mark.parametrize(("size", "stride", "lanes"), [(3, 1, 1), (3, 2, 2), (1, 1, 3)])
def test_a_packed_convolution_gives_the_same_bits_for_images_of_any_size(size, stride, lanes):
    torch.manual_seed(0)
    convolution = nn.Conv2d(5, 16, size, stride=stride, padding=size // 2).to(torch.bfloat16)
    packed = quick_module._Packed(convolution)
    with torch.no_grad():
        for side in (16, 8, 32):
            x = torch.randn(lanes, 5, side, side).bfloat16().contiguous(memory_format=torch.channels_last)
            assert torch.equal(packed(x), convolution(x))


def test_without_bf16_or_a_network_of_frames_a_model_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(quick_module, "computes_in_bf16", lambda kind: False)
    model, head = Model(), nn.Linear(2, 2)
    assert quick(model) is model
    monkeypatch.setattr(quick_module, "computes_in_bf16", lambda kind: True)
    assert quick(head) is head
    assert quick("no module") == "no module"
