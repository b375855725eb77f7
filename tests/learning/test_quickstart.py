"""What the README promises: ask for a return, get about as much."""

from __future__ import annotations

import json

import numpy as np
import pytest

from seqwm.evaluation.evaluate import Evaluation
from seqwm.run import train


@pytest.mark.learning
def test_the_quickstart_reaches_475_at_500_and_more_where_more_is_asked_for(tmp_path, monkeypatch):
    """As it ships; three seeds stand in recipes/studies/quickstart/results.json. The logs' median return is 24."""
    monkeypatch.chdir(tmp_path)
    out = train("quickstart", changes=["train.track=[]", "evaluate.replay=false"])
    found = Evaluation.from_json(json.loads((out / "evaluation.json").read_text()))
    achieved = {
        target: np.mean([outcome.achieved for asked, outcome in found.records if asked == target])
        for target in found.targets
    }
    means = [achieved[target] for target in sorted(achieved)]
    assert sorted(achieved) == [100, 200, 300, 400, 500]
    assert means[-1] >= 475
    assert means == sorted(means)
    assert means[0] < 200
