"""MOReL: learn offline in a pessimistic world, which halts for good where the ensemble does not know.

Kidambi et al., "MOReL: Model-Based Offline Reinforcement Learning", 2020.

**What is notable.** Steps about whose outcome members disagree more than about those of the data lead to a halt state
with a low reward for ever (`seqwm.control.pessimism`). Where the paper plans by a natural policy gradient on branches
of 500 steps from first states, this is soft actor-critic on shorter branches from the states of the data
(`seqwm.control.branched_learner`), as the other methods here are. Of `train:`, steps, batch_size and learning_rate
count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from seqwm.control.branched_learner import BranchedLearner, BranchOptions
from seqwm.control.branched_model import BranchedModel, described, parts
from seqwm.control.ensemble_fit import FitOptions
from seqwm.control.pessimism import halting, known_up_to
from seqwm.control.soft_actor_critic import SoftActorCriticOptions
from seqwm.nn.ensemble import EnsembleOptions

if TYPE_CHECKING:
    from seqwm.core.types import Metrics
    from seqwm.data.store import TrajectoryStore
    from seqwm.training.options import TrainOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe.

    Attributes:
        known: share of the data's steps that count as known; the threshold is this quantile of their disagreement, and
            with 1 the largest, the mildest threshold that the paper considers.
        halt_reward: of every step in the halt state; null takes the least reward in the data.
        ensemble: sizes (`seqwm.nn.ensemble`), the paper's by default.
        fit: of the ensemble (`seqwm.control.ensemble_fit`).
        branches: when and how to imagine (`seqwm.control.branched_learner`).
        agent: of soft actor-critic (`seqwm.control.soft_actor_critic`).
        ends: whether the end of the task is 'learned', or written 'by_hand' (`seqwm.nn.ends`), as in the paper.
    """

    known: float = 0.99
    halt_reward: float | None = None
    ensemble: EnsembleOptions = field(default_factory=lambda: EnsembleOptions(members=4, elites=4, layers=2, width=512))
    fit: FitOptions = field(default_factory=FitOptions)
    branches: BranchOptions = field(
        default_factory=lambda: BranchOptions(every=1000, starts=10_000, horizon=25, growing=(0, 0), kept=5)
    )
    agent: SoftActorCriticOptions = field(default_factory=SoftActorCriticOptions)
    ends: Literal["learned", "by_hand"] = "learned"

    def __post_init__(self) -> None:
        if not 0 < self.known <= 1:
            raise ValueError(f"known: found {self.known}, expected a share above 0, up to 1")


def build(options: Options, store: TrajectoryStore) -> Morel:
    """A model with fresh weights for the data of a store.

    Raises:
        SpaceError: the store has no actions or no rewards, its actions are discrete, or its observations no numbers.
    """
    return Morel(MorelConfig(**described(options, store)))


def learner(options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> BranchedLearner:
    """What learns a fresh model from a store."""
    model = build(options, store)
    least = min(float(episode.rewards.min()) for episode in store.episodes() if episode.rewards is not None)
    reward = least if options.halt_reward is None else options.halt_reward
    amend = halting(model.world, lambda: float(model.threshold), reward, options.agent.discount)

    def fitted(rows: torch.Tensor) -> Metrics:
        model.threshold.fill_(known_up_to(model.world, rows, options.known, seed))
        return {"threshold": float(model.threshold)}

    return BranchedLearner(
        model, model.world, model.agent, options.branches, options.fit, store, train, seed, amend=amend, fitted=fitted
    )


class MorelConfig(PreTrainedConfig):
    """`EnsembleOptions` and `SoftActorCriticOptions` as JSON, the spaces, and what the model was trained on."""

    model_type = "seqwm_morel"

    observation_space: dict[str, Any] | None = None
    action_space: dict[str, Any] | None = None
    dataset: str | None = None
    dataset_fingerprint: str | None = None
    environment: str | None = None
    ensemble: dict[str, Any] | None = None
    agent: dict[str, Any] | None = None
    ends: Literal["learned", "by_hand"] = "learned"


class Morel(BranchedModel, PreTrainedModel):
    """A world (`encode`, `step` and `decode`, without the halt) and an actor that learned in it.

    `threshold` is the disagreement above which the world was not believed.
    """

    config_class = MorelConfig
    threshold: torch.Tensor

    def __init__(self, config: MorelConfig) -> None:
        super().__init__(config)
        self.world, self.agent = parts(config)
        self.register_buffer("threshold", torch.tensor(torch.inf))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        return  # the initial weights that the networks were made with


AutoConfig.register(MorelConfig.model_type, MorelConfig)
AutoModel.register(MorelConfig, Morel)
