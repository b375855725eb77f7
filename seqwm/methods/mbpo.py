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

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from seqwm.control.branched_learner import BranchedLearner, BranchOptions
from seqwm.control.branched_model import BranchedModel, described, parts
from seqwm.control.ensemble_fit import FitOptions
from seqwm.control.soft_actor_critic import SoftActorCriticOptions
from seqwm.nn.ensemble import EnsembleOptions
from seqwm.nn.logged_config import LoggedConfig

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore
    from seqwm.training.options import TrainOptions


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
    ends: Literal["learned", "by_hand"] = "learned"


def build(options: Options, store: TrajectoryStore) -> Mbpo:
    """A model with fresh weights for the data of a store.

    Raises:
        SpaceError: the store has no actions or no rewards, its actions are discrete, or its observations no numbers.
    """
    return Mbpo(MbpoConfig(**described(options, store)))


def learner(options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> BranchedLearner:
    """What learns a fresh model from a store, finished or growing."""
    model = build(options, store)
    return BranchedLearner(model, model.world, model.agent, options.branches, options.fit, store, train, seed)


class MbpoConfig(LoggedConfig):
    """`EnsembleOptions` and `SoftActorCriticOptions` as JSON, the spaces, and what the model was trained on."""

    model_type = "seqwm_mbpo"

    ensemble: dict[str, Any] | None = None
    agent: dict[str, Any] | None = None
    ends: Literal["learned", "by_hand"] = "learned"


class Mbpo(BranchedModel, PreTrainedModel):
    """A world (`encode`, `step` and `decode`) and an actor that learned in it."""

    config_class = MbpoConfig

    def __init__(self, config: MbpoConfig) -> None:
        super().__init__(config)
        self.world, self.agent = parts(config)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        return  # the initial weights that the networks were made with


AutoConfig.register(MbpoConfig.model_type, MbpoConfig)
AutoModel.register(MbpoConfig, Mbpo)
