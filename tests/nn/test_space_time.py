"""The space-time transformer: its cache equals a pass over the whole history, and time only goes one way."""

from __future__ import annotations

import pytest
import torch

from seqwm.nn.space_time import SpaceTime

SPAN = 4


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = SpaceTime(3, 2, (8, 4), patch=2, channels=16, layers=3, width=32, heads=2, span=SPAN, condition=16)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


@pytest.fixture
def history():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 11, 3, 8, 4, generator=generator), torch.randn(2, 11, 16, generator=generator)


def test_frame_by_frame_with_the_cache_equals_one_pass_however_long(network, history):
    frames, conditions = history
    whole = network(frames, conditions)
    past, drawn = network.empty(2, "cpu"), []
    for t in range(11):
        now = frames[:, t : t + 1], conditions[:, t : t + 1], past
        drawn.append(network(*now))
        past = past.remember(*network.look(*now), torch.ones(2, dtype=torch.int64))
    torch.testing.assert_close(torch.cat(drawn, 1), whole, rtol=1e-4, atol=1e-5)


def test_lanes_may_remember_different_numbers_of_frames(network, history):
    frames, conditions = history
    whole = network(frames, conditions)
    keys, values = network.look(frames[:, :5], conditions[:, :5])
    past = network.empty(2, "cpu").remember(keys, values, torch.tensor([5, 2]))
    following = torch.stack([frames[0, 5:7], frames[1, 2:4]]), torch.stack([conditions[0, 5:7], conditions[1, 2:4]])
    out = network(*following, past)
    torch.testing.assert_close(out[0], whole[0, 5:7], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out[1], whole[1, 2:4], rtol=1e-4, atol=1e-5)


def test_a_frame_is_seen_by_itself_and_later_ones_within_reach_of_the_layers_only(network, history):
    frames, conditions = history
    before = network(frames, conditions)
    changed = frames.clone()
    changed[:, 2] += 1
    after = network(changed, conditions)
    differs = (after - before).abs().amax((0, 2, 3, 4)) > 1e-5
    reach = 3 * (SPAN - 1)  # of three layers
    assert differs.tolist() == [2 <= t <= 2 + reach for t in range(11)]


def test_what_counts_is_the_time_between_frames_not_the_time_itself(network, history):
    frames, conditions = history
    early, late = network.empty(2, "cpu"), network.empty(2, "cpu")
    late = type(late)(late.keys, late.values, late.filled, late.time + 1000)
    one, other = (network(frames, conditions, past) for past in (early, late))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_the_past_of_each_frame_is_what_would_be_remembered_before_it(network, history):
    frames, conditions = history
    whole = network(frames, conditions)
    past = network.before_each(*network.look(frames, conditions))
    now = frames[:, 1:].flatten(0, 1)[:, None], conditions[:, 1:].flatten(0, 1)[:, None]
    torch.testing.assert_close(network(*now, past)[:, 0], whole[:, 1:].flatten(0, 1), rtol=1e-4, atol=1e-5)
