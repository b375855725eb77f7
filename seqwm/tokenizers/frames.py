"""A tokenizer of frames: each square of pixels to one of a few hundred tokens, and tokens back to a frame.

Tokens are the codes of a codebook of squares (`seqwm.nn.vector_quantiser`), each square the nearest one. A decoder,
which sees the neighbours of a square too, adds what its code does not say.

There is no encoder to be learned before the codebook, as a VQ-VAE has one, and as `seqwm.tokenizers.video` has. So a
token is a function of its own pixels: what stands still keeps its token whatever moves beside it, in every frame and
every window, and the codebook stands after some tens of batches, where one that follows a moving encoder would go on
renaming what those who read tokens have learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqwm.nn.finite_scalar import FiniteScalar
from seqwm.nn.vector_quantiser import VectorQuantiser

HEAD = 32
"""Width of a head of attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerOptions:
    """The `tokens:` section of a recipe.

    Attributes:
        patch: pixels along each side of the square that becomes a token.
        codes: how many tokens there are.
        width: channels of the decoder.
        levels: of each number of a token; their product takes the place of `codes`, and a transformer over space and
            time (`seqwm.tokenizers.video`) that of the codebook. None for the codebook.
        layers: of that transformer, and as many behind it.
        span: frames that it sees, a token's own counted.
    """

    patch: int = 4
    codes: int = 512
    width: int = 64
    levels: tuple[int, ...] = ()
    layers: int = 2
    span: int = 3

    def __post_init__(self) -> None:
        for name, least in (("patch", 1), ("codes", 2), ("width", 1), ("layers", 1), ("span", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least {least}")
        if self.levels:
            FiniteScalar(self.levels)
            if self.width % HEAD:
                raise ValueError(f"width: found {self.width}, expected a multiple of {HEAD}, a head of the transformer")


class FrameTokenizer(nn.Module):
    """Frames [..., C, H, W] in -1 .. 1 to tokens int64 [..., N], row by row, and back.

    Args:
        colours: channels of a frame.
        size: height and width, multiples of the patch.
        options: see there.
    """

    def __init__(self, colours: int, size: tuple[int, int], options: TokenizerOptions) -> None:
        super().__init__()
        self.patch, self.rows, self.columns = options.patch, size[0] // options.patch, size[1] // options.patch
        pixels = colours * options.patch**2
        self.quantise = VectorQuantiser(options.codes, pixels)
        last = nn.Conv2d(options.width, pixels, 1, bias=False)
        nn.init.zeros_(last.weight)
        self.add = nn.Sequential(
            nn.Conv2d(pixels, options.width, 3, padding=1), nn.SiLU(), nn.Conv2d(options.width, options.width, 1),
            nn.SiLU(), last,
        )  # fmt: skip

    @property
    def codes(self) -> int:
        """How many tokens there are."""
        return self.quantise.size

    @property
    def places(self) -> int:
        """Tokens of a frame, N."""
        return self.rows * self.columns

    @property
    def points(self) -> Tensor:
        """What every token is the nearest to, float32 [V, D]."""
        return self.quantise.points

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [..., C, H, W] through their tokens and back, with gradients, and the tokens, int64 [..., N].

        In training the codebook follows what it sees.
        """
        points, tokens = self.quantise(F.pixel_unshuffle(frames.flatten(0, -4), self.patch).movedim(1, -1))
        return self._drawn(points).view_as(frames), tokens.flatten(1).unflatten(0, frames.shape[:-3])

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Tokens int64 [..., N] of frames [..., C, H, W]."""
        _, tokens = self.quantise(F.pixel_unshuffle(frames.flatten(0, -4), self.patch).movedim(1, -1))
        all_tokens: Tensor = tokens.flatten(1).unflatten(0, frames.shape[:-3])
        return all_tokens

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Frames [..., C, H, W] of tokens int64 [..., N]."""
        points = self.quantise.points[tokens.reshape(-1, self.rows, self.columns)]
        frames: Tensor = self._drawn(points).unflatten(0, tokens.shape[:-1])
        return frames

    def _drawn(self, points: Tensor) -> Tensor:
        squares = points.movedim(-1, 1)
        drawn: Tensor = F.pixel_shuffle(squares + self.add(squares), self.patch)
        return drawn.float()
