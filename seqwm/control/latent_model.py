"""What methods that dream in latent space save: a world, which their models speak for."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import Space

from seqwm.core.protocols import Step
from seqwm.core.spaces import space_from_json
from seqwm.core.types import Batch, State, TensorTree
from seqwm.nn.latent_world import LatentWorld, WorldOptions
from seqwm.nn.rssm import RSSMOptions


class LatentModel:
    """The part of a model that is a world: `world` answers. Mixed into a `PreTrainedModel` with its `config`."""

    return_conditioned = False
    config: Any
    world: LatentWorld

    def _init_weights(self, module: torch.nn.Module) -> None:
        return  # the initial weights that every layer was made with

    @property
    def window_length(self) -> int:
        """Rows of the windows that it was trained on."""
        return int(self.config.sequence_length)

    def encode(self, context: Batch) -> State:
        """The most likely state at the last valid row's observation."""
        return self.world.encode(context)

    def step(self, state: State, action: TensorTree, generator: torch.Generator | None) -> Step:
        """The state behind an action, its reward, and whether the task ended."""
        return self.world.step(state, action, generator)

    def decode(self, state: State) -> TensorTree:
        """The observation that a state stands for."""
        return self.world.decode(state)


def world_of(config: Any) -> tuple[LatentWorld, Space[Any]]:
    """A fresh world as a config describes it, and the space of its actions."""
    options = dict(config.world or {})
    options["rssm"] = RSSMOptions(**options.get("rssm", {}))
    observation, action = (space_from_json(space or {}) for space in (config.observation_space, config.action_space))
    return LatentWorld(WorldOptions(**options), observation, action), action
