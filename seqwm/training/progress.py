"""What a person sees of a running loop: a bar on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

from seqwm.core.types import Metrics

LOG_SECONDS = 10.0
_SHOWN = ("loss", "ends_contradicted", "rewards_contradicted", "outside")  # the last three of learned worlds, shares


class Progress:
    """Steps done of all, the rate, the time left and the loss, on stderr; a context manager.

    Args:
        steps: the last step.
        start: steps made by an earlier run of the same training.
        quiet: show nothing, as all processes but the first of a distributed run do.
    """

    def __init__(self, steps: int, start: int = 0, *, quiet: bool = False) -> None:
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=start, unit=" updates", dynamic_ncols=True, disable=quiet or not terminal)
        self._lines = not quiet and not terminal
        self._steps, self._start, self._began = steps, start, time.monotonic()
        self._next_line = self._began

    def update(self, done: int, metrics: Metrics) -> None:
        """Show that `done` steps are made."""
        self._bar.update(done - self._bar.n)
        shown = {name: f"{metrics[name]:.4g}" for name in _SHOWN if name in metrics}
        if shown:
            self._bar.set_postfix(shown, refresh=False)
        now = time.monotonic()
        if self._lines and (now >= self._next_line or done == self._steps):
            rate = (done - self._start) / max(now - self._began, 1e-9)
            left = tqdm.format_interval((self._steps - done) / rate)
            figures = "".join(f", {name} {figure}" for name, figure in shown.items())
            line = f"update {done} of {self._steps}{figures}, {rate:.1f} updates/s, {left} left"
            print(line, file=sys.stderr, flush=True)
            self._next_line = now + LOG_SECONDS

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
