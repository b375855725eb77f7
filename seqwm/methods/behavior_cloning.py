"""Behaviour cloning, and its filtered form that keeps Decision Transformers honest.

Pomerleau 1991: a network that gives the action the log took. With `top_fraction` it learns from the best episodes only
(%BC of Chen et al. 2021): episodes by falling return until that share of all time steps is reached.

The network is an MLP of one observation; loss and heads are those of the sequence models (`seqwm.nn.leaves`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from seqwm.core.errors import SpaceError
from seqwm.core.spaces import space_from_json
from seqwm.core.tree import tree_map
from seqwm.core.types import Batch, State, TensorTree
from seqwm.nn.leaves import ActionCodec, ObservationEncoder
from seqwm.nn.logged_config import LoggedConfig

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe.

    Attributes:
        layers, width: hidden layers and their size.
        dropout: behind each hidden layer.
        top_fraction: share of the time steps, taken from the episodes of highest return; null uses all episodes.
    """

    layers: int = 2
    width: int = 256
    dropout: float = 0.1
    top_fraction: float | None = None

    def __post_init__(self) -> None:
        if self.layers < 1 or self.width < 1:
            raise ValueError(f"layers, width: found {self.layers}, {self.width}, expected at least 1 each")
        if self.top_fraction is not None and not 0 < self.top_fraction <= 1:
            raise ValueError(f"top_fraction: found {self.top_fraction}, expected a share above 0 and at most 1")


def build(options: Options, store: TrajectoryStore) -> BehaviorCloning:
    """A model with fresh weights for the data of a store.

    Raises:
        SpaceError: the store has no actions; or no rewards to choose the best episodes by.
    """
    if not store.has_actions:
        raise SpaceError(f"{store.path}: the data has no actions; behavior_cloning needs them, train a world model")
    if options.top_fraction is not None and not store.has_rewards:
        raise SpaceError(f"{store.path}: the data has no rewards; expected some for top_fraction, leave it out")
    assert store.spaces.action is not None
    config = BehaviorCloningConfig(
        **store.described(),
        **dataclasses.asdict(options),
    )
    model = BehaviorCloning(config)
    statistics = store.statistics
    fitted = ObservationEncoder(store.spaces.observation, 1, statistics.observation_mean, statistics.observation_std)
    model.observe.mean.copy_(fitted.mean)
    model.observe.std.copy_(fitted.std)
    model.actions.load_state_dict(
        ActionCodec(store.spaces.action, statistics.action_mean, statistics.action_std).state_dict()
    )
    return model


def episodes(options: Options, store: TrajectoryStore) -> Sequence[int] | None:
    """The episodes to learn from: by falling return, until `top_fraction` of the time steps is reached."""
    if options.top_fraction is None:
        return None
    order = np.argsort(-store.returns, kind="stable")
    enough = int(np.searchsorted(np.cumsum(store.lengths[order]), options.top_fraction * store.rows)) + 1
    return [int(number) for number in np.sort(order[:enough])]


class BehaviorCloningConfig(LoggedConfig):
    """The fields of `Options`, the spaces as JSON (`seqwm.core.spaces`), and what the model was trained on."""

    model_type = "seqwm_behavior_cloning"

    layers: int = 2
    width: int = 256
    dropout: float = 0.1
    top_fraction: float | None = None


class BehaviorCloning(PreTrainedModel):
    """The network; `loss` trains it, `policy` acts with it."""

    config_class = BehaviorCloningConfig
    return_conditioned = False
    window_length = 1

    def __init__(self, config: BehaviorCloningConfig) -> None:
        super().__init__(config)
        self.observe = ObservationEncoder(space_from_json(config.observation_space or {}), config.width)
        self.actions = ActionCodec(space_from_json(config.action_space or {}))
        hidden: list[nn.Module] = [nn.ReLU(), nn.Dropout(config.dropout)]
        for _ in range(config.layers - 1):
            hidden += [nn.Linear(config.width, config.width), nn.ReLU(), nn.Dropout(config.dropout)]
        self.hidden: nn.Module = nn.Sequential(*hidden)
        self.predict_action = nn.Linear(config.width, self.actions.size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        return  # torch's own initial weights, which every layer was made with

    def forward(self, observations: TensorTree) -> Tensor:
        """Outputs for actions, [..., A], of observations with leaves [..., *leaf]."""
        features: Tensor = self.hidden(self.observe(observations))
        outputs: Tensor = self.predict_action(features)
        return outputs

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over valid rows of the action's squared error or cross entropy."""
        assert batch.actions is not None
        losses = self.actions.loss(self(batch.observations), batch.actions)
        return (losses * batch.valid).sum() / batch.valid.sum(), {}

    def policy(self, target_returns: Sequence[float] | None = None) -> BehaviorCloningPolicy:
        """The policy; it imitates, so `target_returns` must be None."""
        if target_returns is not None:
            raise ValueError("behavior_cloning: found target_returns, expected none: it acts as the log did")
        return BehaviorCloningPolicy(self)


class BehaviorCloningPolicy:
    """Acts greedily, without memory."""

    def __init__(self, model: BehaviorCloning) -> None:
        self.model = model.eval()

    def initial(self, lanes: int) -> State:
        """Nothing is remembered."""
        return {}

    @torch.no_grad()
    def act(self, state: State, observation: TensorTree, reward: Tensor, first: Tensor) -> tuple[TensorTree, State]:
        """The action of each lane; see `seqwm.core.protocols.Policy`."""
        # nothing in the state tells the caller where the model is
        observation = tree_map(lambda leaf: leaf.to(self.model.device), observation)
        return self.model.actions.decode(self.model(observation)), state


AutoConfig.register(BehaviorCloningConfig.model_type, BehaviorCloningConfig)
AutoModel.register(BehaviorCloningConfig, BehaviorCloning)
