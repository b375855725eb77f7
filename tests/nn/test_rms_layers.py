from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seqwm.nn.dense import MLP
from seqwm.nn.rms_layers import rms_layers


@pytest.mark.parametrize("outputs", [None, 2])
def test_gradients_are_those_of_finite_differences(outputs):
    torch.manual_seed(0)
    network = MLP(3, outputs, 2, 4, "rms", "silu").double()
    parameters = [p.detach() + 0.3 * torch.randn_like(p) for p in network.parameters()]
    x = torch.randn(5, 3, dtype=torch.float64)
    inputs = [one.requires_grad_() for one in (x, *parameters)]

    def passed(x, *parameters):
        layers = [parameters[3 * k : 3 * k + 3] for k in range(2)]
        return rms_layers(x, layers, 1e-4, parameters[6:] or None)

    assert torch.autograd.gradcheck(passed, inputs)


@pytest.mark.parametrize(("width", "rows"), [(4, 5), (64, 128)])  # below and above the size that goes to oneDNN
def test_it_is_the_linear_map_the_norm_and_the_activation_of_torch(width, rows):
    torch.manual_seed(0)
    network, x = MLP(width, 3, 2, width, "rms", "silu"), torch.randn(2, rows, width)
    expected = x
    for layer in network.hidden:
        expected = F.silu(F.rms_norm(layer.linear(expected), (width,), layer.norm.weight, eps=1e-4))
    torch.testing.assert_close(network(x), network.output(expected), atol=1e-5, rtol=1e-5)


def test_weights_that_are_held_still_get_no_gradient_and_the_input_the_same_one():
    torch.manual_seed(0)
    network, x = MLP(3, 2, 2, 8, "rms", "silu"), torch.randn(7, 3, requires_grad=True)
    (free,) = torch.autograd.grad(network(x).sum(), x)
    network.requires_grad_(False)
    network(x).sum().backward()
    assert torch.equal(x.grad, free)
    assert all(p.grad is None for p in network.parameters())


def test_under_autocast_products_are_in_bf16_and_gradients_of_weights_those_of_float32_but_for_rounding():
    torch.manual_seed(0)
    network, x, weight = MLP(64, 32, 2, 64, "rms", "silu"), torch.randn(128, 64), torch.randn(128, 32)
    network(x).mul(weight).sum().backward()
    expected = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        made = network(x)
    made.float().mul(weight).sum().backward()
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), network(x), atol=0.03, rtol=0.03)
    for p, full in zip(network.parameters(), expected, strict=True):
        assert p.grad.dtype == torch.float32
        assert (p.grad - full).norm() < 0.01 * full.norm()
        assert not torch.equal(p.grad, full)
