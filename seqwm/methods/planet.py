"""PlaNet: learn a world in latent space, and plan in it at every step; nothing learns to act.

Hafner et al., "Learning Latent Dynamics for Planning from Pixels", 2019. Settings from google-research/planet: a state
of 200 deterministic and 30 normal numbers, 3 free nats, Adam at 1e-3, plans of 12 actions from 1000 candidates in 10
iterations with 100 elites, each made anew.

**What is notable.** The world is Dreamer V1's (`seqwm.nn.latent_world`), the planner any world's (`seqwm.control.cem`);
what is left is the policy: it follows the world's state through what it sees, and plans from there with the likeliest
dynamics. Other than in the paper, the world predicts the end of episodes, and a plan earns nothing behind one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from seqwm.control.cem import CEMOptions, plan
from seqwm.control.latent_learner import LatentLearner, LatentLearning
from seqwm.control.latent_model import LatentModel, world_of
from seqwm.core.errors import SpaceError
from seqwm.core.random import key
from seqwm.core.tree import tree_map
from seqwm.core.types import State, TensorTree
from seqwm.nn.latent_world import WorldOptions
from seqwm.nn.logged_config import LoggedConfig
from seqwm.nn.rssm import RSSMOptions

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore
    from seqwm.training.options import TrainOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe.

    Attributes:
        sequence_length: rows in a window.
        deterministic, stochastic, hidden: of the state-space model (`seqwm.nn.rssm`), whose random part is normal.
        layers, width: of encoder and decoder.
        depth: channels of the first convolution on images.
        free_nats: of the KL, off its mean.
        exploration: deviation of noise on continuous actions, and share of random discrete ones, while it learns.
        planner: the search (`seqwm.control.cem`).
    """

    sequence_length: int = 50
    deterministic: int = 200
    stochastic: int = 30
    hidden: int = 200
    layers: int = 3
    width: int = 300
    depth: int = 32
    free_nats: float = 3.0
    exploration: float = 0.3
    planner: CEMOptions = field(
        default_factory=lambda: CEMOptions(horizon=12, candidates=1000, elites=100, iterations=10)
    )

    def __post_init__(self) -> None:
        for name in ("sequence_length", "deterministic", "stochastic", "hidden", "layers", "width", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if not 0 <= self.exploration <= 1:
            raise ValueError(f"exploration: found {self.exploration}, expected a number from 0 to 1")


def build(options: Options, store: TrajectoryStore) -> Planet:
    """A model with fresh weights for the data of a store.

    Raises:
        SpaceError: the store has no actions, without which there are no dynamics.
    """
    if store.spaces.action is None:
        raise SpaceError(
            f"{store.path}: the data has no actions; planet needs them: what a world does is the answer to actions"
        )
    world = WorldOptions(
        rssm=RSSMOptions(
            deterministic=options.deterministic,
            stochastic=options.stochastic,
            classes=0,
            hidden=options.hidden,
            recurrence="gru",
            prior_layers=1,
            norm="none",
            activation="elu",
        ),
        layers=options.layers,
        width=options.width,
        head_layers=2,
        depth=options.depth,
        units="standardised",
        rewards="squared" if store.has_rewards else "none",
        discount=1.0,
        reconstruction_scale=0.5,
        representation_scale=1.0,
        free_nats=options.free_nats,
        free_of="batch",
    )
    config = PlanetConfig(
        **store.described(),
        sequence_length=options.sequence_length,
        exploration=options.exploration,
        world=dataclasses.asdict(world),
        planner=dataclasses.asdict(options.planner),
    )
    model = Planet(config)
    statistics = store.statistics
    model.world.observations.fit(statistics.observation_mean, statistics.observation_std)
    return model


def learner(options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> LatentLearner:
    """What trains a fresh model on a store, finished or growing."""
    model = build(options, store)
    learning = LatentLearning(sequence_length=options.sequence_length)
    return LatentLearner(model, model.world, None, learning, store, train, seed)


class PlanetConfig(LoggedConfig):
    """`WorldOptions` and `CEMOptions` as JSON, the spaces, and what the model was trained on."""

    model_type = "seqwm_planet"

    sequence_length: int = 50
    exploration: float = 0.3
    world: dict[str, Any] | None = None
    planner: dict[str, Any] | None = None


class Planet(LatentModel, PreTrainedModel):
    """A world: `encode`, `step` and `decode`; `policy` plans in it."""

    config_class = PlanetConfig

    def __init__(self, config: PlanetConfig) -> None:
        super().__init__(config)
        self.world, self.action_space = world_of(config)
        self.planner = CEMOptions(**(config.planner or {}))
        self.post_init()

    def policy(self, target_returns: Sequence[float] | None = None) -> PlanetPolicy:
        """What plans without exploring; `target_returns` must be None.

        Raises:
            SpaceError: the model was trained on data without rewards, so there is nothing to plan for.
        """
        if target_returns is not None:
            raise ValueError("planet: found target_returns, expected none: it looks for the largest return")
        return PlanetPolicy(self, explore=False)

    def explorer(self) -> PlanetPolicy:
        """What acts while it learns."""
        return PlanetPolicy(self, explore=True)


class PlanetPolicy:
    """Plans at every step; draws from torch's default generator where it explores.

    State: deterministic, stochastic, the features of the last action, float32 [B, A], and the step int64 [B].
    """

    def __init__(self, model: Planet, *, explore: bool) -> None:
        if model.world.options.rewards == "none":
            raise SpaceError("planet: the data had no rewards, so there is a world and no policy; log rewards for one")
        self.model, self.explore = model, explore

    def initial(self, lanes: int) -> State:
        """Zeros, as before any row."""
        world, device = self.model.world, self.model.device
        return {
            **world.rssm.initial(lanes, device),
            "action": torch.zeros(lanes, world.actions.size, device=device),
            "step": torch.zeros(lanes, dtype=torch.int64, device=device),
        }

    @torch.no_grad()
    def act(self, state: State, observation: TensorTree, reward: Tensor, first: Tensor) -> tuple[TensorTree, State]:
        """Actions and the states they were planned in; see `seqwm.core.protocols.Policy`."""
        model, world = self.model, self.model.world
        observation = tree_map(lambda leaf: leaf.to(model.device), observation)
        first = first.to(model.device)
        embedded = world.observations.encode(observation)
        following = world.rssm.update(state, embedded, state["action"], first, None)
        step = torch.where(first, 0, state["step"] + 1)
        if self.explore:
            keys = torch.randint(2**62, (len(first),))
        else:
            keys = torch.tensor([key(0, number) >> 1 for number in step.tolist()])
        found = plan(model, following, model.action_space, model.planner, keys)
        features = world.actions.features(tree_map(lambda leaf: leaf[:, 0], found.actions))
        if self.explore:
            features = world.actions.stray(features, float(model.config.exploration))
        action = world.actions.restore(features)
        return action, {**following, "action": world.actions.features(action), "step": step}


AutoConfig.register(PlanetConfig.model_type, PlanetConfig)
AutoModel.register(PlanetConfig, Planet)
