"""MBPO balances an inverted pendulum after sixteen hundred steps, within a minute and a half of one core."""

from __future__ import annotations

import json

import numpy as np
import pytest

from seqwm.run import train

pytestmark = pytest.mark.learning


def test_an_inverted_pendulum_is_balanced_after_steps_that_teach_soft_actor_critic_alone_nothing(tmp_path):
    changes = ["train.track=[]", "evaluate.every=null", "evaluate.replay=false"]
    out = train("mbpo/inverted-pendulum", tmp_path / "run", changes=changes)
    returns = [one["return"] for one in json.loads((out / "evaluation.json").read_text())["episodes"]]
    assert np.mean(returns) > 300  # 631 to 1000 over five seeds; without a world, 131 after 12 200 steps
