"""Tokens of video: they see what was before and beside them, the decoder one frame; training learns them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from seqwm.tokenizers.frames import TokenizerOptions
from seqwm.tokenizers.video import VideoTokenizer

OPTIONS = TokenizerOptions(patch=2, levels=(4, 3), width=32, layers=1, span=2)


def fresh(options=OPTIONS):
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(3, (4, 6), options)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return tokenizer.eval()


def noise(lanes, frames):
    return torch.rand(lanes, frames, 3, 4, 6) * 2 - 1


def test_a_token_is_one_of_the_points_of_its_levels():
    tokenizer = fresh()
    assert (tokenizer.codes, tokenizer.places, tokenizer.points.shape) == (12, 6, (12, 2))
    assert len(tokenizer.points.unique(dim=0)) == 12
    tokens = tokenizer.encode(noise(8, 3))
    assert tokens.shape == (8, 3, 6)
    assert 0 <= tokens.min() <= tokens.max() < 12


def test_a_token_sees_its_span_of_frames_and_none_that_comes_later():
    tokenizer = fresh()
    frames = noise(16, 5)
    tokens = tokenizer.encode(frames)
    for changed in range(5):
        other = frames.clone()
        other[:, changed] = noise(16, 1)[:, 0]
        differs = (tokenizer.encode(other) != tokens).any(0).any(-1).tolist()
        assert differs == [changed <= frame < changed + 2 for frame in range(5)]


def test_a_token_sees_the_squares_around_its_own():
    tokenizer = fresh()
    frames = noise(32, 1)
    other = frames.clone()
    other[..., :2, :2] = noise(32, 1)[..., :2, :2]
    assert (tokenizer.encode(other) != tokenizer.encode(frames))[..., 1:].any()


def test_frames_are_drawn_from_their_own_tokens_alone_and_in_training_from_the_same():
    tokenizer = fresh()
    frames = noise(4, 3)
    with torch.no_grad():
        drawn, tokens = tokenizer(frames)
    assert torch.equal(tokenizer.encode(frames), tokens)
    torch.testing.assert_close(tokenizer.decode(tokens), drawn)
    torch.testing.assert_close(tokenizer.decode(tokens.flatten(0, 1)[:, None]), drawn.flatten(0, 1)[:, None])


def test_gradients_pass_the_rounding_to_all_that_is_learned_but_what_hears_a_condition():
    tokenizer = fresh().train()
    tokenizer(noise(4, 3))[0].square().mean().backward()
    still = {name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == {"see.blocks.0.modulate.weight", "draw.blocks.0.modulate.weight"}  # there is none


@pytest.mark.learning
def test_pictures_of_as_many_shades_as_there_are_codes_come_back():
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(1, (2, 4), dataclasses.replace(OPTIONS, levels=(6,)))
    optimiser = torch.optim.Adam(tokenizer.parameters(), 3e-3)

    def pictures(lanes):
        shades = torch.randint(6, (lanes, 2, 1, 1, 2)) / 2.5 - 1
        return shades.repeat_interleave(2, -1).expand(-1, -1, -1, 2, -1)

    for _ in range(300):
        frames = pictures(32)
        loss = (tokenizer(frames)[0] - frames).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    tokenizer.eval()
    frames = pictures(64)
    mean_off = (frames - frames.mean()).square().mean()
    assert (tokenizer.decode(tokenizer.encode(frames)) - frames).square().mean() < 0.02 * mean_off


@pytest.mark.parametrize("change", [{"levels": (1,)}, {"width": 48}, {"layers": 0}, {"span": 0}])
def test_options_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(OPTIONS, **change)
