"""The UNet: shapes, its zero beginning, its condition, and what unshuffling keeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seqwm.nn.unet import FourierFeatures, UNet, adaptive_group_norm


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


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_an_adaptive_norm_is_a_group_norm_scaled_and_shifted(lanes, kind):
    torch.manual_seed(0)
    x, scale, shift = (torch.randn(lanes, 32, *sides, dtype=kind) for sides in ((5, 5), (), ()))
    expected = F.group_norm(x, 2) * scale[..., None, None] + shift[..., None, None]
    torch.testing.assert_close(adaptive_group_norm(x, 2, scale, shift), expected)


def test_attention_is_softmax_of_products_over_all_places():
    torch.manual_seed(0)
    network = UNet(3, 3, (16,), 1, 8, attention=True, group=8)
    attend = network.attend[0]
    torch.nn.init.normal_(attend.answer.weight)
    x = torch.randn(2, 16, 3, 4)
    asked = attend.ask(F.group_norm(x, 2)).reshape(2, 6, 8, 12)
    found = []
    for head in range(2):
        q, k, v = (asked[:, kind * 2 + head] for kind in range(3))
        found.append(torch.einsum("bcj,bij->bci", v, (torch.einsum("bci,bcj->bij", q, k) / 8**0.5).softmax(-1)))
    expected = x + attend.answer(torch.cat(found, 1).reshape(x.shape))
    torch.testing.assert_close(attend(x), expected, rtol=1e-4, atol=1e-5)
    assert len(network.middle) == 2


def test_the_modulations_of_several_conditions_at_once_are_those_of_each():
    torch.manual_seed(0)
    network = UNet(3, 3, (16, 32), 1, 8)
    torch.nn.init.normal_(network.leave.weight)
    x, condition = torch.randn(1, 3, 16, 16), torch.randn(2, 8)
    both = network.modulations(condition)
    for number in range(2):
        torch.testing.assert_close(network(x, both[number : number + 1]), network(x, condition[number : number + 1]))


def test_fourier_features_are_cosines_and_sines_of_turns():
    features = FourierFeatures(6)
    x = torch.tensor([0.0, 0.25])
    turns = 2 * torch.pi * x[:, None] * features.frequencies
    torch.testing.assert_close(features(x), torch.cat((turns.cos(), turns.sin()), 1))
    assert torch.equal(features(x)[0], torch.tensor([1.0, 1, 1, 0, 0, 0]))
