"""A UNet whose every layer hears a condition: group norms that are scaled and shifted by it (AdaGN).

The layout is DIAMOND's (Alonso et al., 2024): residual blocks of norm, SiLU and 3 x 3 convolution, twice; the second
convolution and the last of all begin at zero, so that every block begins as the identity; halving by strided
convolutions, doubling by nearest neighbours; every block on the way up also sees what its partner on the way down gave.

With `unshuffle` above 1, squares of that many pixels become channels first and pixels again last. Nothing is lost, and
the widest maps, where most of the time goes, are that much smaller along each side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUP = 16  # channels of a group


class UNet(nn.Module):
    """Images to images of the same size.

    Args:
        inputs: channels in.
        outputs: channels out.
        channels: of each level, the widest map first.
        blocks: residual blocks on each level and way.
        condition: features of the condition.
        unshuffle: pixels along each side that become channels.
    """

    def __init__(
        self, inputs: int, outputs: int, channels: Sequence[int], blocks: int, condition: int, unshuffle: int = 1
    ) -> None:
        super().__init__()
        self.unshuffle, self.levels = unshuffle, len(channels)
        self.enter = nn.Conv2d(inputs * unshuffle**2, channels[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        given = [channels[0]]
        width = channels[0]
        for level, wide in enumerate(channels):
            if level:
                self.shrink.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                given.append(width)
            self.down.append(nn.ModuleList())
            for _ in range(blocks):
                self.down[-1].append(Block(width, wide, condition))  # type: ignore[operator,union-attr]
                width = wide
                given.append(width)
        self.middle = Block(width, width, condition)
        for level, wide in reversed(list(enumerate(channels))):
            self.up.append(nn.ModuleList())
            for _ in range(blocks + 1):
                self.up[-1].append(Block(width + given.pop(), wide, condition))  # type: ignore[operator,union-attr]
                width = wide
            if level:
                self.grow.append(nn.Conv2d(width, width, 3, padding=1))
        self.norm = nn.GroupNorm(_groups(width), width)
        self.leave = nn.Conv2d(width, outputs * unshuffle**2, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Images [B, C, H, W] and conditions [B, F] to images [B, outputs, H, W]."""
        if self.unshuffle > 1:
            x = F.pixel_unshuffle(x, self.unshuffle)
        x = self.enter(x.contiguous(memory_format=torch.channels_last))
        given = [x]
        for level, blocks in enumerate(self.down):
            if level:
                x = self.shrink[level - 1](x)
                given.append(x)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, condition)
                given.append(x)
        x = self.middle(x, condition)
        for level, blocks in enumerate(self.up):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(torch.cat((x, given.pop()), 1), condition)
            if level < self.levels - 1:
                x = self.grow[level](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        x = self.leave(F.silu(self.norm(x)))
        return F.pixel_shuffle(x, self.unshuffle) if self.unshuffle > 1 else x


class Block(nn.Module):
    """Two convolutions beside the identity, each behind a norm that the condition scales and shifts."""

    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(AdaptiveGroupNorm(width, condition) for width in (inputs, outputs))
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.past = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.second.weight)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H, W]."""
        y = self.first(F.silu(self.norms[0](x, condition)))
        y = self.second(F.silu(self.norms[1](y, condition)))
        out: Tensor = self.past(x) + y
        return out


class AdaptiveGroupNorm(nn.Module):
    """A group norm whose scale and shift are a linear map of the condition; it begins as the plain one."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.groups = _groups(channels)
        self.modulate = nn.Linear(condition, 2 * channels)
        nn.init.normal_(self.modulate.weight, std=0.02)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """[B, C, H, W] and [B, F] to [B, C, H, W]."""
        scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, 1)
        normal = F.group_norm(x, self.groups, eps=1e-5)
        return torch.addcmul(shift, normal, 1 + scale)


class FourierFeatures(nn.Module):
    """A number as cosines and sines at frequencies drawn once from a normal distribution (Tancik et al., 2020)."""

    frequencies: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(size // 2))

    def forward(self, x: Tensor) -> Tensor:
        """[...] to [..., size]."""
        turns = 2 * math.pi * x.float().unsqueeze(-1) * self.frequencies
        return torch.cat((turns.cos(), turns.sin()), -1)


def _groups(channels: int) -> int:
    return channels // _GROUP if channels % _GROUP == 0 else 1
