"""What a card says of a world's dreams: the figures that `seqwm dream RUN` left in RUN/dream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from seqwm.core.errors import CheckpointError
from seqwm.evaluation.dream_gap import shown_horizons

FOLDER = "dream"
"""Of a run and of a repository: dream.json and pictures."""

PICTURES = ("dream.png", "calibration.png", "actions.png", "rollout.png", "strip.png", "dream.mp4")


def dream_section(run: Path) -> str:
    """A heading, tables and pictures; '' where nothing was dreamt.

    Raises:
        CheckpointError: dream.json cannot be read.
    """
    file = run / FOLDER / "dream.json"
    if not file.is_file():
        return ""
    try:
        return _section(json.loads(file.read_text()), [name for name in PICTURES if (run / FOLDER / name).is_file()])
    except (ValueError, KeyError, TypeError) as error:
        mend = f"write it again with `seqwm dream {run}`"
        raise CheckpointError(f"{file}: cannot be read ({type(error).__name__}: {error}); {mend}") from error


def _section(measured: dict[str, Any], pictures: list[str]) -> str:
    prediction, gap = measured["prediction"], measured["gap"]
    curves = {**prediction["observations"], "reward": prediction["reward"]}
    curves = {name or "observation": curve for name, curve in curves.items() if curve is not None}
    heads = [f"{name} ({curve['unit']})" for name, curve in curves.items()]
    lines = [
        "## Dreams beside reality",
        "",
        f"Errors of predictions from {prediction['contexts'][0]} moments of `{measured['data']}` under the actions "
        "that were logged; in brackets, the error of repeating the last observation:",
        "",
        f"| steps ahead | {' | '.join(heads)} |",
        "|" + " --- |" * (len(heads) + 1),
    ]
    for h in shown_horizons(measured["horizon"]):
        cells = [f"{curve['error'][h - 1]:.3g}{_unchanged(curve, h)}" for curve in curves.values()]
        lines.append(f"| {h} | {' | '.join(cells)} |")
    if measured.get("frames"):
        lines += ["", *_frames(measured["frames"])]
    if gap is not None:
        lines += [
            "",
            f"The return so far of one policy in {len(gap['dream']['returns'])} dreams and as many episodes of "
            f"`{measured['environment']}`, with 95 % intervals:",
            "",
            "| step | dream | reality |",
            "| --- | --- | --- |",
        ]
        for h in shown_horizons(measured["horizon"]):
            lines.append(f"| {h} | {_return(gap['dream'], h)} | {_return(gap['reality'], h)} |")
    shown = [
        f"![{name}]({FOLDER}/{name})" if name.endswith(".png") else f"[{name}]({FOLDER}/{name})" for name in pictures
    ]
    return "\n".join([*lines, *(f"\n{picture}" for picture in shown), ""])


def _frames(table: dict[str, Any]) -> list[str]:
    lines = [
        "PSNR of those frames in dB, in brackets that of the frame they begin with, and SSIM:",
        "",
        "| steps ahead | PSNR | on pixels that moved | SSIM |",
        "| --- | --- | --- | --- |",
    ]
    for at, h in enumerate(table["horizons"]):
        psnr, copied, moving, moving_copied, ssim = (
            table[name][at] for name in ("psnr", "copied", "moving_psnr", "moving_copied", "ssim")
        )
        lines.append(f"| {h} | {psnr:.1f} [{copied:.1f}] | {moving:.1f} [{moving_copied:.1f}] | {ssim:.3f} |")
    if table["lpips"] is not None:
        lines += ["", f"LPIPS (AlexNet) at these horizons: {', '.join(f'{each:.3f}' for each in table['lpips'])}."]
    if table["video_distance"] is not None:
        said = f"Frechet distance in the features of a VideoMAE, of {table['clips']} clips of all steps"
        lines += ["", f"{said}: {table['video_distance']:.4g}."]
    return lines


def _unchanged(curve: dict[str, Any], horizon: int) -> str:
    return f" [{curve['unchanged'][horizon - 1]:.3g}]" if curve["unchanged"] else ""


def _return(side: dict[str, Any], horizon: int) -> str:
    low, high = side["low"][horizon - 1], side["high"][horizon - 1]
    return f"{side['mean'][horizon - 1]:.4g} [{low:.4g}, {high:.4g}]"
