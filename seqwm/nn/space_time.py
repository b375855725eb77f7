"""A causal transformer over frames of patches, each frame with a condition of its own, and an exact cache.

A block looks within each frame (every patch at every other), then along time (each patch at the same one in frames up
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


class SpaceTime(nn.Module):
    """Frames to frames of the same size.

    Args:
        inputs, outputs: channels in and out.
        size: height and width of a frame, multiples of `patch`.
        patch: pixels along each side of a patch.
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
        layers: int,
        width: int,
        heads: int,
        span: int,
        condition: int,
    ) -> None:
        super().__init__()
        self.patch, self.span, self.heads, self.width, self.outputs = patch, span, heads, width, outputs
        self.rows, self.columns = size[0] // patch, size[1] // patch
        self.enter = nn.Linear(inputs * patch**2, width)
        self.place = nn.Parameter(0.02 * torch.randn(self.rows * self.columns, width))
        self.blocks = nn.ModuleList(SpaceTimeBlock(width, heads, condition) for _ in range(layers))
        self.modulate = nn.Linear(condition, 2 * width)
        self.leave = nn.Linear(width, outputs * patch**2)
        for layer in (self.modulate, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def empty(self, lanes: int, device: torch.device | str) -> Past:
        """No past."""
        shape = lanes, len(self.blocks), self.span - 1, self.rows * self.columns, self.width
        zeros = torch.zeros(lanes, dtype=torch.int64, device=device)
        return Past(torch.zeros(shape, device=device), torch.zeros(shape, device=device), zeros, zeros)

    def forward(self, x: Tensor, condition: Tensor, past: Past | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Frames [B, T, C, H, W] with conditions [B, T, F] to frames [B, T, outputs, H, W].

        Returns:
            The frames, and their keys and values, [B, L, T, N, W], for `remember`.
        """
        lanes, frames = x.shape[:2]
        past = self.empty(lanes, x.device) if past is None else past
        x = self.enter(_patches(x, self.patch)) + self.place
        times = past.time[:, None] + torch.arange(frames, device=x.device)
        rotation = _rotation(times, self.width // self.heads)
        mask = self._mask(past.filled, frames)
        keys, values = [], []
        for layer, block in enumerate(self.blocks):
            x, key, value = block(x, condition, rotation, mask, past.keys[:, layer], past.values[:, layer])
            keys.append(key)
            values.append(value)
        scale, shift = self.modulate(condition)[:, :, None].chunk(2, -1)
        x = self.leave(_modulated(x, (scale, shift)))
        size = self.patch, self.rows, self.columns, self.outputs
        return _unpatched(x, *size), torch.stack(keys, 1), torch.stack(values, 1)

    def remember(self, past: Past, keys: Tensor, values: Tensor, count: Tensor) -> Past:
        """The past behind the first `count` (int64 [B]) of T frames that `forward` gave keys and values for."""
        reach, frames = self.span - 1, keys.shape[2]
        index = count[:, None] + torch.arange(reach, device=keys.device)
        lanes = torch.arange(len(count), device=keys.device)[:, None]

        def kept(old: Tensor, new: Tensor) -> Tensor:
            line = torch.cat((old, new.to(old.dtype)), 2).transpose(1, 2)  # [B, S + T, L, N, W]
            return line[lanes, index].transpose(1, 2)

        assert int(count.max()) <= frames
        filled = (past.filled + count).clamp_max(reach)
        return Past(kept(past.keys, keys), kept(past.values, values), filled, past.time + count)

    def _mask(self, filled: Tensor, frames: int) -> Tensor:
        """Which of S + T frames each of T frames sees, bool [B, T, S + T]."""
        reach = self.span - 1
        place = torch.arange(reach + frames, device=filled.device)
        now = reach + torch.arange(frames, device=filled.device)[:, None]
        within = (place <= now) & (place > now - self.span)
        return within & (place >= reach - filled[:, None, None])


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
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

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


def _patches(x: Tensor, patch: int) -> Tensor:
    """[B, T, C, H, W] to [B, T, N, C * patch * patch], row by row."""
    maps: Tensor = F.pixel_unshuffle(x.flatten(0, 1), patch).unflatten(0, x.shape[:2])
    return maps.flatten(3).transpose(2, 3)


def _unpatched(x: Tensor, patch: int, rows: int, columns: int, channels: int) -> Tensor:
    """The inverse of `_patches`."""
    maps: Tensor = F.pixel_shuffle(x.transpose(2, 3).reshape(-1, channels * patch**2, rows, columns), patch)
    frames: Tensor = maps.unflatten(0, x.shape[:2])
    return frames
