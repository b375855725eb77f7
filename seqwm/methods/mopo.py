"""MOPO: learn offline in a learned world in which doubt costs reward.

Yu et al., "MOPO: Model-based Offline Policy Optimization", 2020.

**What is notable.** MBPO (`seqwm.control.branched_learner`) on a finished store, with the reward of imagined steps
lowered by a multiple of the largest deviation that an elite predicts (`seqwm.control.pessimism`). Of `train:`, steps,
batch_size and learning_rate count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from seqwm.control.branched_learner import BranchedLearner, BranchOptions
from seqwm.control.branched_model import BranchedModel, described, parts
from seqwm.control.ensemble_fit import FitOptions
from seqwm.control.pessimism import priced
from seqwm.control.soft_actor_critic import SoftActorCriticOptions
from seqwm.nn.ensemble import EnsembleOptions

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore
    from seqwm.training.options import TrainOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe.

    Attributes:
        price: of one unit of the largest predicted deviation, in reward; the paper's lambda, 5 or 1 for Hopper.
        ensemble: sizes (`seqwm.nn.ensemble`).
        fit: of the ensemble (`seqwm.control.ensemble_fit`).
        branches: when and how to imagine (`seqwm.control.branched_learner`).
        agent: of soft actor-critic (`seqwm.control.soft_actor_critic`).
        ends: whether the end of the task is 'learned', or written 'by_hand' (`seqwm.nn.ends`), as in the paper.
    """

    price: float = 5.0
    ensemble: EnsembleOptions = field(default_factory=EnsembleOptions)
    fit: FitOptions = field(default_factory=FitOptions)
    branches: BranchOptions = field(
        default_factory=lambda: BranchOptions(every=1000, starts=50_000, horizon=5, growing=(0, 0), kept=5)
    )
    agent: SoftActorCriticOptions = field(default_factory=SoftActorCriticOptions)
    ends: Literal["learned", "by_hand"] = "learned"

    def __post_init__(self) -> None:
        if self.price < 0:
            raise ValueError(f"price: found {self.price}, expected zero or more")


def build(options: Options, store: TrajectoryStore) -> Mopo:
    """A model with fresh weights for the data of a store.

    Raises:
        SpaceError: the store has no actions or no rewards, its actions are discrete, or its observations no numbers.
    """
    return Mopo(MopoConfig(**described(options, store)))


def learner(options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> BranchedLearner:
    """What learns a fresh model from a store."""
    model = build(options, store)
    amend = priced(model.world, options.price)
    return BranchedLearner(
        model, model.world, model.agent, options.branches, options.fit, store, train, seed, amend=amend
    )


class MopoConfig(PreTrainedConfig):
    """`EnsembleOptions` and `SoftActorCriticOptions` as JSON, the spaces, and what the model was trained on."""

    model_type = "seqwm_mopo"

    observation_space: dict[str, Any] | None = None
    action_space: dict[str, Any] | None = None
    dataset: str | None = None
    dataset_fingerprint: str | None = None
    environment: str | None = None
    ensemble: dict[str, Any] | None = None
    agent: dict[str, Any] | None = None
    ends: Literal["learned", "by_hand"] = "learned"


class Mopo(BranchedModel, PreTrainedModel):
    """A world (`encode`, `step` and `decode`, without the price) and an actor that learned in it."""

    config_class = MopoConfig

    def __init__(self, config: MopoConfig) -> None:
        super().__init__(config)
        self.world, self.agent = parts(config)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        return  # the initial weights that the networks were made with


AutoConfig.register(MopoConfig.model_type, MopoConfig)
AutoModel.register(MopoConfig, Mopo)
