"""Whether an ensemble knows how wrong it is: predicted deviations against errors, and how often intervals hold.

One step ahead, of every entry of the observation's change and of the reward, in standard deviations of the data that
the ensemble was fitted to. The prediction is a normal distribution about the elites' mean whose variance is epistemic
(of their means) plus aleatoric (the mean of their variances); seqwm.nn.ensemble has the two apart.

Shapes: N rows, O entries.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from seqwm.control.experience import Experience, lived
from seqwm.data.store import TrajectoryStore
from seqwm.nn.ensemble_world import EnsembleWorld

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Of the central intervals."""

_ROWS, _GROUPS = 20_000, 10
_BLUE, _ORANGE, _GREY = "#1f5fa8", "#c8641e", "#8a8f98"


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was found.

    Attributes:
        rows: N.
        held_out: whether the ensemble never learned from them.
        coverage: share of entries within the central interval of each of `LEVELS`.
        coverage_aleatoric: the same of intervals that leave epistemic variance out.
        error, epistemic, aleatoric: root mean squares of entries in ten groups of growing predicted deviation.
    """

    rows: int
    held_out: bool
    coverage: list[float]
    coverage_aleatoric: list[float]
    error: list[float]
    epistemic: list[float]
    aleatoric: list[float]

    def __str__(self) -> str:
        """One line."""
        at = LEVELS.index(0.9)
        return (
            f"of {self.rows} {'held-out ' if self.held_out else ''}steps, 90 % intervals hold "
            f"{100 * self.coverage[at]:.1f} % ({100 * self.coverage_aleatoric[at]:.1f} % by aleatoric variance alone)"
        )


@torch.no_grad()
def calibration(world: EnsembleWorld, store: TrajectoryStore, held_out: Sequence[int] | None = None) -> Calibration:
    """Of one step ahead in logs.

    Args:
        world: to be measured.
        store: the logs.
        held_out: numbers of the episodes to look at, which the ensemble never learned from; all of them when None.
    """
    numbers = range(len(store)) if held_out is None else held_out
    rows = torch.cat([lived(world, store.episode(number)) for number in numbers])
    rows = rows[:: max(1, len(rows) // _ROWS)]
    steps = Experience.unpacked(rows, world.size)
    x = world.inputs(steps.observation, steps.action)
    mean = world.ensemble(x).mean[world.ensemble.elites].mean(0)
    epistemic, aleatoric = world.ensemble.uncertainties(x)
    happened = torch.cat([steps.following - steps.observation, steps.reward[:, None]], 1)
    wanted = (happened - world.output_mean[:-1]) / world.output_std[:-1]
    parts = ((wanted - mean[:, :-1]).square(), epistemic[:, :-1], aleatoric[:, :-1])
    return measured(*(part.cpu().double().numpy() for part in parts), held_out=held_out is not None)


def measured(
    squared_error: NDArray[np.float64],
    epistemic: NDArray[np.float64],
    aleatoric: NDArray[np.float64],
    *,
    held_out: bool,
) -> Calibration:
    """From squared errors and both variances of every entry, [N, O]."""
    variance = epistemic + aleatoric
    order = np.argsort(variance, axis=None, kind="stable")
    groups = np.array_split(order, min(_GROUPS, len(order)))

    def rooted(values: NDArray[np.float64]) -> list[float]:
        return [math.sqrt(float(values.ravel()[group].mean())) for group in groups]

    def covered(predicted: NDArray[np.float64]) -> list[float]:
        normal = torch.distributions.Normal(0.0, 1.0)
        reach = [float(normal.icdf(torch.tensor((1 + level) / 2))) for level in LEVELS]
        return [float((squared_error <= far**2 * predicted).mean()) for far in reach]

    return Calibration(
        len(squared_error),
        held_out,
        covered(variance),
        covered(aleatoric),
        rooted(squared_error),
        rooted(epistemic),
        rooted(aleatoric),
    )


def draw_calibration(found: Calibration, path: Path) -> Path:
    """Write a PNG: error against predicted deviation, and coverage of central intervals against their level."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    errors, intervals = figure.subplots(1, 2)
    total = np.hypot(found.epistemic, found.aleatoric)
    errors.loglog(total, found.error, color=_BLUE, marker="o", label="error")
    errors.loglog(total, found.epistemic, color=_ORANGE, linestyle=":", label="epistemic part")
    errors.loglog(total, found.aleatoric, color=_ORANGE, linestyle="-.", label="aleatoric part")
    errors.loglog(total, total, color=_GREY, linestyle="--", label="error = predicted")
    errors.set_xlabel("predicted standard deviation, in those of the data")
    errors.set_ylabel("root mean square")
    errors.set_title(f"{found.rows} {'held-out ' if found.held_out else ''}steps", fontsize="medium")
    intervals.plot(LEVELS, found.coverage, color=_BLUE, marker="o", label="both uncertainties")
    intervals.plot(LEVELS, found.coverage_aleatoric, color=_ORANGE, linestyle="-.", label="aleatoric alone")
    intervals.plot((0, 1), (0, 1), color=_GREY, linestyle="--", label="as it should be")
    intervals.set_xlabel("central interval")
    intervals.set_ylabel("share of what happened within it")
    for axes in (errors, intervals):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize="small")
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="png", metadata={"Software": None})
    os.replace(partial, path)
    return path
