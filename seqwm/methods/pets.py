"""PETS: an ensemble that knows what it does not know, and a plan through its particles at every step.

Chua et al., "Deep Reinforcement Learning in a Handful of Trials using Probabilistic Dynamics Models", 2018.

**What is notable.** The world is an ensemble (`seqwm.nn.ensemble_world`), the planner any world's (`seqwm.control.cem`)
with several particles for each candidate, whose returns are averaged. One update is one whole fit
(`seqwm.control.ensemble_fit`), so `collect.updates_per_step` says how seldom: 0.005 fits once in 200 steps. Of
`train:`, steps, batch_size, learning_rate and weight_decay count. Reward and end are learned, or written by hand. What
is planned for is the reward, or, as in the paper, a goal that was written by hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from seqwm.control.cem import CEMOptions, CEMPolicy
from seqwm.control.ensemble_fit import FitOptions, fit, refuse_precision
from seqwm.core.errors import SpaceError
from seqwm.core.protocols import Step
from seqwm.core.spaces import space_from_json
from seqwm.core.types import Batch, Metrics, Spaces, State, TensorTree
from seqwm.nn.ends import end_rule
from seqwm.nn.ensemble import EnsembleOptions
from seqwm.nn.ensemble_world import EnsembleWorld, Propagation
from seqwm.nn.goals import goal
from seqwm.nn.logged_config import LoggedConfig
from seqwm.nn.rewards import RewardRule, reward_rule

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore
    from seqwm.training.options import TrainOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe.

    Attributes:
        members, elites, layers, width: of the ensemble (`seqwm.nn.ensemble`).
        propagation: a particle's member is drawn at every step (TS-1) or once (TS-inf).
        patience, most_steps: of each fit (`seqwm.control.ensemble_fit`).
        reward: whether it is 'learned', or written 'by_hand' (`seqwm.nn.rewards`).
        ends: the same of the end of the task (`seqwm.nn.ends`).
        plans_for: the greatest 'reward', or a 'goal' in its place (`seqwm.nn.goals`), as in the paper; the world's
            reward is what it was.
        planner: the search (`seqwm.control.cem`).
    """

    members: int = 5
    elites: int = 5
    layers: int = 3
    width: int = 200
    propagation: Propagation = "TS-inf"
    patience: int = 5
    most_steps: int = 5000
    reward: Literal["learned", "by_hand"] = "learned"
    ends: Literal["learned", "by_hand"] = "learned"
    plans_for: Literal["reward", "goal"] = "reward"
    planner: CEMOptions = field(
        default_factory=lambda: CEMOptions(
            horizon=25, candidates=400, elites=40, iterations=5, momentum=0.1, particles=20, sample=True
        )
    )


def build(options: Options, store: TrajectoryStore) -> Pets:
    """A model with fresh weights for the data of a store.

    Raises:
        SpaceError: the store has no actions or no rewards, or the spaces are not for an ensemble.
    """
    if store.spaces.action is None or not store.has_rewards:
        raise SpaceError(f"{store.path}: found data without actions or rewards, expected both: pets plans for reward")
    sizes = {name: getattr(options, name) for name in ("members", "elites", "layers", "width")}
    return Pets(
        PetsConfig(
            **store.described(),
            ensemble=dataclasses.asdict(EnsembleOptions(**sizes)),
            propagation=options.propagation,
            reward=options.reward,
            ends=options.ends,
            plans_for=options.plans_for,
            planner=dataclasses.asdict(options.planner),
        )
    )


