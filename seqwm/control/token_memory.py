"""What a transformer over tokens remembers during a search: the cache, and where in the sequence it stands."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from seqwm.nn.branched_cache import BranchedCache
from seqwm.tokenizers.transition import TokenLayout


@dataclass(slots=True)
class TokenMemory:
    """What a search remembers: the cache, and where in the sequence it stands.

    Attributes:
        cache: keys and values of all branches.
        first, row: int64 [E], the transitions at the prefix's beginning and being written.
        column: that comes next.
        depth: transitions begun since the prefix.
        layout: of the tokens.
        possible: added to the logits.
    """

    cache: BranchedCache
    first: Tensor
    row: Tensor
    column: int
    depth: int
    layout: TokenLayout
    possible: Tensor

    def fork(self, width: int) -> TokenMemory:
        """Every branch becomes `width` children that share its past."""
        last = self.layout.observation if self.column < self.layout.observation else self.layout.value
        return dataclasses.replace(self, cache=self.cache.fork(width, last - self.column))

    def keep(self, children: Tensor) -> TokenMemory:
        """Of the children of one fork, those named by number, int64 [E, N, M]."""
        return dataclasses.replace(self, cache=self.cache.keep(children))

    def select(self, branches: Tensor) -> TokenMemory:
        """The branches named by number, int64 [E, M], as branches of their own."""
        return dataclasses.replace(self, cache=self.cache.select(branches))

    def begin_row(self, reach: int | None) -> None:
        """The next transition; what is `reach` or more transitions behind it is forgotten."""
        self.row, self.depth = self.row + 1, self.depth + 1
        if reach is None:
            return
        prefix = self.cache.levels[0]
        slots = torch.arange(prefix.content.shape[3], device=self.row.device)
        old = slots // (self.layout.columns - 1) <= (self.row - self.first - reach)[:, None]
        mask = hiding(old, prefix.content.dtype, self.cache.heads)
        prefix.mask = mask if prefix.mask is None else prefix.mask + mask
        gone = self.depth - reach
        if gone >= 0:
            self.cache.forget(self.layout.action + 1 + gone * (self.layout.columns - 1))


def hiding(where: Tensor, dtype: torch.dtype, heads: int) -> Tensor:
    """A mask [B * K, 1, S] to add to the scores of every head: minus infinity where bool [B, S]."""
    mask = torch.zeros(where.shape, dtype=dtype, device=where.device).masked_fill(where, -torch.inf)
    return mask.repeat_interleave(heads, 0)[:, None]
