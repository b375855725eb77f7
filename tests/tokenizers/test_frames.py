"""Tokens of frames: local, row by row, back and forth."""

from __future__ import annotations

import pytest
import torch

from seqwm.tokenizers.frames import FrameTokenizer, TokenizerOptions

OPTIONS = TokenizerOptions(patch=2, codes=16, width=16)


def fresh():
    torch.manual_seed(0)
    return FrameTokenizer(3, (4, 6), OPTIONS).eval()


def test_a_token_is_a_function_of_its_own_square_of_pixels():
    tokenizer = fresh()
    frames = torch.rand(5, 3, 4, 6) * 2 - 1
    tokens = tokenizer.encode(frames)
    assert tokens.shape == (5, 6) == (5, tokenizer.places)
    for place in range(6):
        row, column = divmod(place, 3)
        elsewhere = torch.rand(5, 3, 4, 6) * 2 - 1
        square = (..., slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
        elsewhere[square] = frames[square]
        assert torch.equal(tokenizer.encode(elsewhere)[:, place], tokens[:, place])


def test_what_training_draws_is_what_tokens_are_decoded_to():
    tokenizer = fresh()
    frames = torch.rand(2, 3, 3, 4, 6) * 2 - 1
    drawn, tokens = tokenizer(frames.flatten(0, 1))
    assert torch.equal(tokenizer.encode(frames), tokens.view(2, 3, 6))
    torch.testing.assert_close(tokenizer.decode(tokens.view(2, 3, 6)), drawn.view_as(frames))


def test_squares_of_different_colours_get_tokens_of_their_own_and_come_back_as_they_were():
    tokenizer = fresh().train()
    colours = torch.rand(10, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for _ in range(200):
        tokenizer(colours[torch.randint(10, (16, 2, 3))].repeat_interleave(2, 1).repeat_interleave(2, 2).movedim(-1, 1))
    plain = colours.view(10, 3, 1, 1).expand(-1, -1, 4, 6)
    tokens = tokenizer.eval().encode(plain)
    assert len(tokens.unique()) == 10
    torch.testing.assert_close(tokenizer.decode(tokens), plain, atol=1e-3, rtol=0)


def test_the_decoder_adds_what_codes_do_not_say():
    torch.manual_seed(0)
    tokenizer = FrameTokenizer(1, (4, 6), TokenizerOptions(patch=2, codes=2, width=16)).train()
    frames = torch.linspace(-1, 1, 6).expand(16, 1, 4, 6)  # three squares a row: more than two codes can name
    optimiser = torch.optim.Adam(tokenizer.parameters(), 1e-2)
    errors = []
    for _ in range(200):
        error = (tokenizer(frames)[0] - frames).square().mean()
        error.backward()
        optimiser.step()
        optimiser.zero_grad()
        errors.append(float(error.detach()))
    assert len(tokenizer.encode(frames).unique()) == 2
    assert errors[-1] < 0.1 * errors[30]


@pytest.mark.parametrize("change", [{"patch": 0}, {"codes": 1}, {"width": 0}])
def test_options_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        TokenizerOptions(**change)