def learner(options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> PetsLearner:
    """What fits a fresh model to a store, finished or growing."""
    return PetsLearner(build(options, store), options, store, train, seed)


class PetsConfig(LoggedConfig):
    """`EnsembleOptions` and `CEMOptions` as JSON, the spaces, and what the model was trained on."""

    model_type = "seqwm_pets"

    ensemble: dict[str, Any] | None = None
    propagation: Propagation = "TS-inf"
    reward: Literal["learned", "by_hand"] = "learned"
    ends: Literal["learned", "by_hand"] = "learned"
    plans_for: Literal["reward", "goal"] = "reward"
    planner: dict[str, Any] | None = None


class Pets(PreTrainedModel):
    """A world: `encode`, `step` and `decode`; `policy` plans in it."""

    config_class = PetsConfig
    return_conditioned = False
    window_length = 1

    def __init__(self, config: PetsConfig) -> None:
        super().__init__(config)
        observation, action = (
            space_from_json(space or {}) for space in (config.observation_space, config.action_space)
        )
        self.spaces = Spaces(observation, action)
        sizes = EnsembleOptions(**(config.ensemble or {}))
        ends = end_rule(config.environment) if config.ends == "by_hand" else None
        rewards = reward_rule(config.environment) if config.reward == "by_hand" else None
        self.world = EnsembleWorld(sizes, config.propagation, observation, action, ends, rewards)
        self.goal = goal(config.environment) if config.plans_for == "goal" else None
        self.planner = CEMOptions(**(config.planner or {}))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        return  # the initial weights that the ensemble was made with

    def encode(self, context: Batch) -> State:
        """The last valid row's observation."""
        return self.world.encode(context)

    def step(self, state: State, action: TensorTree, generator: torch.Generator | None) -> Step:
        """The observation behind an action, its reward, and whether the task ended."""
        return self.world.step(state, action, generator)

    def decode(self, state: State) -> TensorTree:
        """The observation of a state."""
        return self.world.decode(state)

    def policy(self, target_returns: Sequence[float] | None = None) -> CEMPolicy:
        """What plans at every step; `target_returns` must be None."""
        if target_returns is not None:
            raise ValueError("pets: found target_returns, expected none: it looks for the largest return")
        world = self if self.goal is None else _Aimed(self, self.goal)
        return CEMPolicy(world, self.spaces, self.window_length, self.planner)


class _Aimed:
    """The same world, in which a step earns what it is worth for a goal."""

    def __init__(self, model: Pets, goal: RewardRule) -> None:
        self._model, self._goal = model, goal
        self.device = model.device
        self.encode, self.decode = model.encode, model.decode

    def step(self, state: State, action: TensorTree, generator: torch.Generator | None) -> Step:
        step = self._model.step(state, action, generator)
        features = self._model.world.actions.features(action)
        earned = self._goal(state["observation"], features, step.state["observation"])
        return dataclasses.replace(step, reward=earned)


class PetsLearner:
    """Fits the ensemble anew at every update at which the store has grown."""

    def __init__(self, model: Pets, options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> None:
        refuse_precision(train, "leave it out: the ensemble computes in float32")
        self.model: Pets = model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.store, self.seed = store, seed
        self._options = FitOptions(
            patience=options.patience,
            most_steps=options.most_steps,
            learning_rate=train.learning_rate,
            weight_decay=train.weight_decay,
            batch_size=train.batch_size,
        )
        self._fitted: dict[str, Any] = {"episodes": -1, "metrics": {}}

    def update(self, step: int) -> Metrics:
        """One fit, or the figures of the last one where nothing has come since."""
        if len(self.store) > self._fitted["episodes"]:
            metrics = fit(self.model.world, self.store, self._options, self.seed, step)
            self._fitted = {"episodes": len(self.store), "metrics": metrics}
        return dict(self._fitted["metrics"])

    def policy(self, explore: bool) -> CEMPolicy:
        """The planner, which explores by what its particles draw alone."""
        return self.trained().policy()

    def trained(self) -> Pets:
        """The model to evaluate and to save."""
        self.model.eval()
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Weights and buffers, and what they were fitted to."""
        return {"model": self.model.state_dict(), "fitted": self._fitted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self._fitted = state["fitted"]


AutoConfig.register(PetsConfig.model_type, PetsConfig)
AutoModel.register(PetsConfig, Pets)
