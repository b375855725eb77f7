"""A causal transformer over frames of tokens, each frame with a condition of its own, its cache, and drafts of frames.

Its blocks are those of `seqwm.nn.space_time`: attention within each frame, then along time, then an MLP, all modulated
by the frame's condition. Before them every token takes in those around it, by a convolution.

**Drafts.** A frame that is kept is seen by itself and by the frames up to `span - 1` after it; a draft of a frame is
seen by itself alone, and sees the kept frames before its time. So one pass over a window can hold every frame twice,
as it is and as a draft of it to be completed, and each draft has before it what it has in play: clean frames, out of a
cache or out of the same pass, which give the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqwm.nn.space_time import Past, SpaceTimeBlock, _rotation


class FrameTransformer(nn.Module):
    """Frames of tokens to frames of tokens.

    Args:
        rows, columns: of the tokens of a frame, N in all.
        layers, width, heads: of the transformer; the width of a head is even.
        span: frames that attention along time reaches, its own counted.
    """

    def __init__(self, rows: int, columns: int, layers: int, width: int, heads: int, span: int) -> None:
        super().__init__()
        self.rows, self.columns, self.span, self.heads, self.width = rows, columns, span, heads, width
        self.near = nn.Conv2d(width, width, 3, padding=1)
        self.place = nn.Parameter(0.02 * torch.randn(rows * columns, width))
        self.blocks = nn.ModuleList(SpaceTimeBlock(width, heads, width) for _ in range(layers))

    def empty(self, lanes: int, device: torch.device | str) -> Past:
        """No past."""
        return Past.empty((lanes, len(self.blocks), self.span - 1, self.rows * self.columns, self.width), device)

    def forward(
        self, x: Tensor, condition: Tensor, past: Past, times: Tensor, draft: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, T, N, W] of frames with conditions [B, T, W] to the same.

        Args:
            x: embedded tokens.
            condition: of each frame.
            past: kept frames before them.
            times: of each frame, counted from the past's next, int64 [T].
            draft: whether it is one, bool [T].

        Returns:
            Tokens, and the frames' keys and values, [B, L, T, N, W], for `Past.remember`.
        """
        grid = x.flatten(0, 1).transpose(1, 2).unflatten(-1, (self.rows, self.columns))
        around = self.near(grid.contiguous(memory_format=torch.channels_last))
        x = x + around.flatten(2).transpose(1, 2).view_as(x) + self.place
        rotation = _rotation(past.time[:, None] + times, self.width // self.heads)
        mask = self._mask(past.filled, times, draft)
        keys, values = [], []
        for layer, block in enumerate(self.blocks):
            x, key, value = block(x, condition, rotation, mask, past.keys[:, layer], past.values[:, layer])
            keys.append(key)
            values.append(value)
        return x, torch.stack(keys, 1), torch.stack(values, 1)

    def _mask(self, filled: Tensor, times: Tensor, draft: Tensor) -> Tensor:
        """Which of S past and T frames each of T frames sees, bool [B, T, S + T]."""
        reach = self.span - 1
        slots = torch.arange(-reach, 0, device=times.device)
        when = torch.cat((slots, times))
        seen = (when < times[:, None]) & (when > times[:, None] - self.span)
        seen[:, reach:] &= ~draft
        seen[:, reach:] |= torch.eye(len(times), dtype=torch.bool, device=times.device)
        there = torch.ones(len(filled), len(when), dtype=torch.bool, device=times.device)
        there[:, :reach] = slots >= -filled[:, None]
        return seen & there[:, None]
