"""Predicted frames beside what happened, at growing horizons, in the figures that video models are compared by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from seqwm.evaluation.dream_gap import shown_horizons
from seqwm.evaluation.learned_metrics import lpips, video_distance
from seqwm.evaluation.prediction import Rollouts
from seqwm.evaluation.video_metrics import moving, psnr, ssim


@dataclass(frozen=True, slots=True)
class FrameTable:
    """Figures of frames h steps behind the one that a prediction begins with (`seqwm.evaluation.video_metrics`).

    Attributes:
        horizons: h of each line.
        psnr: of the predicted frame, in dB; the squared errors of all clips pooled.
        copied: of the frame that the prediction begins with.
        moving_psnr, moving_copied: the same on the pixels that have changed since that frame.
        ssim: of the predicted frame.
        lpips: of the predicted frame, where there are weights for it.
        video_distance: of whole clips (`seqwm.evaluation.learned_metrics`), where there is a network for it.
        clips: how many those are.
    """

    horizons: list[int]
    psnr: list[float]
    copied: list[float]
    moving_psnr: list[float]
    moving_copied: list[float]
    ssim: list[float]
    lpips: list[float] | None = None
    video_distance: float | None = None
    clips: int = 0

    def __str__(self) -> str:
        """One line a horizon."""
        lines = [f"{'horizon':>8}{'PSNR':>8}{'copied':>8}{'moving pixels':>15}{'copied':>8}{'SSIM':>8}"]
        columns = self.horizons, self.psnr, self.copied, self.moving_psnr, self.moving_copied, self.ssim
        for h, drawn, copied, moves, moves_copied, similar in zip(*columns, strict=True):
            lines.append(f"{h:>8}{drawn:>8.2f}{copied:>8.2f}{moves:>15.2f}{moves_copied:>8.2f}{similar:>8.3f}")
        if self.lpips is not None:
            cells = ["LPIPS", *(f"{distance:.3f}" for distance in self.lpips)]
            lines = [f"{line}{cell:>8}" for line, cell in zip(lines, cells, strict=True)]
        if self.video_distance is not None:
            lines.append(f"Frechet distance of {self.clips} clips: {self.video_distance:.4g}")
        return "\n".join(lines)


def frame_table(
    rollouts: Rollouts, image: str, lpips_weights: Path | None = None, video_network: Path | None = None
) -> FrameTable:
    """Of the image at a path of the observation, over the logs that go on that far.

    Args:
        rollouts: predicted and logged.
        image: the path.
        lpips_weights, video_network: as `lpips` and `video_distance` take them; not measured where None.
    """
    reached = [h for h in shown_horizons(rollouts.there.shape[1]) if rollouts.there[:, h - 1].any()]
    perceived: list[float] = []
    table = FrameTable(reached, [], [], [], [], [])
    for h in reached:
        there = rollouts.there[:, h - 1]
        before, true = rollouts.before[image][there], rollouts.happened[image][there, h - 1]
        drawn, where = rollouts.predicted[image][there, h - 1], moving(before, true)
        table.psnr.append(psnr(drawn, true))
        table.copied.append(psnr(before, true))
        table.moving_psnr.append(psnr(drawn, true, where))
        table.moving_copied.append(psnr(before, true, where))
        table.ssim.append(ssim(drawn, true))
        if lpips_weights is not None:
            perceived.append(lpips(drawn, true, lpips_weights))
    if lpips_weights is not None:
        table = replace(table, lpips=perceived)
    if video_network is not None:
        whole = rollouts.there.all(1)
        distance = video_distance(rollouts.predicted[image][whole], rollouts.happened[image][whole], video_network)
        table = replace(table, video_distance=distance, clips=int(whole.sum()))
    return table
