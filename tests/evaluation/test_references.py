from __future__ import annotations

import json
from pathlib import Path

import pytest

from seqwm.core.errors import RecipeError
from seqwm.evaluation.references import own_reference, reference

MEASURED = Path(__file__).resolve().parents[3] / "shared/data/reference_returns.json"


def test_a_score_is_0_at_the_low_return_and_100_at_the_high_one() -> None:
    hopper = reference("d4rl/hopper")
    assert hopper.score(hopper.low) == 0.0
    assert hopper.score(hopper.high) == 100.0
    assert hopper.score(1607.013847) == pytest.approx(50.0)


def test_d4rl_constants_are_never_taken_for_an_environment_by_themselves() -> None:
    assert own_reference("Hopper-v5").name == "seqwm/Hopper-v5"
    assert own_reference("Hopper-v4") is None
    assert own_reference("hopper") is None


def test_an_unknown_reference_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="'d4rl/hoper': unknown; did you mean 'd4rl/hopper'"):
        reference("d4rl/hoper")


@pytest.mark.shared
@pytest.mark.skipif(not MEASURED.exists(), reason="the real logs are not beside the checkout")
def test_the_measured_references_are_those_that_were_measured() -> None:
    for name, measured in json.loads(MEASURED.read_text()).items():
        ours = reference("seqwm/Pong-as-logged" if name.startswith("Pong") else f"seqwm/{name}")
        assert (ours.low, ours.high) == (measured["random"]["mean"], measured["expert"]["mean"])
