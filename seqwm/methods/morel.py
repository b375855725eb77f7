"""MOReL: learn offline in a pessimistic world, which halts for good where the ensemble does not know.

Kidambi et al., "MOReL: Model-Based Offline Reinforcement Learning", 2020.

**What is notable.** Steps about whose outcome members disagree more than about those of the data lead to a halt state
with a low reward for ever (`seqwm.control.pessimism`). In that world, a policy that begins as a clone of the data's
plays whole paths from the data's first observations, each in the hands of one member, and takes a natural gradient step
by each round of them (`seqwm.control.natural_gradient`), as the authors do. An update is such a round; the first one
fits the ensemble and clones besides. Of `train:`, steps counts, and learning_rate in cloning.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from seqwm.control.branched_learner import ActorPolicy
from seqwm.control.branched_model import BranchedModel, described, world_of
from seqwm.control.ensemble_fit import FitOptions, fit_rows, refuse_precision
from seqwm.control.experience import Experience, lived
from seqwm.control.imagined_paths import imagine_paths
from seqwm.control.natural_gradient import GaussianActor, NaturalGradientOptions, clone, natural_step
from seqwm.control.pessimism import Halt, known_up_to
from seqwm.control.value_baseline import ValueBaseline
from seqwm.core.protocols import Policy
from seqwm.core.random import torch_generator
from seqwm.nn.ensemble import EnsembleOptions

if TYPE_CHECKING:
    from seqwm.core.types import Metrics
    from seqwm.data.store import TrajectoryStore
    from seqwm.training.options import TrainOptions

_CLONING, _PATHS = 1, 2  # places among the random streams under a seed; the fit has its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe.

    Attributes:
        known: share of the data's steps that count as known; the threshold is this quantile of their disagreement, and
            with 1 the largest, the mildest threshold that the paper considers.
        halt_reward: of every step in the halt state; null takes the least reward in the data.
        paths: in a round.
        horizon: steps of a path, at most.
        clone_updates: of the policy that it begins with.
        ensemble: sizes (`seqwm.nn.ensemble`), the paper's by default.
        fit: of the ensemble (`seqwm.control.ensemble_fit`).
        agent: of the natural policy gradient (`seqwm.control.natural_gradient`).
        ends: whether the end of the task is 'learned', or written 'by_hand' (`seqwm.nn.ends`), as in the paper.
    """

    known: float = 1.0
    halt_reward: float | None = None
    paths: int = 100
    horizon: int = 500
    clone_updates: int = 5000
    ensemble: EnsembleOptions = field(default_factory=lambda: EnsembleOptions(members=4, elites=4, layers=2, width=512))
    fit: FitOptions = field(default_factory=FitOptions)
    agent: NaturalGradientOptions = field(default_factory=NaturalGradientOptions)
    ends: Literal["learned", "by_hand"] = "learned"

    def __post_init__(self) -> None:
        if not 0 < self.known <= 1:
            raise ValueError(f"known: found {self.known}, expected a share above 0, up to 1")
        for name in ("paths", "horizon", "clone_updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")


def build(options: Options, store: TrajectoryStore) -> Morel:
    """A model with fresh weights for the data of a store.

    Raises:
        SpaceError: the store has no actions or no rewards, its actions are discrete, or its observations no numbers.
    """
    return Morel(MorelConfig(**described(options, store)))


