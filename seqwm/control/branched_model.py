"""What methods that learn in an ensemble's dreams save: the ensemble as a world, and the actor that learned in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from gymnasium import Space

from seqwm.control.actor_policy import ActorPolicy
from seqwm.control.natural_gradient import GaussianActor, NaturalGradientOptions
from seqwm.control.soft_actor_critic import SoftActorCritic, SoftActorCriticOptions
from seqwm.core.errors import SpaceError
from seqwm.core.protocols import Step
from seqwm.core.spaces import space_from_json
from seqwm.core.types import Batch, State, TensorTree
from seqwm.data.store import TrajectoryStore
from seqwm.nn.ends import end_rule
from seqwm.nn.ensemble import EnsembleOptions
from seqwm.nn.ensemble_world import EnsembleWorld, Propagation


class BranchedModel:
    """The part of a model's class that is no matter of how it learned."""

    return_conditioned = False
    window_length = 1
    world: EnsembleWorld
    agent: Any  # `seqwm.control.actor_policy.Actor`

    def encode(self, context: Batch) -> State:
        """The last valid row's observation."""
        return self.world.encode(context)

    def step(self, state: State, action: TensorTree, generator: Any) -> Step:
        """The observation behind an action, its reward, and whether the task ended."""
        return self.world.step(state, action, generator)

    def decode(self, state: State) -> TensorTree:
        """The observation of a state."""
        return self.world.decode(state)

    def policy(self, target_returns: Sequence[float] | None = None) -> ActorPolicy:
        """The actor without its noise; `target_returns` must be None."""
        if target_returns is not None:
            name = type(self).__name__.lower()
            raise ValueError(f"{name}: found target_returns, expected none: it looks for the largest return")
        return ActorPolicy(self.world, self.agent, explore=False)


def described(options: Any, store: TrajectoryStore) -> dict[str, Any]:
    """What a config holds of a method's `ensemble`, `agent` and `ends`, and of the data.

    Raises:
        SpaceError: the store has no actions or no rewards.
    """
    if store.spaces.action is None or not store.has_rewards:
        raise SpaceError(f"{store.path}: found data without actions or rewards, expected both to learn to act from")
    return {
        **store.described(),
        "ensemble": dataclasses.asdict(options.ensemble),
        "agent": dataclasses.asdict(options.agent),
        "ends": options.ends,
    }


def parts(config: Any) -> tuple[EnsembleWorld, SoftActorCritic]:
    """Fresh networks as a config describes them."""
    world, space = world_of(config, "TS-1")
    return world, SoftActorCritic(SoftActorCriticOptions(**(config.agent or {})), world.size, space)


def path_parts(config: Any) -> tuple[EnsembleWorld, GaussianActor]:
    """The same with an actor that learns from paths, each in the hands of one member: errors do not average out."""
    world, space = world_of(config, "TS-inf")
    return world, GaussianActor(NaturalGradientOptions(**(config.agent or {})), world.size, space)


def world_of(config: Any, propagation: Propagation) -> tuple[EnsembleWorld, Space[Any]]:
    """A fresh world as a config describes it, and the space of its actions."""
    observation, action = (space_from_json(space or {}) for space in (config.observation_space, config.action_space))
    ends = end_rule(config.environment) if config.ends == "by_hand" else None
    return EnsembleWorld(EnsembleOptions(**(config.ensemble or {})), propagation, observation, action, ends), action
