"""MOReL: learn offline in a pessimistic world, which halts for good where the ensemble does not know.

Kidambi et al., "MOReL: Model-Based Offline Reinforcement Learning", 2020.

**What is notable.** Steps about whose outcome members disagree more than about those of the data lead to a halt state
with a low reward for ever (`seqwm.control.pessimism`). In that world, a policy that begins as a clone of the data's
plays whole paths from the data's first observations, each in the hands of one member, and takes a natural gradient step
by each round of them (`seqwm.control.path_learner`), as the authors do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from seqwm.control.branched_model import BranchedModel, described, path_parts
from seqwm.control.ensemble_fit import FitOptions
from seqwm.control.natural_gradient import NaturalGradientOptions
from seqwm.control.path_learner import PathLearner, PathOptions
from seqwm.control.pessimism import Halt, apart, known_up_to
from seqwm.nn.ensemble import EnsembleOptions
from seqwm.nn.logged_config import LoggedConfig

if TYPE_CHECKING:
    from seqwm.core.types import Metrics
    from seqwm.data.store import TrajectoryStore
    from seqwm.nn.ensemble import Normals
    from seqwm.training.options import TrainOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe.

    Attributes:
        known: share of the data's steps that count as known; the threshold is this quantile of their disagreement, and
            with 1 the largest, the mildest threshold that the paper considers.
        halt_reward: of every step in the halt state; null takes the least reward in the data.
        rounds: of imagined paths (`seqwm.control.path_learner`).
        ensemble: sizes (`seqwm.nn.ensemble`), the paper's by default.
        fit: of the ensemble (`seqwm.control.ensemble_fit`).
        agent: of the natural policy gradient (`seqwm.control.natural_gradient`).
        ends: whether the end of the task is 'learned', or written 'by_hand' (`seqwm.nn.ends`), as in the paper.
    """

    known: float = 1.0
    halt_reward: float | None = None
    rounds: PathOptions = field(default_factory=PathOptions)
    ensemble: EnsembleOptions = field(default_factory=lambda: EnsembleOptions(members=4, elites=4, layers=2, width=512))
    fit: FitOptions = field(default_factory=FitOptions)
    agent: NaturalGradientOptions = field(default_factory=NaturalGradientOptions)
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


def learner(options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> PathLearner:
    """What learns a fresh model from a store."""
    model = build(options, store)
    least = min(float(episode.rewards.min()) for episode in store.episodes() if episode.rewards is not None)
    reward = least if options.halt_reward is None else options.halt_reward

    def doubt(said: Normals, earned: Tensor, terminated: Tensor) -> tuple[Tensor, Tensor]:
        halt = Halt(float(model.threshold), reward, options.agent.discount)
        return halt.amend(apart(model.world, said), earned, terminated)

    def fitted(rows: Tensor) -> Metrics:
        model.threshold.fill_(known_up_to(model.world, rows, options.known, seed))
        return {"threshold": float(model.threshold)}

    return PathLearner(
        model, model.world, model.agent, options.rounds, options.fit, store, train, seed, doubt=doubt, fitted=fitted
    )


class MorelConfig(LoggedConfig):
    """`EnsembleOptions` and `NaturalGradientOptions` as JSON, the spaces, and what the model was trained on."""

    model_type = "seqwm_morel"

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
        self.world, self.agent = path_parts(config)
        self.register_buffer("threshold", torch.tensor(torch.inf))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        return  # the initial weights that the networks were made with


AutoConfig.register(MorelConfig.model_type, MorelConfig)
AutoModel.register(MorelConfig, Morel)
