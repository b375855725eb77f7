from __future__ import annotations

import json

import pytest

from seqwm.cli import main
from seqwm.core.errors import CheckpointError
from seqwm.dreaming import dream
from seqwm.recipe import parse_recipe
from seqwm.run import train

MAZE = {
    "method": "dyna_q",
    "collect": {"environment": "seqwm/DynaMaze-v0", "prefill": 3000},
    "model": {"planning": 50},
    "train": {"steps": 1500, "track": []},
    "evaluate": {"episodes": 1, "replay": False},
}


def test_a_table_of_a_maze_dreams_what_is_real(tmp_path, capsys) -> None:
    run = train(parse_recipe(json.dumps(MAZE), "r"), tmp_path / "run")
    capsys.readouterr()
    assert main(["dream", str(run), "--horizon", "30", "--episodes", "2", "--contexts", "60"]) == 0
    told = capsys.readouterr().out
    assert "error of the observation (share wrong) at 1: 0, 2: 0, 5: 0, 10: 0, 20: 0, 30: 0" in told
    assert "they never part" in told
    measured = json.loads((run / "dream" / "dream.json").read_text())
    assert measured["gap"]["dream"] == measured["gap"]["reality"]
    assert measured["gap"]["reality"]["returns"] == [1, 1]
    assert measured["data"] == str(run / "replay")
    assert {path.name for path in (run / "dream").iterdir()} == {"dream.json", "dream.png", "rollout.png"}
    wandering = dream(run, policy="random", episodes=3, horizon=5, contexts=8, out=tmp_path / "other")
    assert wandering.gap is not None
    assert wandering.gap.reality.returns == [0, 0, 0]


def test_what_is_no_world_model_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes = ["train.track=[]", "train.steps=1", "evaluate.episodes=1", "evaluate.replay=false"]
    run = train("quickstart", changes=changes)
    with pytest.raises(CheckpointError, match="DecisionTransformer is no world model"):
        dream(run)
