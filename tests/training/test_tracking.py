from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seqwm.core.errors import MissingPackageError
from seqwm.training.tracking import Tracking, read_metrics


def run(folder, steps, *, start=0, stop=None, every=1, names=(), scale=1.0, total=100):
    options = {"seconds": 5.0 * start, "every": every, "steps": total, "identity": "ab12", "config": {"seed": 3}}
    with Tracking(folder, names, start=start, **options) as tracking:
        for step in range(start, steps):
            tracking(step, {"loss": scale * step}, False)


def losses(path):
    return [(line["step"], line["loss"]) for line in read_metrics(path)]


def test_metrics_are_lines_of_json_that_are_there_at_once(tmp_path):
    with Tracking(tmp_path, (), start=0, seconds=0.0, every=2, steps=6, identity="ab12", config={}) as tracking:
        for step in range(5):
            tracking(step, {"loss": 0.1 * step}, False)
        assert losses(tmp_path / "metrics.jsonl") == [(0, 0.0), (2, 0.2), (4, 0.4)]
        tracking(5, {"loss": 7.0}, True)  # the last update is written although it is not an even one
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"step", "loss", "seconds"}] * 4
    assert lines[-1]["step"] == 5


def test_a_resumed_run_cuts_the_file_back_to_its_checkpoint_and_goes_on(tmp_path):
    run(tmp_path, 6)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # what a killed process did not finish
    run(tmp_path, 5, start=3, scale=10.0)
    assert losses(tmp_path / "metrics.jsonl") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    assert read_metrics(tmp_path / "metrics.jsonl")[3]["seconds"] >= 15.0


def test_tensorboard_shows_every_update_of_a_resumed_run_once(tmp_path):
    run(tmp_path, 6, names=("tensorboard",))
    run(tmp_path, 5, start=3, scale=10.0, names=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0),
    ]  # fmt: skip


@pytest.mark.parametrize(("package", "own"), [("trackio", {}), ("wandb", {"id": "ab12"})])
def test_services_are_given_the_run_under_a_name_that_finds_it_again(tmp_path, monkeypatch, package, own):
    calls = []
    service = SimpleNamespace(
        init=lambda **options: calls.append(options),
        log=lambda metrics, step: calls.append((step, metrics["loss"])),
        finish=lambda: calls.append("finish"),
    )
    monkeypatch.setitem(sys.modules, package, service)
    (tmp_path / "dt").mkdir()
    run(tmp_path / "dt", 2, names=(package,))
    name = {"project": "seqwm", "name": "dt-ab12", "config": {"seed": 3}, "resume": "allow"}
    assert calls == [name | own, (0, 0.0), (1, 1.0), "finish"]


def test_a_service_that_is_not_installed_is_named_with_the_mend(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(
        MissingPackageError, match=r"train.track: trackio needs the package 'trackio': pip install trackio"
    ):
        run(tmp_path, 1, names=("trackio",))
