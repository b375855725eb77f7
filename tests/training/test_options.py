from __future__ import annotations

import itertools
import math

import pytest

from seqwm.training.options import TrainOptions, learning_rate


def test_the_rate_warms_up_linearly_and_stays():
    options = TrainOptions(steps=10, learning_rate=0.8, warmup_steps=4)
    assert [learning_rate(options, step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_the_cosine_falls_from_the_peak_to_a_tenth_of_it_at_the_last_update():
    options = TrainOptions(steps=104, learning_rate=2.0, warmup_steps=3, schedule="cosine")
    rates = [learning_rate(options, step) for step in range(104)]
    assert rates[2] == rates[3] == 2.0
    assert rates[53] == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2))
    assert rates[-1] == pytest.approx(0.2)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[3:]))


def test_a_warm_up_as_long_as_the_run_is_no_division_by_zero():
    options = TrainOptions(steps=3, learning_rate=1.0, warmup_steps=3, schedule="cosine")
    assert [learning_rate(options, step) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch_size", -1),
        ("checkpoint_every", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("gradient_clip", math.nan),
        ("warmup_steps", -1),
        ("weight_decay", math.nan),
        ("betas", (0.9, 1.0)),
        ("ema", 1.0),
    ],
)
def test_senseless_values_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}: found "):
        TrainOptions(**{"steps": 1, name: value})
