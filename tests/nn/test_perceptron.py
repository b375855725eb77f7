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
    passed = network.passed(x)
    of_x = network.learn(passed, y, 0)
    network.learn(passed, y, rows)
    layers = [layer for layer in other if isinstance(layer, nn.Linear)]
    parameters = [x, *(layer.weight for layer in layers), *(layer.bias for layer in layers)]
    expected = torch.autograd.grad((other(x) * y).sum(), parameters)
    torch.testing.assert_close(passed[-1], other(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network(x), passed[-1], atol=1e-5, rtol=1e-5)  # the way that autograd follows
    for one, another in zip([of_x, *(p.grad for p in network.parameters())], expected, strict=True):
        torch.testing.assert_close(one, another, atol=1e-4, rtol=1e-4)


def test_weights_learn_from_the_first_rows_and_inputs_hear_of_the_others():
    torch.manual_seed(0)
    network, x, y = Perceptron(3, 1, 2, 16), torch.randn(7, 3, requires_grad=True), torch.randn(7, 1)
    of_others = network.learn(network.passed(x), y, 4)
    (expected,) = torch.autograd.grad((network(x)[4:] * y[4:]).sum(), x)
    torch.testing.assert_close(of_others, expected[4:])
    found = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    (network(x)[:4] * y[:4]).sum().backward()
    for one, p in zip(found, network.parameters(), strict=True):
        torch.testing.assert_close(one, p.grad)


def test_products_between_hidden_layers_in_bf16_give_what_float32_gives_but_for_rounding():
    torch.manual_seed(0)
    full, half = Perceptron(5, 2, 3, 128), Perceptron(5, 2, 3, 128, torch.bfloat16)
    half.load_state_dict(full.state_dict())
    x, y = torch.randn(200, 5), torch.randn(200, 2)
    own, expected = half.passed(x), full.passed(x)
    assert own[-1].dtype == torch.float32
    assert not torch.equal(own[-1], expected[-1])
    torch.testing.assert_close(own[-1], expected[-1], atol=0.01, rtol=0)
    torch.testing.assert_close(half(x), own[-1], atol=0.01, rtol=0)  # the way that autograd follows
    of_x, of_x_expected = half.learn(own, y, 150), full.learn(expected, y, 150)
    assert (of_x - of_x_expected).norm() < 0.1 * of_x_expected.norm()  # a ReLU or two that switched
    for p, other in zip(half.parameters(), full.parameters(), strict=True):
        assert p.grad.dtype == torch.float32
        assert (p.grad - other.grad).norm() < 0.1 * other.grad.norm()


def test_weights_begin_within_one_over_the_root_of_the_inputs():
    torch.manual_seed(0)
    network = Perceptron(9, 4, 2, 100)
    for (inputs, _), weight in zip(pairwise([9, 100, 100, 4]), network.weights, strict=True):
        assert float(weight.detach().abs().max()) == pytest.approx(inputs**-0.5, rel=0.05)
