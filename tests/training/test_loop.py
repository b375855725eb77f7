from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from seqwm.core.errors import TrainingError
from seqwm.training import progress as progress_module
from seqwm.training.loop import train


class Counting:
    """A learner that notes its updates and may do something in one of them."""

    def __init__(self, at=None, act=None):
        self.updates, self.at, self.act = [], at, act

    def update(self, step):
        self.updates.append(step)
        value = self.act() if step == self.at else None
        return {"loss": 1.0 / (step + 1) if value is None else value}


def test_updates_are_made_in_order_from_start_and_hooks_see_each():
    learner, seen = Counting(), []
    train(learner, 5, start=2, hooks=[lambda step, metrics, last: seen.append((step, metrics, last))])
    assert learner.updates == [2, 3, 4]
    assert seen == [(2, {"loss": 1 / 3}, False), (3, {"loss": 1 / 4}, False), (4, {"loss": 1 / 5}, True)]


def test_experience_is_collected_before_each_update():
    events = []
    learner = Counting()
    learner.update = lambda step: events.append(("update", step)) or {"loss": 0.0}
    train(learner, 2, collect=lambda step: events.append(("collect", step)))
    assert events == [("collect", 0), ("update", 0), ("collect", 1), ("update", 1)]


def test_a_finished_run_makes_no_update():
    learner = Counting()
    train(learner, 5, start=5)
    assert learner.updates == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_stops_training_before_any_hook_can_save_it(bad):
    seen = []
    with pytest.raises(
        TrainingError, match=f"^update 3: loss is {bad}, expected finite numbers; lower train"
    ) as caught:
        train(Counting(3, lambda: bad), 5, hooks=[lambda step, metrics, last: seen.append(step)])
    assert caught.value.step == 3
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_update_in_progress_with_its_customary_status(number, capsys):
    learner, seen = Counting(3, lambda: os.kill(os.getpid(), number)), []
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught:
        train(learner, 100, hooks=[lambda step, metrics, last: seen.append((step, last))])
    assert caught.value.code == 128 + number
    assert seen == [(0, False), (1, False), (2, False), (3, True)]
    assert signal.getsignal(number) is before
    assert f"stopped by signal {int(number)} after update 3; go on with --resume" in capsys.readouterr().err


def test_a_signal_in_the_last_update_lets_the_run_end_as_usual():
    learner = Counting(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    train(learner, 5)
    assert learner.updates == [0, 1, 2, 3, 4]


def test_a_second_signal_a_while_after_the_first_ends_the_process_at_once(monkeypatch):
    monkeypatch.setattr("seqwm.training.signals.ECHO_SECONDS", 0.05)

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # an echo
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin by ignoring it
    try:
        with pytest.raises(KeyboardInterrupt):
            train(Counting(1, twice), 3)
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_training_runs_without_handlers():
    learner = Counting()
    thread = threading.Thread(target=train, args=(learner, 3))
    thread.start()
    thread.join(10)
    assert learner.updates == [0, 1, 2]


def test_a_log_gets_a_line_at_once_one_every_ten_seconds_and_one_at_the_end(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])

    def four_seconds():
        clock[0] += 4.0

    learner = Counting()
    learner.update = lambda step: four_seconds() or {"loss": 0.5}
    train(learner, 8)
    assert capsys.readouterr().err.splitlines() == [
        "update 1 of 8, loss 0.5, 0.2 updates/s, 00:28 left",
        "update 4 of 8, loss 0.5, 0.2 updates/s, 00:16 left",
        "update 7 of 8, loss 0.5, 0.2 updates/s, 00:04 left",
        "update 8 of 8, loss 0.5, 0.2 updates/s, 00:00 left",
    ]


def test_processes_behind_the_first_show_nothing(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    train(Counting(), 3)
    assert capsys.readouterr().err == ""


DEAF = """
import seqwm, os, signal, sys
import pygame
pygame.init()
from seqwm.training.loop import train
class Learner:
    def update(self, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": 0.0}
train(Learner(), 1000000)
"""


def test_sigterm_is_heard_although_rendering_has_started_sdl():
    pytest.importorskip("pygame")
    environment = os.environ | {"SDL_VIDEODRIVER": "dummy"}
    environment.pop("SDL_NO_SIGNAL_HANDLERS", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DEAF], env=environment, timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "after update 2" in done.stderr
