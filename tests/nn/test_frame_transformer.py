"""The transformer over frames of tokens: its cache is exact, and nobody but itself sees a draft."""

from __future__ import annotations

import pytest
import torch

from seqwm.nn.frame_transformer import FrameTransformer

SPAN, FRAMES = 3, 9
KEPT = torch.zeros(FRAMES, dtype=torch.bool)


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = FrameTransformer(rows=5, columns=1, layers=3, width=16, heads=2, span=SPAN)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


@pytest.fixture
def history():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, FRAMES, 5, 16, generator=generator), torch.randn(2, FRAMES, 16, generator=generator)


def frame_by_frame(network, x, condition):
    past, said, pasts = network.empty(len(x), "cpu"), [], []
    for t in range(x.shape[1]):
        pasts.append(past)
        out, keys, values = network(x[:, t : t + 1], condition[:, t : t + 1], past, torch.zeros(1).long(), KEPT[:1])
        past = past.remember(keys, values, torch.ones(2).long())
        said.append(out)
    return torch.cat(said, 1), pasts


def test_frame_by_frame_with_the_cache_equals_one_pass_however_long(network, history):
    x, condition = history
    whole, _, _ = network(x, condition, network.empty(2, "cpu"), torch.arange(FRAMES), KEPT)
    torch.testing.assert_close(frame_by_frame(network, x, condition)[0], whole, rtol=1e-5, atol=1e-5)


def test_a_draft_beside_the_frames_before_it_equals_one_behind_a_cache_of_them(network, history):
    x, condition = history
    generator = torch.Generator().manual_seed(2)
    drafts, theirs = torch.randn(2, FRAMES, 5, 16, generator=generator), torch.randn(2, FRAMES, 16, generator=generator)
    times = torch.cat((torch.arange(FRAMES), torch.arange(FRAMES)))
    both = torch.cat((x, drafts), 1), torch.cat((condition, theirs), 1)
    said, _, _ = network(*both, network.empty(2, "cpu"), times, torch.cat((KEPT, ~KEPT)))
    kept, pasts = frame_by_frame(network, x, condition)
    torch.testing.assert_close(said[:, :FRAMES], kept, rtol=1e-5, atol=1e-5)  # no kept frame sees a draft
    for t, past in enumerate(pasts):
        alone, _, _ = network(drafts[:, t : t + 1], theirs[:, t : t + 1], past, torch.zeros(1).long(), ~KEPT[:1])
        torch.testing.assert_close(said[:, FRAMES + t : FRAMES + t + 1], alone, rtol=1e-5, atol=1e-5)


def test_lanes_may_remember_different_numbers_of_frames(network, history):
    x, condition = history
    whole, _, _ = network(x, condition, network.empty(2, "cpu"), torch.arange(FRAMES), KEPT)
    empty = network.empty(2, "cpu")
    _, keys, values = network(x[:, :4], condition[:, :4], empty, torch.arange(4), KEPT[:4])
    past = empty.remember(keys, values, torch.tensor([4, 1]))
    following = torch.stack([x[0, 4:6], x[1, 1:3]]), torch.stack([condition[0, 4:6], condition[1, 1:3]])
    out, _, _ = network(*following, past, torch.arange(2), KEPT[:2])
    torch.testing.assert_close(out[0], whole[0, 4:6], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[1], whole[1, 1:3], rtol=1e-5, atol=1e-5)
