"""The space-time transformer: its cache equals a pass over the whole history, and time only goes one way."""

from __future__ import annotations

import pytest
import torch

from seqwm.nn.space_time import SpaceTime, _patches, _unpatched

SPAN = 4


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = SpaceTime(3, 2, (8, 4), patch=2, layers=3, width=32, heads=2, span=SPAN, condition=16)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


@pytest.fixture
def history():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 11, 3, 8, 4, generator=generator), torch.randn(2, 11, 16, generator=generator)


def test_frame_by_frame_with_the_cache_equals_one_pass_however_long(network, history):
    frames, conditions = history
    whole, _, _ = network(frames, conditions)
    past, drawn = network.empty(2, "cpu"), []
    for t in range(11):
        out, keys, values = network(frames[:, t : t + 1], conditions[:, t : t + 1], past)
        past = network.remember(past, keys, values, torch.ones(2, dtype=torch.int64))
        drawn.append(out)
    torch.testing.assert_close(torch.cat(drawn, 1), whole, rtol=1e-4, atol=1e-5)


def test_lanes_may_remember_different_numbers_of_frames(network, history):
    frames, conditions = history
    whole, _, _ = network(frames, conditions)
    _, keys, values = network(frames[:, :5], conditions[:, :5])
    past = network.remember(network.empty(2, "cpu"), keys, values, torch.tensor([5, 2]))
    following = torch.stack([frames[0, 5:7], frames[1, 2:4]]), torch.stack([conditions[0, 5:7], conditions[1, 2:4]])
    out, _, _ = network(*following, past)
    torch.testing.assert_close(out[0], whole[0, 5:7], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out[1], whole[1, 2:4], rtol=1e-4, atol=1e-5)


def test_a_frame_is_seen_by_itself_and_later_ones_within_reach_of_the_layers_only(network, history):
    frames, conditions = history
    before, _, _ = network(frames, conditions)
    changed = frames.clone()
    changed[:, 2] += 1
    after, _, _ = network(changed, conditions)
    differs = (after - before).abs().amax((0, 2, 3, 4)) > 1e-5
    reach = 3 * (SPAN - 1)  # of three layers
    assert differs.tolist() == [2 <= t <= 2 + reach for t in range(11)]


def test_what_counts_is_the_time_between_frames_not_the_time_itself(network, history):
    frames, conditions = history
    early, late = network.empty(2, "cpu"), network.empty(2, "cpu")
    late = type(late)(late.keys, late.values, late.filled, late.time + 1000)
    one, other = (network(frames, conditions, past)[0] for past in (early, late))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_patches_are_pixels_of_their_square_and_go_back_to_where_they_came_from():
    frames = torch.arange(2 * 1 * 3 * 4 * 6).float().view(2, 1, 3, 4, 6)
    patches = _patches(frames, 2)
    assert patches.shape == (2, 1, 6, 12)
    torch.testing.assert_close(patches[1, 0, 4], frames[1, 0, :, 2:4, 2:4].flatten())
    torch.testing.assert_close(_unpatched(patches, 2, 2, 3, 3), frames)
