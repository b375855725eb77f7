"""The causal transformer that sequence models share: GPT-2's pre-norm block with what training and search need.

What is notable:

- one product makes queries, keys and values; attention is torch's scaled dot product;
- sequences are padded on the right, so the causal order alone keeps padding from being read and no mask is made;
- `read`: where only some positions are read out (the observation tokens of a Decision Transformer), the last layer
  makes queries and runs its MLP for those alone. The numbers are the same, a sixth of the work is not done;
- rotary positions (Su et al. 2021) on request; learned ones are added by the caller, before the first block.

Shapes: B batch, L tokens, R tokens read out, W width, K heads of C = W / K each.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["relu", "gelu", "gelu_new"]
"""As `transformers` names them: 'gelu_new' is the form by tanh of GPT-2, four times as slow on a CPU."""


class Block(nn.Module):
    """Attention and MLP, each on a normalised input and added to it."""

    def __init__(self, heads: int, width: int, dropout: float, activation: Activation, rotary: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.rotary, self.activation = heads, dropout, rotary, activation
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def project(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values, each [B, K, L, C], of tokens [B, L, W]; `positions` int64 [L] turn them (rotary)."""
        q, k, v = self.qkv(self._narrow(self.norm1(x))).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.rotary:
            positions = torch.arange(x.shape[1], device=x.device) if positions is None else positions
            q, k = rotate(q, positions), rotate(k, positions)
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's output for tokens x, attended [B, R, W]."""
        x = x + F.dropout(self.out(self._narrow(attended)), self.dropout, self.training)
        hidden = self.up(self._narrow(self.norm2(x)))
        if self.activation == "relu":
            hidden = F.relu(hidden)
        else:
            hidden = F.gelu(hidden, approximate="tanh" if self.activation == "gelu_new" else "none")
        return x + F.dropout(self.down(hidden), self.dropout, self.training)

    def to_half_products(self) -> None:
        """The four products in bfloat16 from now on, to act with; norms and the residual stream stay as they are."""
        for product in (self.qkv, self.out, self.up, self.down):
            product.to(torch.bfloat16)

    def _narrow(self, x: Tensor) -> Tensor:
        half = self.qkv.weight.dtype is torch.bfloat16  # and not in training, where autocast sees to it
        return x.to(torch.bfloat16) if half else x

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, L, W] to the same; `mask` is added to the scores and then replaces the causal order."""
        q, k, v = self.project(x)
        attended = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.finish(x, attended.transpose(1, 2).flatten(2))

    def read(self, x: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `forward`, for the tokens at `positions` (int64 [R], or [B, R] where lanes differ) alone: [B, R, W]."""
        width, length = x.shape[-1], x.shape[1]
        normed = self.norm1(x)
        k, v = F.linear(normed, self.qkv.weight[width:], self.qkv.bias[width:]).chunk(2, -1)
        k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (k, v))
        if positions.ndim == 1:
            chosen, chosen_normed = x[:, positions], normed[:, positions]
        else:
            index = positions[..., None].expand(-1, -1, width)
            chosen, chosen_normed = x.gather(1, index), normed.gather(1, index)
        q = F.linear(chosen_normed, self.qkv.weight[:width], self.qkv.bias[:width])
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if self.rotary:
            k = rotate(k, torch.arange(length, device=x.device))
            q = rotate(q, positions if positions.ndim == 1 else positions[:, None])
        if mask is None:
            mask = torch.arange(length, device=x.device) <= positions[..., None]
            mask = mask if positions.ndim == 1 else mask[:, None]  # [R, L] or [B, 1, R, L]
        elif positions.ndim == 1:
            mask = mask[..., positions, :]
        attended = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.finish(chosen, attended.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Blocks and the last norm.

    Args:
        layers, heads, width: of the network; the MLP is four times as wide.
        dropout: of attention and of both residual branches.
        activation: of the MLP.
        rotary: turn queries and keys by their positions.
    """

    def __init__(
        self,
        layers: int,
        heads: int,
        width: int,
        *,
        dropout: float = 0.0,
        activation: Activation = "gelu",
        rotary: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(heads, width, dropout, activation, rotary) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, *, read: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, L, W] to features [B, L, W], or [B, R, W] of the positions `read` (int64 [R] or [B, R]).

        Args:
            x: embedded tokens, positions included unless rotary.
            read: positions whose features are wanted; all when None.
            mask: added to the scores, broadcastable to [B, K, L, L], in place of the plain causal order.
        """
        for block in self.blocks[:-1]:
            x = block(x, mask)
        last = cast(Block, self.blocks[-1])
        x = last(x, mask) if read is None else last.read(x, read, mask)
        normed: Tensor = self.norm(x)
        return normed


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """What queries [B, K, R, C] read of keys and values [B, K, L, C], in the plain causal order where mask is None."""
    if q.device.type != "cpu" or q.dtype is not torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None)
    # Spelt out: torch 2.13's own kernel takes two to five times as long for this and its gradient in bfloat16 on a CPU.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
    return F.dropout(scores.softmax(-1), dropout, dropout > 0) @ v


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary position embedding: halves of each head turned by position times frequency.

    Args:
        x: [..., L, C], C even.
        positions: int64 [L], or broadcastable to x without its last dimension.
        base: of the frequencies base ** (-2 i / C).
    """
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = positions[..., None].float() * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def initialise(module: nn.Module, deviation: float = 0.02) -> None:
    """GPT-2's initial weights: normal matrices and embeddings, zero biases, unit norms."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=deviation)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
