"""A causal transformer over frames of tokens between convolutions, a condition for each frame, and an exact cache.

Convolutions at half a token's pixels make tokens of a frame, and frames of tokens again with what the first ones saw
beside them, as Hoogeboom et al. ("simple diffusion", 2023) set a transformer into a UNet: where things are within a
token, and moves by less than one, are their business.

A block looks within each frame (every token at every other), then along time (each token at the same one in frames up
to its own), then applies an MLP; each of the three is scaled, shifted and gated by the frame's condition, and begins
as nothing (adaLN-Zero: Peebles and Xie, "Scalable Diffusion Models with Transformers", 2023). Time enters by rotations
of queries and keys (Su et al., "RoFormer", 2021).

**The cache.** Along time a frame sees itself and the `span - 1` frames before it, in training as in play. Nothing that
was computed for a frame depends on later ones or on how far the window reaches back beyond the span, so keys and values
of past frames can be kept for as long as they are in reach: what comes out equals a pass over the whole history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUP = 16  # channels of a group, of which the channels are a multiple
_ROTATION_BASE = 100.0  # time spans are tens of frames


@dataclass(frozen=True, slots=True)
class Past:
    """What is kept of the frames in reach of the next one.

    Attributes:
        keys, values: float [B, L, S, N, W], S = span - 1 frames, the newest last; keys are rotated to their time.
        filled: how many of the newest frames there are, int64 [B].
        time: of the next frame, int64 [B].
    """

    keys: Tensor
    values: Tensor
    filled: Tensor
    time: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int, int], device: torch.device | str) -> Past:
        """No past, of a shape [B, L, S, N, W]."""
        zeros = torch.zeros(shape[0], dtype=torch.int64, device=device)
        return cls(torch.zeros(shape, device=device), torch.zeros(shape, device=device), zeros, zeros)

    def remember(self, keys: Tensor, values: Tensor, count: Tensor) -> Past:
        """The past behind the first `count` (int64 [B]) of T frames with keys and values [B, L, T, N, W]."""
        reach = self.keys.shape[2]
        index = count[:, None] + torch.arange(reach, device=keys.device)
        lanes = torch.arange(len(count), device=keys.device)[:, None]

        def kept(old: Tensor, new: Tensor) -> Tensor:
            line = torch.cat((old, new.to(old.dtype)), 2).transpose(1, 2)  # [B, S + T, L, N, W]
            return line[lanes, index].transpose(1, 2)

        filled = (self.filled + count).clamp_max(reach)
        return Past(kept(self.keys, keys), kept(self.values, values), filled, self.time + count)


class SpaceTime(nn.Module):
    """Frames to frames of the same size.

    Args:
        inputs, outputs: channels in and out.
        size: height and width of a frame, multiples of `patch`.
        patch: pixels along each side of a token's square, even.
        channels: of the convolutions around the transformer.
        layers, width, heads: of the transformer; the width of a head is even.
        span: frames that attention along time reaches, its own counted.
        condition: features of a frame's condition.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: tuple[int, int],
        patch: int,
        channels: int,
        layers: int,
        width: int,
        heads: int,
        span: int,
        condition: int,
    ) -> None:
        super().__init__()
        self.span, self.heads, self.width = span, heads, width
        self.rows, self.columns, self.unshuffle = size[0] // patch, size[1] // patch, patch // 2
        self.enter = nn.Conv2d(inputs * self.unshuffle**2, channels, 3, padding=1)
        self.fine = ConvolutionBlock(channels, channels, condition)
        self.to_tokens = nn.Conv2d(channels, width, 2, stride=2)
        self.place = nn.Parameter(0.02 * torch.randn(self.rows * self.columns, width))
        self.blocks = nn.ModuleList(SpaceTimeBlock(width, heads, condition) for _ in range(layers))
        self.modulate = nn.Linear(condition, 2 * width)
        self.from_tokens = nn.Linear(width, 4 * channels)
        self.finer = nn.ModuleList(ConvolutionBlock(size, channels, condition) for size in (2 * channels, channels))
        self.leave = nn.Conv2d(channels, outputs * self.unshuffle**2, 3, padding=1)
        for layer in (self.modulate, self.leave):
            nn.init.zeros_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def empty(self, lanes: int, device: torch.device | str) -> Past:
        """No past."""
        return Past.empty((lanes, len(self.blocks), self.span - 1, self.rows * self.columns, self.width), device)

    def forward(self, x: Tensor, condition: Tensor, past: Past | None = None) -> Tensor:
        """Frames [B, T, C, H, W] with conditions [B, T, F] to frames [B, T, outputs, H, W]."""
        x, fine, _, _ = self._tokens(x, condition, past)
        scale, shift = self.modulate(F.silu(condition))[:, :, None].chunk(2, -1)
        tokens = self.from_tokens(_modulated(x, (scale, shift)))
        maps = F.pixel_shuffle(tokens.flatten(0, 1).transpose(1, 2).unflatten(-1, (self.rows, self.columns)), 2)
        maps = torch.cat((maps, fine), 1)
        for block in self.finer:
            maps = block(maps, condition.flatten(0, 1))
        out: Tensor = F.pixel_shuffle(self.leave(F.silu(maps)), self.unshuffle).unflatten(0, x.shape[:2])
        return out

    def look(self, x: Tensor, condition: Tensor, past: Past | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values [B, L, T, N, W] of frames [B, T, C, H, W] with conditions [B, T, F], for `Past.remember`."""
        _, _, keys, values = self._tokens(x, condition, past)
        return keys, values

    def before_each(self, keys: Tensor, values: Tensor) -> Past:
        """The past of each but the first of T frames that `look` gave keys and values for, as B * (T - 1) lanes."""
        lanes, frames, reach = len(keys), keys.shape[2], self.span - 1

        def kept(new: Tensor) -> Tensor:
            runs = F.pad(new, (0, 0, 0, 0, reach, 0)).unfold(2, reach, 1)[:, :, 1:frames]  # [B, L, T - 1, N, W, S]
            return runs.permute(0, 2, 1, 5, 3, 4).flatten(0, 1)

        time = torch.arange(1, frames, device=keys.device).repeat(lanes)
        return Past(kept(keys), kept(values), time.clamp_max(reach), time)

    def _tokens(self, x: Tensor, condition: Tensor, past: Past | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens [B, T, N, W], maps beside them [B * T, channels, H', W'], keys and values."""
        lanes, frames = x.shape[:2]
        past = self.empty(lanes, x.device) if past is None else past
        x = F.pixel_unshuffle(x.flatten(0, 1), self.unshuffle)
        fine = self.fine(self.enter(x.contiguous(memory_format=torch.channels_last)), condition.flatten(0, 1))
        x = self.to_tokens(fine).flatten(2).transpose(1, 2).unflatten(0, (lanes, frames)) + self.place
        times = past.time[:, None] + torch.arange(frames, device=x.device)
        rotation = _rotation(times, self.width // self.heads)
        mask = self._mask(past.filled, frames)
        keys, values = [], []
        for layer, block in enumerate(self.blocks):
            x, key, value = block(x, condition, rotation, mask, past.keys[:, layer], past.values[:, layer])
            keys.append(key)
            values.append(value)
        return x, fine, torch.stack(keys, 1), torch.stack(values, 1)

    def _mask(self, filled: Tensor, frames: int) -> Tensor:
        """Which of S + T frames each of T frames sees, bool [B, T, S + T]."""
        reach = self.span - 1
        place = torch.arange(reach + frames, device=filled.device)
        now = reach + torch.arange(frames, device=filled.device)[:, None]
        within = (place <= now) & (place > now - self.span)
        return within & (place >= reach - filled[:, None, None])


class ConvolutionBlock(nn.Module):
    """Two convolutions beside the identity, each behind a group norm that the condition scales and shifts.

    It begins as the identity; the norms begin as plain ones.
    """

    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.sizes = inputs, outputs
        self.modulate = nn.Linear(condition, 2 * (inputs + outputs))
        nn.init.normal_(self.modulate.weight, std=0.02)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.past = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.second.weight)
        for layer in (self.modulate, self.second):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Maps [B, inputs, H, W] and conditions [B, F] to maps [B, outputs, H, W]."""
        parts = self.modulate(F.silu(condition))[:, :, None, None].split(
            [size for size in self.sizes for _ in range(2)], 1
        )
        y = self.first(F.silu(_group_normal(x) * (1 + parts[0]) + parts[1]))
        y = self.second(F.silu(_group_normal(y) * (1 + parts[2]) + parts[3]))
        out: Tensor = self.past(x) + y
        return out


class SpaceTimeBlock(nn.Module):
    """Attention in space, attention along time, an MLP; each behind a modulated norm and a gate."""

    def __init__(self, width: int, heads: int, condition: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulate = nn.Linear(condition, 9 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        self.in_space, self.along_time = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)
        self.from_space, self.from_time = nn.Linear(width, width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, T, N, W]; the past [B, S, N, W]. Returns tokens, and keys and values [B, T, N, W]."""
        parts = self.modulate(F.silu(condition))[:, :, None].chunk(9, -1)
        queries, keys, values = self.in_space(_modulated(x, parts[0:2])).chunk(3, -1)
        seen = F.scaled_dot_product_attention(self._split(queries), self._split(keys), self._split(values))
        x = x + parts[2] * self.from_space(seen.transpose(-3, -2).flatten(-2))

        queries, keys, values = self.along_time(_modulated(x, parts[3:5])).chunk(3, -1)
        queries, keys = _rotated(queries, *rotation, self.heads), _rotated(keys, *rotation, self.heads)
        all_keys = torch.cat((past_keys.to(keys.dtype), keys), 1).transpose(1, 2)  # [B, N, S + T, W]
        all_values = torch.cat((past_values.to(values.dtype), values), 1).transpose(1, 2)
        seen = F.scaled_dot_product_attention(
            self._split(queries.transpose(1, 2)),
            self._split(all_keys),
            self._split(all_values),
            attn_mask=mask[:, None, None],
        )
        x = x + parts[5] * self.from_time(seen.transpose(-3, -2).flatten(-2).transpose(1, 2))
        x = x + parts[8] * self.mlp(_modulated(x, parts[6:8]))
        return x, keys, values

    def _split(self, x: Tensor) -> Tensor:
        """[..., tokens, W] to [..., heads, tokens, W / heads]."""
        split: Tensor = x.unflatten(-1, (self.heads, -1))
        return split.transpose(-3, -2)


def _modulated(x: Tensor, parts: Sequence[Tensor]) -> Tensor:
    scale, shift = parts
    return torch.addcmul(shift, _normal(x), 1 + scale)


def _normal(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _group_normal(x: Tensor) -> Tensor:
    return F.group_norm(x, max(1, x.shape[1] // _GROUP))


def _rotation(times: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the turns at each time, [B, T, size / 2]."""
    rates: Tensor = _ROTATION_BASE ** (-torch.arange(0, size, 2, device=times.device) / size)
    turns = times.unsqueeze(-1) * rates
    return turns.cos(), turns.sin()


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor, heads: int) -> Tensor:
    """[B, T, N, W] with the halves of each head turned in pairs."""
    one, other = x.unflatten(-1, (heads, -1)).chunk(2, -1)
    cosine, sine = cosine[:, :, None, None], sine[:, :, None, None]
    return torch.cat((one * cosine - other * sine, one * sine + other * cosine), -1).flatten(-2).to(x.dtype)
