"""SIGTERM and SIGINT as a wish to stop after the current update, agreed on by all processes of a run.

Schedulers (`timeout`, Slurm, Kubernetes) send SIGTERM and wait some seconds; the loop finishes its update, saves and
leaves with the customary status 128 + signal. A second signal ends the process at once, as it would without us; one
that follows within a second is taken for an echo, because launchers pass on the Ctrl-C that the terminal sent to all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch

ECHO_SECONDS = 1.0


class StopRequest:
    """Whether a signal has come."""

    def __init__(self) -> None:
        self.signal = 0
        self.time = 0.0

    def asked(self) -> int:
        """The signal that asks this run to stop, 0 for none; the same in every process of a distributed run.

        With several processes this is a collective call: each must make it after the same update.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.signal
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        agreed = torch.tensor(self.signal, device=device)
        torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX)
        return int(agreed)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catch SIGTERM and SIGINT while the block runs; outside the main thread, where Python cannot, catch nothing."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal == 0:
            request.signal, request.time = number, time.monotonic()
        elif time.monotonic() - request.time > ECHO_SECONDS:
            signal.signal(number, before[number])
            os.kill(os.getpid(), number)

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, note)
    try:
        yield request
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)
