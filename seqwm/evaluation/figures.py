"""The figure of an evaluation: what was achieved against what was asked for, and what the data had to offer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqwm.evaluation.evaluate import Evaluation, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _GREY, _LIGHT = "#1f5fa8", "#8a8f98", "#b8bcc4"
_BINS = 50


def draw_curve(evaluation: Evaluation, path: str | Path, data_returns: NDArray[np.float64] | None = None) -> Path:
    """Write a PNG: achieved against target with the 95 % interval of the mean, and the identity line.

    Without targets it is the distribution of the returns that were achieved. Beneath stand the returns of the
    episodes that the model was trained on, along the same axis: which targets had examples.

    Args:
        evaluation: what was achieved.
        path: the file.
        data_returns: undiscounted returns of the training data, [N].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8 if data_returns is None else 5.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    if data_returns is None:
        above: Axes = figure.subplots()
        lowest = above
    else:
        above, lowest = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        lowest.hist(data_returns, bins=_BINS, color=_LIGHT)
        lowest.set_ylabel("episodes in\nthe data")
    asked = sorted((one for one in evaluation.summaries if one.target is not None), key=lambda one: one.target or 0.0)
    _draw_targets(above, asked, evaluation) if asked else _draw_distribution(above, evaluation)
    lowest.set_xlabel("target return" if asked and data_returns is None else "return")
    for axes in {above, lowest}:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    above.set_title(_title(evaluation), fontsize="medium")
    above.legend(frameon=False, fontsize="small")

    path = Path(path)
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="png", metadata={"Software": None})
    os.replace(partial, path)
    return path


def _draw_targets(axes: Axes, asked: list[Summary], evaluation: Evaluation) -> None:
    targets = np.array([one.target for one in asked], np.float64)
    means = np.array([one.mean for one in asked])
    intervals = np.array([one.interval or (one.mean, one.mean) for one in asked])
    shown: dict[str, Any] = {"color": _GREY, "linewidth": 1, "linestyle": "--", "label": "achieved = target"}
    axes.axline((targets[0], targets[0]), slope=1, **shown)
    for target in targets:
        achieved = evaluation.returns(target)
        axes.scatter(np.full(len(achieved), target), achieved, s=8, color=_BLUE, alpha=0.2, linewidths=0)
    axes.fill_between(targets, intervals[:, 0], intervals[:, 1], color=_BLUE, alpha=0.2, linewidth=0)
    heights = np.abs(intervals.T - means)
    axes.errorbar(targets, means, heights, color=_BLUE, marker="o", capsize=3, label="mean, 95 % interval")
    axes.set_ylabel("achieved return")


def _draw_distribution(axes: Axes, evaluation: Evaluation) -> None:
    summary = evaluation.summary(None)
    axes.hist(evaluation.returns(None), bins="auto", color=_BLUE, alpha=0.5)
    if summary.interval:
        axes.axvspan(*summary.interval, color=_BLUE, alpha=0.2, linewidth=0)
    axes.axvline(summary.mean, color=_BLUE, label="mean, 95 % interval")
    axes.set_ylabel("episodes\nplayed")


def _title(evaluation: Evaluation) -> str:
    each = len(evaluation.records) // len(evaluation.targets)
    return f"{evaluation.environment}, {each} episodes" + (" a target" if evaluation.targets != [None] else "")
