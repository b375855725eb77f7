"""A tokenizer of video: a transformer over space and time, a finite scalar quantiser, and a transformer over space.

Bruce et al., "Genie: Generative Interactive Environments", 2024, tokenize with a transformer that sees the frames up to
a token's own; the quantiser is that of Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", 2023.

A token may say of its square what the squares around it and the frames before do not say already, which a codebook of
squares (`seqwm.tokenizers.frames`) cannot: that one runs out of codes where scenes differ more than sprites do. Its
price is that tokens go on changing their meaning while the encoder learns. Numbers are standardised over the batch
before they are rounded, so that every level is in use from the start. The decoder sees one frame of tokens alone, so
that a dream draws its frames without remembering any.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqwm.nn.finite_scalar import FiniteScalar
from seqwm.nn.frame_transformer import FrameTransformer
from seqwm.tokenizers.frames import HEAD, TokenizerOptions


class VideoTokenizer(nn.Module):
    """Frames [B, T, C, H, W] in -1 .. 1 to tokens int64 [B, T, N], row by row, and back.

    Args:
        colours: channels of a frame.
        size: height and width, multiples of the patch.
        options: with `levels`.
    """

    def __init__(self, colours: int, size: tuple[int, int], options: TokenizerOptions) -> None:
        super().__init__()
        self.patch, self.rows, self.columns = options.patch, size[0] // options.patch, size[1] // options.patch
        pixels, width, numbers = colours * options.patch**2, options.width, len(options.levels)
        self.quantise, self.standardise = FiniteScalar(options.levels), nn.BatchNorm1d(numbers, affine=False)
        self.enter, self.say = nn.Linear(pixels, width), nn.Linear(width, numbers)
        self.hear, self.leave = nn.Linear(numbers, width), nn.Linear(width, pixels)
        self.see, self.draw = (
            FrameTransformer(self.rows, self.columns, options.layers, width, width // HEAD, span)
            for span in (options.span, 1)
        )
        for block in (*self.see.blocks, *self.draw.blocks):  # no condition opens them: they are open from the start
            nn.init.ones_(block.modulate.bias.data.view(3, 3, width)[:, 2])  # type: ignore[union-attr]

    @property
    def codes(self) -> int:
        """How many tokens there are."""
        return int(self.quantise.size)

    @property
    def places(self) -> int:
        """Tokens of a frame, N."""
        return self.rows * self.columns

    @property
    def points(self) -> Tensor:
        """What every token is rounded to, float32 [V, D]."""
        return self.quantise.values(torch.arange(self.codes, device=self.say.weight.device))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [B, T, C, H, W] through their tokens and back, with gradients, and the tokens, int64 [B, T, N]."""
        squares = F.pixel_unshuffle(frames.flatten(0, 1), self.patch).flatten(2).transpose(1, 2)
        seen = _through(self.see, self.enter(squares).unflatten(0, frames.shape[:2]))
        numbers: Tensor = self.say(F.layer_norm(seen, seen.shape[-1:])).float()
        points, tokens = self.quantise(self.standardise(numbers.flatten(0, 2)).view_as(numbers))
        return self._drawn(points), tokens

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Tokens int64 [B, T, N] of frames [B, T, C, H, W]."""
        tokens: Tensor = self(frames)[1]
        return tokens

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Frames [B, T, C, H, W] of tokens int64 [B, T, N]."""
        frames: Tensor = self._drawn(self.quantise.values(tokens))
        return frames

    def _drawn(self, points: Tensor) -> Tensor:
        x = _through(self.draw, self.hear(points))
        squares = self.leave(F.layer_norm(x, x.shape[-1:])).flatten(0, 1).transpose(1, 2)
        drawn: Tensor = F.pixel_shuffle(squares.unflatten(-1, (self.rows, self.columns)), self.patch)
        frames: Tensor = drawn.float().unflatten(0, points.shape[:2])
        return frames


def _through(transformer: FrameTransformer, x: Tensor) -> Tensor:
    """Tokens [B, T, N, W] of frames one after the other, with no past and no condition."""
    times = torch.arange(x.shape[1], device=x.device)
    nothing = x.new_zeros(*x.shape[:2], x.shape[-1])
    out: Tensor = transformer(x, nothing, transformer.empty(len(x), x.device), times, torch.zeros_like(times).bool())[0]
    return out
