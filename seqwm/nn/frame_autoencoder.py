"""An autoencoder of single frames, for worlds that dream in its latents: `diffusers.AutoencoderTiny` between squares.

Squares of 2 x 2 pixels become channels first, and pixels again last, so that no convolution runs over whole frames; of
the halvings that `factor` asks for, the other ones are the autoencoder's. Latents are bounded to -1 .. 1, as frames
are, so that what diffuses the one diffuses the other.

Its only loss is the mean squared error of frames, drawn from latents with some noise on them: what a dream draws is
never quite what the encoder gives, so near latents must mean near frames (what the divergence of a variational
autoencoder is for).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

_SQUARE = 2
_BLUR = 0.05  # deviation of the noise on latents that the decoder learns from


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentOptions:
    """The `latents:` of a recipe's `model:` section.

    Attributes:
        factor: pixels along each side that become one place, a power of two above 1.
        channels: of a place.
        width: channels of the convolutions.
    """

    factor: int = 4
    channels: int = 8
    width: int = 32

    def __post_init__(self) -> None:
        if self.factor < _SQUARE or self.factor & (self.factor - 1):
            raise ValueError(f"factor: found {self.factor}, expected a power of two above 1")
        for name in ("channels", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")


class FrameAutoencoder(nn.Module):
    """Frames [..., C, H, W] in -1 .. 1 to latents [..., channels, H / factor, W / factor] in -1 .. 1, and back.

    Args:
        colours: channels of a frame, C.
        options: see there.
    """

    def __init__(self, colours: int, options: LatentOptions) -> None:
        super().__init__()
        squares = colours * _SQUARE**2
        levels = (options.factor // _SQUARE).bit_length()
        self.network = AutoencoderTiny(
            in_channels=squares,
            out_channels=squares,
            encoder_block_out_channels=(options.width,) * levels,
            decoder_block_out_channels=(options.width,) * levels,
            num_encoder_blocks=(1,) * levels,
            num_decoder_blocks=(1,) * levels,
            latent_channels=options.channels,
        )

    def encode(self, frames: Tensor) -> Tensor:
        """Latents of frames, float32."""
        squares = F.pixel_unshuffle(frames.flatten(0, -4), _SQUARE).contiguous(memory_format=torch.channels_last)
        latents: Tensor = self.network.encode(squares).latents.float().tanh().unflatten(0, frames.shape[:-3])
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Frames of latents, float32; a little beyond -1 .. 1 where it errs."""
        squares = self.network.decode(latents.flatten(0, -4)).sample
        frames: Tensor = F.pixel_shuffle(squares.float(), _SQUARE).unflatten(0, latents.shape[:-3])
        return frames

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of frames [B, T, C, H, W], without gradient, and the squared error of each behind them, [B, T]."""
        latents = self.encode(frames)
        drawn = self.decode(latents + _BLUR * torch.randn_like(latents))
        return latents.detach(), (drawn - frames).square().mean((2, 3, 4))
