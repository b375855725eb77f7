"""Filling in masked tokens: against every way that a tiny frame can be drawn."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from seqwm.nn.masked_tokens import fill_in, still_masked, training_mask

PLACES, VOCABULARY = 3, 2
MASKED = VOCABULARY
TABLE = 2 * torch.randn(VOCABULARY + 1, VOCABULARY + 1, VOCABULARY + 1, PLACES, VOCABULARY, generator=torch.Generator().manual_seed(0))  # fmt: skip # noqa: E501


def logits(tokens):
    """Of a network that is a table: any numbers for any tokens."""
    return TABLE[tokens[:, 0], tokens[:, 1], tokens[:, 2]]


def drawn_by_hand(steps, temperature):
    """The probability of every frame, by following every draw of every step."""
    frames = {(MASKED,) * PLACES: 1.0}
    for left in still_masked(PLACES, steps):
        following = {}
        for frame, chance in frames.items():
            said = (logits(torch.tensor([frame]))[0] / temperature).softmax(-1)
            open_places = [place for place in range(PLACES) if frame[place] == MASKED]
            for tokens in itertools.product(range(VOCABULARY), repeat=len(open_places)):
                drawn = dict(zip(open_places, tokens, strict=True))
                sure = {place: float(said[place, token]) for place, token in drawn.items()}
                kept = sorted(open_places, key=lambda place: sure[place])[left:]
                result = tuple(drawn[p] if p in kept else frame[p] for p in range(PLACES))
                following[result] = following.get(result, 0.0) + chance * math.prod(sure.values())
        frames = following
    return frames


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_frames_are_drawn_as_often_as_following_every_draw_says(steps, temperature):
    expected = drawn_by_hand(steps, temperature)
    assert sum(expected.values()) == pytest.approx(1)
    lanes, generator = 40_000, torch.Generator().manual_seed(1)
    blank = torch.full((lanes, PLACES), MASKED)
    found = fill_in(logits, blank, MASKED, steps, temperature, generator)
    for frame, chance in expected.items():
        share = float((found == torch.tensor(frame)).all(1).float().mean())
        assert share == pytest.approx(chance, abs=5 * math.sqrt(0.25 / lanes))


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_without_a_generator_the_likeliest_tokens_are_taken_the_surest_first(steps):
    frame = [MASKED] * PLACES
    for left in still_masked(PLACES, min(steps, PLACES)):
        sure, token = logits(torch.tensor([frame]))[0].softmax(-1).max(-1)
        open_places = sorted((p for p in range(PLACES) if frame[p] == MASKED), key=lambda p: float(sure[p]))
        for place in open_places[left:]:
            frame[place] = int(token[place])
    found = fill_in(logits, torch.full((2, PLACES), MASKED), MASKED, steps, 1.0, None)
    assert found.tolist() == [frame, frame]


def test_what_a_lane_draws_does_not_depend_on_the_lanes_beside_it():
    def drawn(lanes):
        generator = torch.Generator().manual_seed(0)
        return fill_in(lambda t: logits(t) * scale[: len(t), None, None], blank[:lanes], MASKED, 3, 1.0, generator)

    blank, scale = torch.full((8, PLACES), MASKED), torch.ones(8)
    before = drawn(8)
    scale[1:] = -3.0
    assert torch.equal(drawn(8)[0], before[0])
    assert not torch.equal(drawn(8), before)


def test_the_schedule_is_a_cosine_that_fills_in_some_at_every_step():
    assert still_masked(64, 4) == [59, 45, 24, 0]
    assert still_masked(64, 1) == [0]
    for places, steps in itertools.product((1, 2, 5, 64), (1, 2, 3, 5)):
        left = [places, *still_masked(places, min(steps, places))]
        assert left[-1] == 0
        assert all(one > other >= 0 for one, other in itertools.pairwise(left))


def test_training_hides_the_shares_that_play_meets():
    torch.manual_seed(0)
    hidden = training_mask((20_000, 16), "cpu")
    share = hidden.float().mean(1)
    assert share.min() > 0
    # the share is cos(pi u / 2), u uniform, so below s with probability 1 - 2 arccos(s) / pi
    for s in (0.25, 0.5, 0.75):
        assert float((share <= s).float().mean()) == pytest.approx(1 - 2 / math.pi * math.acos(s), abs=0.015)
    places = hidden.float().mean(0)
    torch.testing.assert_close(places, places.mean().expand_as(places), atol=0.02, rtol=0)
