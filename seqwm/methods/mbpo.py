"""MBPO: soft actor-critic on short rollouts that a learned ensemble branches off from real states.

Janner et al., "When to Trust Your Model: Model-Based Policy Optimization", 2019.

**What is notable.** An update is one of soft actor-critic (`seqwm.control.soft_actor_critic`), on a batch of which a
twentieth is real. Every so many updates branches are made anew from states that were really there
(`seqwm.control.branched_rollouts`); every so many transitions the ensemble is fitted again, to episodes under way, too.
The end of a task is learned unless `ends: by_hand` asks for the paper's rules, which are far better where few ends were
seen. With `branches.real_share: 1` nothing is imagined and what is left is soft actor-critic. Of `train:`, steps,
batch_size and learning_rate count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from seqwm.control.branched_learner import ActorPolicy, BranchedLearner, BranchOptions
from seqwm.control.ensemble_fit import FitOptions
from seqwm.control.soft_actor_critic import SoftActorCritic, SoftActorCriticOptions
from seqwm.core.errors import SpaceError
from seqwm.core.protocols import Step
from seqwm.core.spaces import space_from_json, space_to_json
from seqwm.core.types import Batch, State, TensorTree
from seqwm.nn.ends import end_rule
from seqwm.nn.ensemble import EnsembleOptions
from seqwm.nn.ensemble_world import EnsembleWorld

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore
    from seqwm.training.options import TrainOptions

Ends: TypeAlias = Literal["learned", "by_hand"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe.

    Attributes:
        ensemble: sizes (`seqwm.nn.ensemble`).
        fit: of the ensemble (`seqwm.control.ensemble_fit`).
        branches: when and how to imagine (`seqwm.control.branched_learner`).
        agent: of soft actor-critic (`seqwm.control.soft_actor_critic`).
        ends: whether the end of the task is 'learned', or written 'by_hand' (`seqwm.nn.ends`), as in the paper.
    """

    ensemble: EnsembleOptions = field(default_factory=EnsembleOptions)
    fit: FitOptions = field(default_factory=FitOptions)
    branches: BranchOptions = field(default_factory=BranchOptions)
    agent: SoftActorCriticOptions = field(default_factory=SoftActorCriticOptions)
    ends: Ends = "learned"


def build(options: Options, store: TrajectoryStore) -> Mbpo:
    """A model with fresh weights for the data of a store.

    Raises:
        SpaceError: the store has no actions or no rewards, its actions are discrete, or its observations no numbers.
    """
    if store.spaces.action is None or not store.has_rewards:
        raise SpaceError(f"{store.path}: found data without actions or rewards, expected both: mbpo acts for reward")
    return Mbpo(
        MbpoConfig(
            observation_space=space_to_json(store.spaces.observation),
            action_space=space_to_json(store.spaces.action),
            dataset=store.provenance.get("source"),
            dataset_fingerprint=store.fingerprint,
            environment=store.provenance.get("environment"),
            ensemble=dataclasses.asdict(options.ensemble),
            agent=dataclasses.asdict(options.agent),
            ends=options.ends,
        )
    )


def learner(options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> BranchedLearner:
    """What learns a fresh model from a store, finished or growing."""
    model = build(options, store)
    return BranchedLearner(model, model.world, model.agent, options.branches, options.fit, store, train, seed)


class MbpoConfig(PreTrainedConfig):
    """`EnsembleOptions` and `SoftActorCriticOptions` as JSON, the spaces, and what the model was trained on."""

    model_type = "seqwm_mbpo"

    observation_space: dict[str, Any] | None = None
    action_space: dict[str, Any] | None = None
    dataset: str | None = None
    dataset_fingerprint: str | None = None
    environment: str | None = None
    ensemble: dict[str, Any] | None = None
    agent: dict[str, Any] | None = None
    ends: Ends = "learned"


class Mbpo(PreTrainedModel):
    """A world (`encode`, `step` and `decode`) and an actor that learned in it."""

    config_class = MbpoConfig
    return_conditioned = False
    window_length = 1

    def __init__(self, config: MbpoConfig) -> None:
        super().__init__(config)
        observation, action = (
            space_from_json(space or {}) for space in (config.observation_space, config.action_space)
        )
        sizes = EnsembleOptions(**(config.ensemble or {}))
        ends = end_rule(config.environment) if config.ends == "by_hand" else None
        self.world = EnsembleWorld(sizes, "TS-1", observation, action, ends)
        features = sum(leaf.size for leaf in self.world.leaves)
        self.agent = SoftActorCritic(SoftActorCriticOptions(**(config.agent or {})), features, action)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        return  # the initial weights that the networks were made with

    def encode(self, context: Batch) -> State:
        """The last valid row's observation."""
        return self.world.encode(context)

    def step(self, state: State, action: TensorTree, generator: torch.Generator | None) -> Step:
        """The observation behind an action, its reward, and whether the task ended."""
        return self.world.step(state, action, generator)

    def decode(self, state: State) -> TensorTree:
        """The observation of a state."""
        return self.world.decode(state)

    def policy(self, target_returns: Sequence[float] | None = None) -> ActorPolicy:
        """The actor without its noise; `target_returns` must be None."""
        if target_returns is not None:
            raise ValueError("mbpo: found target_returns, expected none: it looks for the largest return")
        return ActorPolicy(self.world, self.agent, explore=False)


AutoConfig.register(MbpoConfig.model_type, MbpoConfig)
AutoModel.register(MbpoConfig, Mbpo)
