"""What a search asks of an autoregressive model of transitions, and of the memory that the model keeps for it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from seqwm.tokenizers.transition import TokenLayout, TransitionTokenizer


class Memory(Protocol):
    """What a model knows of the past of N branches in each of E environments; `extend` adds to it."""

    def fork(self, width: int) -> Memory:
        """Every branch becomes `width` children that share its past."""
        ...

    def keep(self, children: Tensor) -> Memory:
        """Of the children of one fork, those named by number, int64 [E, N, M]; one may be named more than once."""
        ...

    def select(self, branches: Tensor) -> Memory:
        """The branches named by number, int64 [E, M], as branches of their own."""
        ...


class TokenModel(Protocol):
    """An autoregressive model of transitions, one code after another. Logits are [E, N, V + 1], the stop token last."""

    @property
    def layout(self) -> TokenLayout:
        """What the codes are."""
        ...

    def prefill(self, codes: Tensor, rows: Tensor, horizon: int) -> tuple[Memory, Tensor]:
        """Memory of one branch an environment, and the logits of its first action code.

        Args:
            codes: int64 [E, R, D], the past transitions first; of the last one only the observation is read.
            rows: int64 [E], how many of them are there.
            horizon: transitions that will follow at most.
        """
        ...

    def branch_bytes(self, horizon: int) -> int:
        """What one branch remembers of that many transitions."""
        ...

    def extend(self, memory: Memory, codes: Tensor, column: int) -> Tensor:
        """Append codes int64 [E, N] of one column to the memory; the logits of the column that follows."""
        ...

    def expectation(self, logits: Tensor, column: int) -> Tensor:
        """The mean value float32 [E, N] of one column under its logits."""
        ...

    def distance(self, codes: Tensor, goal: Tensor) -> Tensor:
        """Distance float32 [E, N] of observation codes [E, N, O] to goals float32 [E, O], NaN where one is free."""
        ...


class TokenAgent(TokenModel, Protocol):
    """A token model that also knows what its codes mean."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def tokenizer(self) -> TransitionTokenizer:
        """What the codes mean."""
        ...
