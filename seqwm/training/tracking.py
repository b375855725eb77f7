"""Where metrics go: always into metrics.jsonl, and into whatever else the recipe names.

A line of metrics.jsonl is one update: its number, the learner's metrics, and the seconds of training up to it. A
resumed run first cuts the file back to the checkpoint, so that no update is there twice.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from seqwm.core.errors import MissingPackageError
from seqwm.core.files import write_atomically
from seqwm.core.types import Metrics


class Tracker(Protocol):
    """One place that keeps metrics."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Keep the metrics of update number `step`."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


class MetricsFile:
    """metrics.jsonl, cut back to the updates before `start`."""

    def __init__(self, path: Path, start: int) -> None:
        write_atomically(path, "".join(f"{json.dumps(line)}\n" for line in read_metrics(path, start)).encode())
        self._file = open(path, "a")  # noqa: SIM115 - it stays open as long as the run

    def log(self, step: int, metrics: Metrics) -> None:
        """Write one line; it is in the file when this returns."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files in a folder; what an earlier process logged at or after `start` is hidden."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start if start else None)  # type: ignore[no-untyped-call]

    def log(self, step: int, metrics: Metrics) -> None:
        """One point on each curve."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Write what is not written yet."""
        self._writer.close()  # type: ignore[no-untyped-call]


class Service:
    """trackio or wandb, which share these three calls; trackio finds a resumed run by its name, wandb by its id."""

    def __init__(self, package: str, name: str, identity: str, config: Mapping[str, Any]) -> None:
        try:
            self._package = importlib.import_module(package)
        except ImportError:
            raise MissingPackageError(package, f"train.track: {package}") from None
        own = {"id": identity} if package == "wandb" else {}
        self._package.init(project="seqwm", name=f"{name}-{identity}", config=dict(config), resume="allow", **own)

    def log(self, step: int, metrics: Metrics) -> None:
        """One point on each curve."""
        self._package.log(dict(metrics), step=step)

    def close(self) -> None:
        """Send what is not sent yet."""
        self._package.finish()


class Tracking:
    """The hook of the training loop that hands every `every`-th update's metrics to all trackers; a context manager.

    Args:
        folder: the run's folder.
        names: 'tensorboard', 'trackio', 'wandb'; metrics.jsonl is always written.
        start: updates made before this process.
        seconds: time spent on them.
        every: updates between two lines; the first and the last are always written.
        steps: updates of the whole training.
        identity: a short text that no other run has, under which services find this one again.
        config: what the run is, for services that show it.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        start: int,
        seconds: float,
        every: int,
        steps: int,
        identity: str,
        config: Mapping[str, Any],
    ) -> None:
        self._every, self._steps = every, steps
        self._began = time.monotonic() - seconds
        trackers: list[Tracker] = [
            TensorBoard(folder / "tensorboard", start)
            if name == "tensorboard"
            else Service(name, folder.name, identity, config)
            for name in names
        ]
        self._trackers = [MetricsFile(folder / "metrics.jsonl", start), *trackers]

    def __call__(self, step: int, metrics: Metrics, last: bool) -> None:
        """Log the update if it is one to log."""
        if step % self._every == 0 or step == self._steps - 1:
            timed = metrics | {"seconds": round(time.monotonic() - self._began, 3)}
            for tracker in self._trackers:
                tracker.log(step, timed)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self._trackers:
            tracker.close()


def read_metrics(path: Path, stop: int | None = None) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl before update `stop`; a line that a dying process did not finish is left out."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if stop is None or line["step"] < stop:
            lines.append(line)
    return lines
