"""Video of a world's dreams through diffusers: frames and actions in, the frames that follow out.

    pipeline = DiffusionPipeline.from_pretrained("user/world", trust_remote_code=True)
    dream = pipeline(frames, actions, generator=torch.Generator().manual_seed(0))

This file travels with published weights as `pipeline.py`, and imports nothing of seqwm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor


@dataclass
class VideoWorldOutput(BaseOutput):  # type: ignore[misc]
    """H steps of B dreams: frames uint8 [B, H, H', W', C], rewards float32 [B, H], terminated bool [B, H]."""

    frames: Tensor
    rewards: Tensor
    terminated: Tensor


@dataclass
class _Logged:
    """Rows that were lived through, in the form of a batch of windows."""

    observations: Tensor
    actions: Tensor
    valid: Tensor


class VideoWorldPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Dreams of one world: those of video, or of latent actions."""

    def __init__(self, world: Any) -> None:
        super().__init__()
        self.register_modules(world=world)

    @torch.no_grad()
    def __call__(
        self,
        frames: Tensor,
        actions: Tensor,
        past_actions: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> VideoWorldOutput:
        """What follows when actions are taken.

        Args:
            frames: uint8 [B, T, H', W', C], those seen so far, T at least 1.
            actions: those to take, [B, H] or [B, H, A]; codes where they are latent; zeros [B, H] for a world of video
                without actions.
            past_actions: those between the frames seen, [B, T - 1] or [B, T - 1, A]; without them only the last frame
                is looked at.
            generator: of the noise that frames are drawn from; the likeliest is drawn without one.

        Raises:
            ValueError: frames of another dtype or size, or as many past actions as do not fit.
        """
        shape = tuple(self.world.config.observation_space["shape"])
        if frames.dtype != torch.uint8 or frames.ndim != 5 or tuple(frames.shape[2:]) != shape:
            found = f"{str(frames.dtype).removeprefix('torch.')} {list(frames.shape)}"
            raise ValueError(f"frames: found {found}, expected uint8 [lanes, rows, {', '.join(map(str, shape))}]")
        if past_actions is not None and past_actions.shape[1] != frames.shape[1] - 1:
            found = f"{past_actions.shape[1]} for {frames.shape[1]} frames"
            raise ValueError(f"past_actions: found {found}, expected one less than frames")
        past = torch.zeros_like(actions[:, :1])  # of the last row it is yet to come, and not read
        if past_actions is not None:
            past = torch.cat([past_actions, past], 1)
        else:
            frames = frames[:, -1:]
        valid = torch.ones(frames.shape[:2], dtype=torch.bool, device=self.device)
        state = self.world.encode(_Logged(frames.to(self.device), past.to(self.device), valid))
        seen, rewards, ends = [], [], []
        for action in actions.to(self.device).unbind(1):
            step = self.world.step(state, action, generator)
            state = step.state
            seen.append(state["frames"][:, -1])
            rewards.append(step.reward)
            ends.append(step.terminated)
        return VideoWorldOutput(torch.stack(seen, 1), torch.stack(rewards, 1), torch.stack(ends, 1))
