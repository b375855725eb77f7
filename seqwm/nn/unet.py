"""A UNet whose every layer hears a condition: group norms that are scaled and shifted by it (AdaGN).

The layout is DIAMOND's (Alonso et al., 2024): residual blocks of norm, SiLU and 3 x 3 convolution, twice; the second
convolution and the last of all begin at zero, so that every block begins as the identity; halving by strided
convolutions, doubling by nearest neighbours; every block on the way up also sees what its partner on the way down gave.
With four levels of 64 channels, two blocks each, attention and groups of 32 it holds exactly DIAMOND's layers.

With `unshuffle` above 1, squares of that many pixels become channels first and pixels again last. Nothing is lost, and
the widest maps, where most of the time goes, are that much smaller along each side.

Scales and shifts of all layers are one linear map of the condition, apart from the images: `modulations` gives them for
all noise levels of a sample at once. Images run in the precision of the convolutions' weights, channels last
(`seqwm.nn.quick` says when that is bf16).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HEAD = 8  # channels of a head of attention


@dataclass(frozen=True, slots=True)
class Modulations:
    """Scales and shifts of every norm in the order in which they are met, each [B, C]."""

    scales: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]

    def __getitem__(self, lanes: slice) -> Modulations:
        """Those of some lanes."""
        return Modulations(tuple(one[lanes] for one in self.scales), tuple(one[lanes] for one in self.shifts))


class UNet(nn.Module):
    """Images to images of the same size.

    Args:
        inputs: channels in.
        outputs: channels out.
        channels: of each level, the widest map first.
        blocks: residual blocks on each level and way.
        condition: features of the condition.
        unshuffle: pixels along each side that become channels.
        attention: two blocks in the middle, with attention behind each, in place of one without.
        group: channels of a group of a norm.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        channels: Sequence[int],
        blocks: int,
        condition: int,
        unshuffle: int = 1,
        *,
        attention: bool = False,
        group: int = 16,
    ) -> None:
        super().__init__()
        self.unshuffle, self.levels, self.groups = unshuffle, len(channels), _Groups(group)
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
                self.down[-1].append(Block(width, wide, self.groups))  # type: ignore[operator,union-attr]
                width = wide
                given.append(width)
        self.middle = nn.ModuleList(Block(width, width, self.groups) for _ in range(1 + attention))
        self.attend = nn.ModuleList(Attention(width, self.groups) for _ in range(2 * attention))
        for level, wide in reversed(list(enumerate(channels))):
            self.up.append(nn.ModuleList())
            for _ in range(blocks + 1):
                block = Block(width + given.pop(), wide, self.groups)
                self.up[-1].append(block)  # type: ignore[operator,union-attr]
                width = wide
            if level:
                self.grow.append(nn.Conv2d(width, width, 3, padding=1))
        self.norm = nn.GroupNorm(self.groups(width), width)
        self.leave = nn.Conv2d(width, outputs * unshuffle**2, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.bias)
        met = [
            block
            for level in (*self.down, self.middle, *self.up)
            for block in level  # type: ignore[attr-defined]
        ]
        self._widths = [width for block in met for width in block.widths]
        self.modulate = nn.Linear(condition, 2 * sum(self._widths))
        nn.init.normal_(self.modulate.weight, std=0.02)
        nn.init.zeros_(self.modulate.bias)

    def modulations(self, condition: Tensor) -> Modulations:
        """What the norms are scaled and shifted by under conditions [B, F]; plain norms where a fresh one hears 0."""
        scales, shifts = self.modulate(condition.to(self.modulate.weight.dtype)).float().chunk(2, 1)
        scales, shifts = (one.to(self.enter.weight.dtype) for one in (1 + scales, shifts))
        return Modulations(scales.split(self._widths, 1), shifts.split(self._widths, 1))

    def forward(self, x: Tensor, condition: Tensor | Modulations) -> Tensor:
        """Images [B, C, H, W] and conditions [B, F], or their modulations, to images [B, outputs, H, W]."""
        told = condition if isinstance(condition, Modulations) else self.modulations(condition)
        heard = zip(told.scales, told.shifts, strict=True)
        if self.unshuffle > 1:
            x = F.pixel_unshuffle(x, self.unshuffle)
        x = self.enter(x.to(self.enter.weight.dtype, memory_format=torch.channels_last))
        given = [x]
        for level, blocks in enumerate(self.down):
            if level:
                x = self.shrink[level - 1](x)
                given.append(x)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, next(heard), next(heard))
                given.append(x)
        for number, block in enumerate(self.middle):
            x = block(x, next(heard), next(heard))
            if self.attend:
                x = self.attend[number](x)
        for level, blocks in enumerate(self.up):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(torch.cat((x, given.pop()), 1), next(heard), next(heard))
            if level < self.levels - 1:
                x = self.grow[level](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        x = self.leave(_silu(self.norm(x)))
        return F.pixel_shuffle(x, self.unshuffle) if self.unshuffle > 1 else x


class Block(nn.Module):
    """Two convolutions beside the identity, each behind a norm that the condition scales and shifts."""

    def __init__(self, inputs: int, outputs: int, groups: _Groups) -> None:
        super().__init__()
        self.widths, self.groups = (inputs, outputs), (groups(inputs), groups(outputs))
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.past = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.second.weight)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H, W]; scale and shift of both norms, [B, inputs] and [B, outputs]."""
        y = self.first(_silu(adaptive_group_norm(x, self.groups[0], *first)))
        y = self.second(_silu(adaptive_group_norm(y, self.groups[1], *second)))
        out: Tensor = self.past(x) + y
        return out


class Attention(nn.Module):
    """Self-attention over all places beside the identity, in heads of 8 channels; it begins as the identity."""

    def __init__(self, channels: int, groups: _Groups) -> None:
        super().__init__()
        self.heads = max(1, channels // _HEAD)
        self.norm = nn.GroupNorm(groups(channels), channels)
        self.ask = nn.Conv2d(channels, 3 * channels, 1)
        self.answer = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.answer.weight)
        assert self.answer.bias is not None
        nn.init.zeros_(self.answer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        asked = self.ask(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2)
        found = F.scaled_dot_product_attention(*asked.unbind(1))
        out: Tensor = x + self.answer(found.transpose(-1, -2).reshape(x.shape))
        return out


def adaptive_group_norm(x: Tensor, groups: int, scale: Tensor, shift: Tensor) -> Tensor:
    """A group norm of x [B, C, H, W] times scale plus shift, [B, C] each."""
    if scale.dtype != x.dtype:
        scale, shift = scale.to(x.dtype), shift.to(x.dtype)
    # Of one lane they are those of a plain norm, and one pass does it; in float32 a lane comes out as beside others.
    if x.shape[0] == 1 and x.dtype != torch.float32:
        return torch.group_norm(x, groups, scale[0], shift[0])
    return torch.addcmul(shift[:, :, None, None], torch.group_norm(x, groups), scale[:, :, None, None])


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


@dataclass(frozen=True, slots=True)
class _Groups:
    """How many groups a norm has."""

    size: int

    def __call__(self, channels: int) -> int:
        return channels // self.size if channels % self.size == 0 else 1


def _silu(x: Tensor) -> Tensor:
    return F.silu(x, inplace=not torch.is_grad_enabled())
