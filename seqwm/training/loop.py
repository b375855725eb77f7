"""The training loop, the only one in the package.

Without `collect` it is offline training, with it online, with it and a full store offline-to-online. What happens
beside learning (metrics, checkpoints) is a hook; what is learned, and from which batch, is the learner's business.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from seqwm.core.errors import TrainingError
from seqwm.core.protocols import Learner
from seqwm.core.types import Metrics
from seqwm.training.progress import Progress
from seqwm.training.signals import stop_on_signals


class Hook(Protocol):
    """Called after every update."""

    def __call__(self, step: int, metrics: Metrics, last: bool) -> None:
        """What to do after update number `step`; `last` where the loop ends with it, done or asked to stop."""
        ...


def train(
    learner: Learner,
    steps: int,
    *,
    start: int = 0,
    collect: Callable[[int], Metrics | None] | None = None,
    hooks: Sequence[Hook] = (),
) -> None:
    """Make updates `start` ... `steps - 1`.

    Args:
        learner: makes one update at a time.
        steps: updates of the whole training.
        start: updates already made, by an earlier process.
        collect: called with the number of the update before it is made; fetches new experience for it, and may give
            metrics that are logged with the update's.
        hooks: called in order after every update.

    Raises:
        TrainingError: a metric is not finite. Hooks are not called for that update, so the last checkpoint is good.
        SystemExit: SIGTERM or SIGINT came; hooks were called with `last` and the status is 128 + signal.
    """
    quiet = int(os.environ.get("RANK", "0")) > 0
    with stop_on_signals() as stop, Progress(steps, start, quiet=quiet) as progress:
        for step in range(start, steps):
            collected = collect(step) if collect is not None else None
            metrics = (collected or {}) | learner.update(step)
            bad = [name for name, value in metrics.items() if not math.isfinite(value)]
            if bad:
                found = ", ".join(f"{name} is {metrics[name]}" for name in bad)
                mend = "lower train.learning_rate or train.gradient_clip, or use precision float32"
                raise TrainingError(f"update {step}: {found}, expected finite numbers; {mend}", step=step)
            signal = stop.asked()
            for hook in hooks:
                hook(step, metrics, signal != 0 or step == steps - 1)
            progress.update(step + 1, metrics)
            if signal and step < steps - 1:
                break
        else:
            return
    if not quiet:
        print(f"stopped by signal {signal} after update {step}; go on with --resume", file=sys.stderr, flush=True)
    raise SystemExit(128 + signal)
