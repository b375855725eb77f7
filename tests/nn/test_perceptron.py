from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from seqwm.nn.perceptron import Perceptron


def plain(network: Perceptron) -> nn.Sequential:
    """The same network out of torch's own layers."""
    layers: list[nn.Module] = []
    for weight, bias in zip(network.weights, network.biases, strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight, layer.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize(("width", "rows"), [(8, 5), (128, 200)])  # below and above the size that goes to oneDNN
def test_it_is_linear_layers_and_relus_forward_and_backward(width, rows):
    torch.manual_seed(0)
    network = Perceptron(3, 2, 3, width)
    other = plain(network)
    x, y = torch.randn(rows, 3, requires_grad=True), torch.randn(rows, 2)
    own = torch.autograd.grad((network(x) * y).sum(), [x, *network.weights, *network.biases])
    layers = [layer for layer in other if isinstance(layer, nn.Linear)]
    parameters = [x, *(layer.weight for layer in layers), *(layer.bias for layer in layers)]
    expected = torch.autograd.grad((other(x) * y).sum(), parameters)
    torch.testing.assert_close(network(x), other(x), atol=1e-5, rtol=1e-5)
    for one, another in zip(own, expected, strict=True):
        torch.testing.assert_close(one, another, atol=1e-4, rtol=1e-4)


def test_held_weights_get_no_gradient_and_the_input_the_same_one():
    torch.manual_seed(0)
    network, x = Perceptron(3, 1, 2, 16), torch.randn(7, 3, requires_grad=True)
    free = torch.autograd.grad(network(x).sum(), x)[0]
    network(x, held=True).sum().backward()
    assert torch.equal(x.grad, free)
    assert all(p.grad is None for p in network.parameters())


def test_weights_begin_within_one_over_the_root_of_the_inputs():
    torch.manual_seed(0)
    network = Perceptron(9, 4, 2, 100)
    for (inputs, _), weight in zip(pairwise([9, 100, 100, 4]), network.weights, strict=True):
        assert float(weight.detach().abs().max()) == pytest.approx(inputs**-0.5, rel=0.05)
