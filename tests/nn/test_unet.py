"""The UNet: shapes, its zero beginning, its condition, and what unshuffling keeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seqwm.nn.unet import AdaptiveGroupNorm, FourierFeatures, UNet


@pytest.mark.parametrize(("channels", "blocks", "unshuffle"), [((16,), 1, 4), ((16, 32), 2, 1), ((16, 24, 32), 1, 2)])
def test_a_fresh_network_says_zero_in_the_size_of_the_image(channels, blocks, unshuffle):
    network = UNet(5, 3, channels, blocks, 8, unshuffle)
    out = network(torch.randn(2, 5, 16, 16), torch.randn(2, 8))
    assert torch.equal(out, torch.zeros(2, 3, 16, 16))


def test_every_weight_is_reached_and_the_condition_is_heard():
    torch.manual_seed(0)
    network = UNet(3, 3, (16, 32), 1, 8, 2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, condition = torch.randn(2, 3, 16, 16), torch.randn(2, 8)
    network(x, condition).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())
    assert not torch.allclose(network(x, condition), network(x, condition + 1))
    torch.testing.assert_close(network(x, condition)[1:], network(x[1:], condition[1:]), rtol=1e-4, atol=1e-5)


def test_an_adaptive_norm_is_a_group_norm_scaled_and_shifted():
    torch.manual_seed(0)
    norm = AdaptiveGroupNorm(32, 4)
    x, condition = torch.randn(3, 32, 5, 5), torch.randn(3, 4)
    scale, shift = (condition @ norm.modulate.weight.T + norm.modulate.bias).chunk(2, 1)
    expected = F.group_norm(x, 2) * (1 + scale[..., None, None]) + shift[..., None, None]
    torch.testing.assert_close(norm(x, condition), expected)


def test_fourier_features_are_cosines_and_sines_of_turns():
    features = FourierFeatures(6)
    x = torch.tensor([0.0, 0.25])
    turns = 2 * torch.pi * x[:, None] * features.frequencies
    torch.testing.assert_close(features(x), torch.cat((turns.cos(), turns.sin()), 1))
    assert torch.equal(features(x)[0], torch.tensor([1.0, 1, 1, 0, 0, 0]))
