"""The page of an action report: codes beside actions, shares beside the ceiling, and what each code does to a frame."""

from __future__ import annotations

import os
import textwrap
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

    figure = Figure(figsize=(11, 9), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    confusion, shares, strip = figure.subplot_mosaic(
        [["codes", "shares"], ["strip", "strip"]], height_ratios=(1, 1.3)
    ).values()
    _draw_table(confusion, report)
    _draw_shares(shares, report)
    _draw_strip(strip, done)
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
    axes.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, 1.1))


def _draw_strip(axes: Any, done: NDArray[np.uint8]) -> None:
    codes, steps, height, width, _ = done.shape
    edged = np.pad(done, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255)
    picture = edged.swapaxes(1, 2).reshape(codes * (height + 1), steps * (width + 1), -1)
    axes.imshow(picture if picture.shape[-1] == 3 else picture[..., 0], cmap="gray", interpolation="nearest")
    axes.set_yticks([(height + 1) * code + height / 2 for code in range(codes)], range(codes))
    axes.set_xticks([(width + 1) * step + width / 2 for step in range(steps)], range(steps))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("code")
    axes.set_xlabel("times that it was done, from one logged frame on")


def _title(report: ActionReport) -> str:
    text = (
        f"{report.codes_in_use} codes in use, perplexity {report.perplexity:.2f}, NMI {report.nmi:.2f}; Delta-PSNR "
        f"{report.delta_psnr:.1f} dB; other codes cost {report.shuffled:.1f} dB and bring their action in "
        f"{report.transplanted:.0%} of steps"
    )
    lines = [text, *(f"WARNING: {warning}" for warning in report.warnings)]
    return "\n".join(part for line in lines for part in textwrap.wrap(line, 130))
