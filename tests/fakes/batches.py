"""Batches without a store: a linear task with windows of random lengths, a pure function of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from seqwm.core.random import torch_generator
from seqwm.core.types import Batch


@dataclass(frozen=True, slots=True)
class LinearBatches:
    batch_size: int = 8
    length: int = 5
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def batch(self, step: int) -> Batch:
        generator = torch_generator(self.seed, step)
        shape = (self.batch_size, self.length)
        counts = torch.randint(1, self.length + 1, (self.batch_size,), generator=generator)
        valid = torch.arange(self.length) < counts[:, None]
        observations = torch.randn(*shape, 3, generator=generator) * valid[..., None]
        weights = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, -1.0]])
        nothing = torch.zeros(shape, dtype=torch.bool)
        share = slice(self.rank, None, self.world_size)
        return Batch(
            observations=observations[share],
            actions=(observations @ weights)[share],
            rewards=None,
            terminated=nothing[share],
            truncated=nothing[share],
            valid=valid[share],
            timesteps=torch.arange(self.length).expand(shape)[share],
            returns_to_go=None,
        )
