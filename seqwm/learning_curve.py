"""How good the policy is while it learns: a hook that plays some episodes now and then and keeps their returns."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from seqwm.core.files import write_atomically
from seqwm.core.protocols import Learner
from seqwm.core.types import Metrics
from seqwm.evaluation.evaluate import evaluate
from seqwm.recipe import Evaluate
from seqwm.training.tracking import read_metrics


class LearningCurve:
    """Writes a line of learning.jsonl every `options.every` updates: step, environment_steps, seconds and returns.

    The environments are reset with the same seeds every time. `seconds` are those since training began, the time of
    these measurements included.

    Args:
        path: of the file; lines of updates from `start` on are cut off.
        learner: whose model is measured.
        options: the recipe's `evaluate` section, which names the environment.
        start: updates made before this process.
        seconds: time spent on them.
    """

    def __init__(
        self,
        path: Path,
        learner: Learner,
        options: Evaluate,
        start: int,
        seconds: float,
    ) -> None:
        self._path, self._learner, self._options = path, learner, options
        self._began = time.monotonic() - seconds
        self._lines: list[dict[str, Any]] = read_metrics(path, start)

    def __call__(self, step: int, metrics: Metrics, last: bool) -> None:
        """Measure if it is time."""
        assert self._options.every is not None
        assert self._options.environment is not None
        if (step + 1) % self._options.every:
            return
        evaluation = evaluate(
            self._learner.trained(),
            self._options.environment,
            targets=self._options.targets,
            episodes=self._options.episodes,
            seed=self._options.seed,
            options=self._options.environment_options,
            progress=False,
        )
        line = {
            "step": step,
            "environment_steps": metrics.get("environment_steps"),
            "seconds": round(time.monotonic() - self._began, 3),
            "returns": [outcome.achieved for _, outcome in evaluation.records],
        }
        self._lines.append(line)
        write_atomically(self._path, "".join(f"{json.dumps(one)}\n" for one in self._lines).encode())
