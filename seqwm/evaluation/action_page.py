"""The page of an action report: codes beside actions, shares beside the ceiling, and what each code does to a frame."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqwm.evaluation.action_report import ActionReport

_BLUE, _ORANGE, _GREY = "#1f5fa8", "#c8641e", "#8a8f98"


def draw_actions(report: ActionReport, done: NDArray[np.uint8], path: Path) -> Path:
    """Write a PNG.

    Args:
        report: what was measured.
        done: what codes do: uint8 [codes, steps, H, W, C], the frame that each begins from first.
        path: the file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(2, 1, height_ratios=(1, 1.15), squeeze=False)
    above, beneath = parts[0, 0], parts[1, 0]
    confusion, shares = above.subplots(1, 2)
    _draw_table(confusion, report)
    _draw_shares(shares, report)
    beneath.suptitle("one frame, and what follows when a code is done again and again", fontsize="medium")
    places = beneath.subplots(len(done), done.shape[1], squeeze=False)
    for code, row in enumerate(places):
        for step, axes in enumerate(row):
            frame = done[code, step]
            axes.imshow(frame if frame.shape[-1] == 3 else frame[..., 0], cmap="gray", interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"{code}", rotation=0, ha="right", va="center", fontsize="small")
    figure.suptitle(_title(report), fontsize="medium")
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="png", metadata={"Software": None})
    os.replace(partial, path)
    return path


def _draw_table(axes: Any, report: ActionReport) -> None:
    table = np.array(report.table, np.float64)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for code, action in np.ndindex(*table.shape):
        if table[code, action]:
            colour = "white" if share[code, action] > 0.5 else "black"
            axes.text(action, code, f"{int(table[code, action])}", ha="center", va="center", color=colour, fontsize=8)
    named = [
        f"{code}: {action} ({sure:.0%})" if action >= 0 else f"{code}: ?"
        for code, (action, sure) in enumerate(zip(report.action_of, report.confidence, strict=True))
    ]
    axes.set_yticks(range(len(named)), named)
    axes.set_xticks(range(table.shape[1]))
    axes.set_xlabel("action that was taken")
    axes.set_ylabel(f"code: action by {report.labels} labels (agreement)")
    axes.set_title(f"{report.steps:,} held-out steps", fontsize="medium")


def _draw_shares(axes: Any, report: ActionReport) -> None:
    bars = [("purity", report.purity, _BLUE)]
    bars += [(f"map, {count} labels", value, _BLUE) for count, value in report.mapped.items()]
    bars += [(f"probe, {count} labels", value, _ORANGE) for count, value in report.probe.items()]
    names, values, colours = zip(*bars, strict=True)
    axes.barh(range(len(bars)), values, color=colours)
    axes.axvline(report.ceiling, color=_GREY, linestyle="--", label=f"ceiling {report.ceiling:.3f}")
    axes.set_yticks(range(len(bars)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of steps whose action is named")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="lower left")


def _title(report: ActionReport) -> str:
    text = (
        f"{report.codes_in_use} codes in use, perplexity {report.perplexity:.2f}, NMI {report.nmi:.2f}; Delta-PSNR "
        f"{report.delta_psnr:.1f} dB; other codes cost {report.shuffled:.1f} dB and bring their action in "
        f"{report.transplanted:.0%} of steps"
    )
    return "\n".join([text, *(f"WARNING: {warning}" for warning in report.warnings)])
