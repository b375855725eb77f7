"""A method as small as can be, for tests of recipes and training: a linear map from observation to action."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    width: int = 64
    layers: int = 2
    dropout: float = 0.0
    activation: Literal["relu", "gelu"] = "relu"
    context_length: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: found {self.dropout}, expected a share in [0, 1)")


def build(options, store):
    return Linear(store.spaces.observation.shape[0], store.spaces.action.shape[0], options.dropout)


class Linear(nn.Module):
    window_length = 5

    def __init__(self, observation: int, action: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(observation, 16)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(16, action)
        self.unused = nn.Linear(2, 2)  # models carry heads that a loss does not use

    def loss(self, batch):
        predicted = self.head(self.dropout(torch.relu(self.layer(batch.observations))))
        errors = ((predicted.float() - batch.actions) ** 2).mean(-1)
        loss = errors[batch.valid].mean()
        return loss, {"action_error": loss.detach().sqrt()}

    def save_pretrained(self, folder):
        Path(folder).mkdir()
        save_file(self.state_dict(), Path(folder) / "model.safetensors")
