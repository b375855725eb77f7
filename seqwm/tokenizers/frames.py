"""A tokenizer of frames: each square of pixels to one of a few hundred tokens, and tokens back to a frame.

The encoder sees no more than the square (an MLP of its pixels), the decoder sees its neighbours, too. So a token is a
function of its own pixels: what stands still keeps its token whatever moves beside it, in every frame and every window,
and those that are to foretell tokens have nothing but the world to foretell. (Genie's own tokenizer is a transformer
over space and time; what its tokens say of a square depends on all that came before.)

What the encoder says of a square is standardised over the batch, so that it cannot run away from its code, and takes
the nearest of a codebook (`seqwm.nn.vector_quantiser`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqwm.nn.vector_quantiser import VectorQuantiser


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerOptions:
    """The `tokens:` section of a recipe.

    Attributes:
        patch: pixels along each side of the square that becomes a token.
        codes: how many tokens there are.
        numbers: of a token's point.
        width: channels.
    """

    patch: int = 4
    codes: int = 512
    numbers: int = 16
    width: int = 64

    def __post_init__(self) -> None:
        for name, least in (("patch", 1), ("codes", 2), ("numbers", 1), ("width", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least {least}")


class FrameTokenizer(nn.Module):
    """Frames [..., C, H, W] in -1 .. 1 to tokens int64 [..., N], row by row, and back.

    Args:
        colours: channels of a frame.
        size: height and width, multiples of the patch.
        options: see there.
    """

    def __init__(self, colours: int, size: tuple[int, int], options: TokenizerOptions) -> None:
        super().__init__()
        self.patch, width = options.patch, options.width
        self.rows, self.columns = size[0] // self.patch, size[1] // self.patch
        pixels = colours * self.patch**2
        self.enter = nn.Sequential(
            nn.Conv2d(pixels, 2 * width, 1), nn.SiLU(), nn.Conv2d(2 * width, 2 * width, 1), nn.SiLU(),
            nn.Conv2d(2 * width, options.numbers, 1), nn.BatchNorm2d(options.numbers, affine=False),
        )  # fmt: skip
        self.quantise = VectorQuantiser(options.codes, options.numbers)
        self.leave = nn.Sequential(
            nn.Conv2d(options.numbers, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 2 * width, 1), nn.SiLU(),
            nn.Conv2d(2 * width, pixels, 1),
        )  # fmt: skip

    @property
    def codes(self) -> int:
        """How many tokens there are."""
        return self.quantise.size

    @property
    def places(self) -> int:
        """Tokens of a frame, N."""
        return self.rows * self.columns

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [M, C, H, W] through their tokens and back, with gradients, and the tokens, int64 [M, N].

        In training the codebook follows what it sees.
        """
        points, tokens = self.quantise(self.enter(F.pixel_unshuffle(frames, self.patch)).movedim(1, -1))
        return self._drawn(points), tokens.flatten(1)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Tokens int64 [..., N] of frames [..., C, H, W]."""
        tokens: Tensor = self(frames.flatten(0, -4))[1].unflatten(0, frames.shape[:-3])
        return tokens

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Frames [..., C, H, W] of tokens int64 [..., N]."""
        points = self.quantise.values(tokens.reshape(-1, self.rows, self.columns))
        frames: Tensor = self._drawn(points).unflatten(0, tokens.shape[:-1])
        return frames

    def _drawn(self, points: Tensor) -> Tensor:
        drawn: Tensor = F.pixel_shuffle(self.leave(points.movedim(-1, 1)), self.patch)
        return drawn.float()
