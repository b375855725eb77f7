"""MOPO: learn offline in a learned world in which doubt costs reward.

Yu et al., "MOPO: Model-based Offline Policy Optimization", 2020.

**What is notable.** The reward of imagined steps is lowered by a multiple of the largest deviation that an elite
expects (`seqwm.control.pessimism`). The paper leaves open who learns in that world; its own runs are soft actor-critic
on branches of five steps from the data's states, half a million updates of it and more. Here it is what MOReL has,
natural gradient steps by whole paths from a clone of what the data did (`seqwm.control.path_learner`), so that the two
differ in their pessimism alone, and minutes are enough: recipes/studies/offline_hopper.
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
from seqwm.control.pessimism import largest_deviation
from seqwm.nn.ensemble import EnsembleOptions
from seqwm.nn.logged_config import LoggedConfig

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore
    from seqwm.nn.ensemble import Normals
    from seqwm.training.options import TrainOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe.

    Attributes:
        price: of one unit of the largest predicted deviation, in reward; the paper's lambda, 5 or 1 for Hopper.
        ensemble: sizes (`seqwm.nn.ensemble`).
        fit: of the ensemble (`seqwm.control.ensemble_fit`).
        rounds: of imagined paths (`seqwm.control.path_learner`).
        agent: of the natural policy gradient (`seqwm.control.natural_gradient`).
        ends: whether the end of the task is 'learned', or written 'by_hand' (`seqwm.nn.ends`), as in the paper.
    """

    price: float = 5.0
    ensemble: EnsembleOptions = field(default_factory=EnsembleOptions)
    fit: FitOptions = field(default_factory=FitOptions)
    rounds: PathOptions = field(default_factory=PathOptions)
    agent: NaturalGradientOptions = field(default_factory=NaturalGradientOptions)
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


def learner(options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> PathLearner:
    """What learns a fresh model from a store."""
    model = build(options, store)

    def doubt(said: Normals, earned: Tensor, terminated: Tensor) -> tuple[Tensor, Tensor]:
        return earned - options.price * largest_deviation(model.world, said), terminated

    return PathLearner(model, model.world, model.agent, options.rounds, options.fit, store, train, seed, doubt=doubt)


class MopoConfig(LoggedConfig):
    """`EnsembleOptions` and `NaturalGradientOptions` as JSON, the spaces, and what the model was trained on."""

    model_type = "seqwm_mopo"

    ensemble: dict[str, Any] | None = None
    agent: dict[str, Any] | None = None
    ends: Literal["learned", "by_hand"] = "learned"


class Mopo(BranchedModel, PreTrainedModel):
    """A world (`encode`, `step` and `decode`, without the price) and an actor that learned in it."""

    config_class = MopoConfig

    def __init__(self, config: MopoConfig) -> None:
        super().__init__(config)
        self.world, self.agent = path_parts(config)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        return  # the initial weights that the networks were made with


AutoConfig.register(MopoConfig.model_type, MopoConfig)
AutoModel.register(MopoConfig, Mopo)
