"""An actor on the features of an observation as a policy: what soft actor-critic and natural gradients teach."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from seqwm.core.tree import tree_map
from seqwm.core.types import State, TensorTree
from seqwm.nn.ensemble_world import EnsembleWorld


class Actor(Protocol):
    """What acts in the features of an observation."""

    def act(self, features: Tensor, generator: torch.Generator | None = None, *, explore: bool = True) -> Tensor:
        """Features of actions, [..., A], for those of observations, [..., F]: drawn, or the likeliest."""
        ...


class ActorPolicy:
    """Acts as an actor does; exploring it draws from torch's default generator."""

    def __init__(self, world: EnsembleWorld, agent: Actor, explore: bool) -> None:
        self._world, self._agent, self._explore = world, agent, explore

    def initial(self, lanes: int) -> State:
        """No memory."""
        return {}

    @torch.no_grad()
    def act(self, state: State, observation: TensorTree, reward: Tensor, first: Tensor) -> tuple[TensorTree, State]:
        """Actions (leaves [B, ...]) for observations (leaves [B, ...])."""
        device = self._world.input_mean.device
        features = self._world.features(tree_map(lambda leaf: leaf.to(device), observation))
        return self._world.actions.restore(self._agent.act(features, explore=self._explore)), state