def learner(options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> MorelLearner:
    """What learns a fresh model from a store."""
    return MorelLearner(build(options, store), options, store, train, seed)


class MorelConfig(PreTrainedConfig):
    """`EnsembleOptions` and `NaturalGradientOptions` as JSON, the spaces, and what the model was trained on."""

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
    agent: GaussianActor
    threshold: torch.Tensor

    def __init__(self, config: MorelConfig) -> None:
        super().__init__(config)
        self.world, space = world_of(config, "TS-inf")
        self.agent = GaussianActor(NaturalGradientOptions(**(config.agent or {})), self.world.size, space)
        self.register_buffer("threshold", torch.tensor(torch.inf))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        return  # the initial weights that the networks were made with


class MorelLearner:
    """Fits and clones once, then goes a step by each round of imagined paths."""

    def __init__(self, model: Morel, options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> None:
        refuse_precision(train, "model.ensemble.precision says it of the ensemble")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Morel = model.to(self.device)
        self.options, self.store, self.train, self.seed = options, store, train, seed
        rows = [lived(model.world, episode) for episode in store.episodes()]
        counts = torch.tensor([len(one) for one in rows], dtype=torch.int64)
        self._rows = torch.cat([torch.zeros(0, device=self.device), *rows])
        self._numbers = torch.arange(len(rows)).repeat_interleave(counts)
        self._first = torch.cat([one[:1, : model.world.size] for one in rows])
        rewards = Experience.unpacked(self._rows, model.world.size).reward
        halt = float(rewards.min()) if options.halt_reward is None else options.halt_reward
        discount = options.agent.discount
        self._halt = Halt(torch.inf, halt, discount)  # until the threshold is known
        self._baseline = ValueBaseline(model.world.size, discount, options.agent.trace).to(self.device)
        self._figures: Metrics = {}  # of the fit and of cloning

    def update(self, step: int) -> Metrics:
        """A round of paths, and a natural gradient step by them."""
        self._figures = self._figures or self._begin(step)
        actor, options = self.model.agent, self.options
        generator = torch_generator(self.seed, _PATHS, step, device=self.device.type)
        drawn = torch.randint(len(self._first), (options.paths,), generator=generator, device=self.device)

        def act(observation: Tensor) -> Tensor:
            return actor.draw(observation, generator)

        starts = self._first[drawn]
        halt = dataclasses.replace(self._halt, threshold=float(self.model.threshold))
        paths = imagine_paths(self.model.world, act, starts, options.horizon, generator, halt)
        seen, lived_in = actor.standardised(paths.observation), paths.lived
        advantages, valued = self._baseline.advantages(paths, seen, generator)
        stepped = natural_step(actor, paths.observation[:-1][lived_in], paths.action[lived_in], advantages)
        return {
            "imagined_return": float(paths.reward.sum(0).mean()),
            "imagined_length": float(lived_in.sum(0).float().mean()),
            "ended": float(paths.terminated.any(0).float().mean()),
            "deviation": float(actor.log_std.detach().exp().mean()),
            **valued,
            **stepped,
            **self._figures,
        }

    def _begin(self, step: int) -> Metrics:
        """Fit the ensemble, measure how far it is known, and clone what the data did."""
        world = self.model.world
        figures = fit_rows(world, self._rows, self._numbers, self.options.fit, self.seed, step, self.store.path)
        self.model.threshold.fill_(known_up_to(world, self._rows, self.options.known, self.seed))
        steps = Experience.unpacked(self._rows, world.size)
        generator = torch_generator(self.seed, _CLONING, device=self.device.type)
        updates, rate = self.options.clone_updates, self.train.learning_rate
        error = clone(self.model.agent, steps.observation, steps.action, updates, rate, generator)
        return {**figures, "threshold": float(self.model.threshold), "cloning_error": error}

    def policy(self, explore: bool) -> Policy:
        """The actor as it is now."""
        policy: Policy = ActorPolicy(self.model.world, self.model.agent, explore)
        return policy

    def trained(self) -> Morel:
        """The model to evaluate and to save."""
        self.model.eval()
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Weights and Adam's moments of the baseline; the rows are the store's."""
        return {
            "model": self.model.state_dict(),
            "baseline": self._baseline.state_dict(),
            "moments": self._baseline.moments(),
            "figures": self._figures,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self._baseline.load_state_dict(state["baseline"])
        self._baseline.load_moments(state["moments"])
        self._figures = state["figures"]


AutoConfig.register(MorelConfig.model_type, MorelConfig)
AutoModel.register(MorelConfig, Morel)
