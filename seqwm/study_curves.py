"""How fast the methods of a study learn: steps and seconds to thresholds as a table, returns against steps as a figure.

Of records with a `curve`, [environment steps, seconds, mean return] of every measurement while a run learned. Seconds
are those of the clock, measurements included.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def reached(curve: Sequence[Sequence[float]], threshold: float) -> Sequence[float] | None:
    """The first point at or above a threshold."""
    return next((point for point in curve if point[2] >= threshold), None)


def lowest_after(curve: Sequence[Sequence[float]], threshold: float) -> float | None:
    """The lowest mean return at and behind that point; None where it is never reached."""
    first = reached(curve, threshold)
    return None if first is None else min(point[2] for point in curve if point[0] >= first[0])


def curves_table(records: Sequence[dict[str, Any]], thresholds: Sequence[float]) -> str:
    """Markdown: for each method, environment steps and seconds to each threshold, median and range over its seeds.

    A seed that never gets there counts as one beyond the last step, so a median exists where most seeds do.
    """
    names = ["dataset"] * any(record["dataset"] for record in records) + ["method"]
    heads = [f"steps to {threshold:g}" for threshold in thresholds]
    heads += [f"seconds to {thresholds[-1]:g}", f"lowest after {thresholds[-1]:g}", "steps in all", "seeds"]
    lines = [f"| {' | '.join(names + heads)} |", "|" + " --- |" * len(names + heads)]
    for (dataset, method), own in _grouped(records).items():
        curves = [record["curve"] for record in own]
        cells = [dataset] * (len(names) == 2) + [method]
        cells += [_spread([reached(curve, threshold) for curve in curves], 0) for threshold in thresholds]
        cells.append(_spread([reached(curve, thresholds[-1]) for curve in curves], 1))
        floors = [floor for curve in curves if (floor := lowest_after(curve, thresholds[-1])) is not None]
        cells += [f"{min(floors):.0f}" if floors else "-", f"{max(curve[-1][0] for curve in curves):,.0f}"]
        lines.append(f"| {' | '.join([*cells, str(len(own))])} |")
    note = (
        "Medians over seeds [least, most] to the first measurement at or above; (k of n) where not every seed gets "
        "there. The lowest is of all seeds' later measurements."
    )
    return "\n".join([*lines, "", note, ""])


def draw_curves(title: str, records: Sequence[dict[str, Any]], thresholds: Sequence[float], path: Path) -> None:
    """A PNG of every seed's mean return against environment steps, the median of a method's seeds drawn over them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = _grouped(records)
    datasets = list(dict.fromkeys(dataset for dataset, _ in groups))
    figure = Figure(figsize=(1 + 5.5 * len(datasets), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for number, dataset in enumerate(datasets, 1):
        axes = figure.add_subplot(1, len(datasets), number)
        for colour, ((_, method), own) in enumerate((key, own) for key, own in groups.items() if key[0] == dataset):
            curves = [np.asarray(record["curve"], np.float64) for record in own]
            for curve in curves:
                axes.plot(curve[:, 0], curve[:, 2], color=f"C{colour}", linewidth=0.7, alpha=0.4)
            steps = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
            steps = steps[steps <= min(curve[-1, 0] for curve in curves)]
            median = np.median([np.interp(steps, curve[:, 0], curve[:, 2]) for curve in curves], 0)
            seeds = f"{len(own)} seeds" if len(own) > 1 else "1 seed"
            axes.plot(steps, median, color=f"C{colour}", linewidth=2, label=f"{method} ({seeds})")
        for threshold in thresholds:
            axes.axhline(threshold, color="0.8", linewidth=0.8, zorder=0)
        axes.set_xscale("log")
        axes.set_xlabel("environment steps")
        axes.set_ylabel("mean return")
        axes.set_title(dataset)
    named = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        named.values(), named.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize="small"
    )  # beside the curves, which go everywhere
    figure.suptitle(title)
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="png", dpi=150)
    os.replace(partial, path)


def _grouped(records: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["dataset"], record["method"]), []).append(record)
    return groups


def _spread(points: Sequence[Sequence[float] | None], place: int) -> str:
    found = [point[place] for point in points if point is not None]
    if not found:
        return f"never (0 of {len(points)})"
    missing = len(points) - len(found)
    median = statistics.median([*found, *[float("inf")] * missing])
    shown = f"{median:,.0f}" if median < float("inf") else f"above {max(found):,.0f}"
    return f"{shown} [{min(found):,.0f}, {max(found):,.0f}]" + (f" ({len(found)} of {len(points)})" if missing else "")
