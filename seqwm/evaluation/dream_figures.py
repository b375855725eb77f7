"""What a dream looks like beside reality: the figure of errors and returns, the strip of frames, the film."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from numpy.typing import NDArray

from seqwm.core.types import Array
from seqwm.evaluation.dream_gap import DreamGap, shown_horizons
from seqwm.evaluation.prediction import Curve, Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _ORANGE, _GREY = "#1f5fa8", "#c8641e", "#8a8f98"
_FRAMES_PER_SECOND, _LEAST_PIXELS = 8, 96


def draw_dream(
    prediction: Prediction, gap: DreamGap | None, path: Path, beside: tuple[str, Prediction] | None = None
) -> Path:
    """Write a PNG: error against horizon for every leaf and the reward, and return so far in dream and reality.

    Args:
        prediction: the model's.
        gap: of the returns, where there is one.
        path: the file.
        beside: another world's name, and its errors from the same contexts.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = _named(prediction)
    others = _named(beside[1]) if beside else {}
    panels = len(curves) + (gap is not None)
    figure = Figure(figsize=(4.6 * panels, 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    places: Sequence[Axes] = figure.subplots(1, panels, squeeze=False)[0]
    for axes, (name, curve) in zip(places, curves.items(), strict=False):
        steps = np.arange(1, len(curve.error) + 1)
        axes.plot(steps, curve.error, color=_BLUE, label="the model")
        axes.fill_between(steps, curve.low, curve.high, color=_BLUE, alpha=0.2, linewidth=0)
        if beside is not None and name in others:
            axes.plot(steps, others[name].error, color=_ORANGE, label=beside[0])
            axes.fill_between(steps, others[name].low, others[name].high, color=_ORANGE, alpha=0.2, linewidth=0)
        if curve.unchanged is not None:
            axes.plot(steps, curve.unchanged, color=_GREY, linestyle="--", label="nothing changes")
        axes.set_title(f"prediction of {name}", fontsize="medium")
        axes.set_ylabel(f"error, {curve.unit}")
        axes.set_xlabel("steps ahead, under the logged actions")
    if gap is not None:
        for name, colour, one in (("dream", _ORANGE, gap.dream), ("reality", _BLUE, gap.reality)):
            steps = np.arange(1, len(one.mean) + 1)
            places[-1].plot(steps, one.mean, color=colour, label=name)
            places[-1].fill_between(steps, one.low, one.high, color=colour, alpha=0.2, linewidth=0)
        places[-1].set_title("the policy's return so far", fontsize="medium")
        places[-1].set_xlabel("steps")
    for axes in places:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.legend(frameon=False, fontsize="small")
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="png", metadata={"Software": None})
    os.replace(partial, path)
    return path


def _named(prediction: Prediction) -> dict[str, Curve]:
    curves = {f"observation {name}".strip(): curve for name, curve in prediction.observations.items()}
    return curves | ({"reward": prediction.reward} if prediction.reward is not None else {})


def write_strip(happened: Array, predicted: Array, path: Path) -> Path:
    """Write a PNG of frames uint8 [N, H, height, width, C]: for each log a row of reality above a row of the dream."""
    from matplotlib.image import imsave

    chosen = [h - 1 for h in shown_horizons(happened.shape[1])]
    rows = []
    for one, other in zip(happened, predicted, strict=True):
        rows += [np.concatenate([_shown(frame) for frame in part[chosen]], 1) for part in (one, other)]
    partial = path.with_name(f".{path.name}")
    imsave(partial, np.concatenate(rows, 0), format="png")
    os.replace(partial, path)
    return path


def write_film(happened: Array, predicted: Array, path: Path) -> Path:
    """Write an MP4 (H.264) of frames uint8 [N, H, height, width, C]: reality on the left, the dream on the right."""
    films = [
        np.concatenate(
            [
                np.concatenate([_shown(one[h]), _shown(other[h])], 1)
                for one, other in zip(happened, predicted, strict=True)
            ]
        )
        for h in range(happened.shape[1])
    ]
    height, width = (side - side % 2 for side in films[0].shape[:2])  # 4:2:0 chroma has half the rows and columns
    partial = path.with_name(f".{path.name}")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=_FRAMES_PER_SECOND, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for film in films:
            pixels = np.ascontiguousarray(film[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    os.replace(partial, path)
    return path


def _shown(frame: Array) -> NDArray[np.uint8]:
    """A frame in colours, large enough to see, with an edge."""
    colours = np.repeat(frame, 3, -1) if frame.shape[-1] == 1 else frame[..., :3]
    times = max(1, -(-_LEAST_PIXELS // frame.shape[0]))
    large = colours.repeat(times, 0).repeat(times, 1).astype(np.uint8)
    return np.pad(large, ((1, 1), (1, 1), (0, 0)))
