"""One long prediction beside what happened, number by number: the figure of the Trajectory Transformer's paper.

Janner, Li and Levine 2021, figure 1 draws a predicted humanoid above the real one; for observations that are numbers
the same is seen in their courses.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from seqwm.evaluation.prediction import Rollouts

_MOST_COLUMNS, _ACROSS = 12, 4
_BLUE, _GREY, _ORANGE = "#1f5fa8", "#8a8f98", "#c8641b"


def draw_rollout(rollouts: Rollouts, path: Path, beside: tuple[str, Rollouts] | None = None) -> Path:
    """Write a PNG of the prediction that a log accompanies for longest: each number's predicted and real course.

    Args:
        rollouts: of observations without images; the first 12 numbers are drawn.
        path: the file.
        beside: another world's name, and its predictions from the same contexts.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    longest = int(rollouts.there.sum(1).argmax())
    steps = int(rollouts.there[longest].sum())
    courses = {}
    for name, before in rollouts.before.items():
        flat = [
            np.concatenate([before[longest][None], part[name][longest, :steps]]).reshape(steps + 1, -1)
            for part in (rollouts.happened, rollouts.predicted, *([beside[1].predicted] if beside else []))
        ]
        for column in range(flat[0].shape[1]):
            label = f"{name or 'observation'}[{column}]" if flat[0].shape[1] > 1 else name or "observation"
            courses[label] = [one[:, column] for one in flat]
    shown = list(courses.items())[:_MOST_COLUMNS]
    across = min(_ACROSS, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(3.2 * across, 2.0 * down + 0.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    places = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, (label, (happened, predicted, *other)) in zip(places, shown, strict=False):
        axes.plot(happened, color=_GREY, linewidth=2.5, label="reality")
        axes.plot(predicted, color=_BLUE, linewidth=1.2, label="the model")
        if beside is not None:
            axes.plot(*other, color=_ORANGE, linewidth=1.2, label=beside[0])
        axes.set_title(label, fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in places[len(shown) :]:
        axes.set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize="small")
    figure.supxlabel("steps ahead, under the logged actions", fontsize="medium")
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="png", metadata={"Software": None})
    os.replace(partial, path)
    return path
