"""What learns to act from whole paths in an ensemble's pessimistic dreams: fit, clone, a step by each round of paths.

The first update fits the ensemble to a finished store and lets the actor do what its data did; that and each later one
imagines a round of paths from the data's first observations and takes a natural gradient step by it
(`seqwm.control.natural_gradient`). Everything random is a function of (seed, step).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seqwm.control.actor_policy import ActorPolicy
from seqwm.control.ensemble_fit import FitOptions, fit_rows, refuse_precision
from seqwm.control.experience import Experience, lived
from seqwm.control.imagined_paths import Doubt, imagine_paths
from seqwm.control.natural_gradient import GaussianActor, clone, natural_step
from seqwm.control.value_baseline import ValueBaseline
from seqwm.core.protocols import Policy
from seqwm.core.random import torch_generator
from seqwm.core.types import Metrics
from seqwm.nn.ensemble_world import EnsembleWorld

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore
    from seqwm.training.options import TrainOptions

_CLONING, _PATHS = 1, 2  # places among the random streams under a seed; the fit has its own


@dataclass(frozen=True, slots=True, kw_only=True)
class PathOptions:
    """How much is imagined, and what the actor begins as.

    Attributes:
        paths: in a round.
        horizon: steps of a path, at most.
        clone_updates: of the policy that it begins with.
    """

    paths: int = 100
    horizon: int = 400
    clone_updates: int = 5000

    def __post_init__(self) -> None:
        for name in ("paths", "horizon", "clone_updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")


class PathLearner:
    """Of `train:`, steps counts, which are rounds, and learning_rate in cloning.

    Args:
        model: a torch module with the two below, and `policy()`.
        world, actor: within it, with fresh weights.
        options: of rounds.
        fitting: of the ensemble.
        store: finished, with rewards and actions.
        train: of the updates.
        seed: of all draws.
        doubt: what a pessimist makes of imagined rewards and ends.
        fitted: told the real rows behind the fit; gives figures to log.

    Raises:
        RecipeError: `train.precision` is set.
    """

    def __init__(
        self,
        model: Any,
        world: EnsembleWorld,
        actor: GaussianActor,
        options: PathOptions,
        fitting: FitOptions,
        store: TrajectoryStore,
        train: TrainOptions,
        seed: int,
        *,
        doubt: Doubt,
        fitted: Callable[[Tensor], Metrics] | None = None,
    ) -> None:
        refuse_precision(train, "model.ensemble.precision says it of the ensemble")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.world, self.actor = model.to(self.device), world, actor
        self.options, self.store, self.seed = options, store, seed
        self._fitting, self._rate, self._doubt, self._behind_fit = fitting, train.learning_rate, doubt, fitted
        rows = [lived(world, episode) for episode in store.episodes()]
        lengths = torch.tensor([len(one) for one in rows], dtype=torch.int64)
        self._rows = torch.cat([torch.zeros(0, device=self.device), *rows])
        self._numbers = torch.arange(len(rows)).repeat_interleave(lengths)
        self._first = torch.cat([torch.zeros(0, device=self.device), *(one[:1, : world.size] for one in rows)])
        self._baseline = ValueBaseline(world.size, actor.options.discount, actor.options.trace).to(self.device)
        self._figures: Metrics = {}  # of the fit and of cloning

    def update(self, step: int) -> Metrics:
        """A round of paths, and a natural gradient step by them."""
        self._figures = self._figures or self._begin(step)
        actor, options = self.actor, self.options
        generator = torch_generator(self.seed, _PATHS, step, device=self.device.type)
        starts = self._first[torch.randint(len(self._first), (options.paths,), generator=generator, device=self.device)]

        def act(observation: Tensor) -> Tensor:
            return actor.draw(observation, generator)

        paths = imagine_paths(self.world, act, starts, options.horizon, generator, self._doubt)
        seen, there = actor.standardised(paths.observation), paths.lived
        advantages, valued = self._baseline.advantages(paths, seen, generator)
        stepped = natural_step(actor, paths.observation[:-1][there], paths.action[there], advantages)
        return {
            "imagined_return": float(paths.reward.sum(0).mean()),
            "imagined_length": float(there.sum(0).float().mean()),
            "ended": float(paths.terminated.any(0).float().mean()),
            "deviation": float(actor.log_std.detach().exp().mean()),
            **valued,
            **stepped,
            **self._figures,
        }

    def _begin(self, step: int) -> Metrics:
        """Fit the ensemble, and clone what the data did."""
        figures = fit_rows(self.world, self._rows, self._numbers, self._fitting, self.seed, step, self.store.path)
        if self._behind_fit is not None:
            figures |= self._behind_fit(self._rows)
        steps = Experience.unpacked(self._rows, self.world.size)
        generator = torch_generator(self.seed, _CLONING, device=self.device.type)
        updates = self.options.clone_updates
        error = clone(self.actor, steps.observation, steps.action, updates, self._rate, generator)
        return figures | {"cloning_error": error}

    def policy(self, explore: bool) -> Policy:
        """The actor as it is now."""
        policy: Policy = ActorPolicy(self.world, self.actor, explore)
        return policy

    def trained(self) -> Any:
        """The model to evaluate and to save."""
        self.model.eval()
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Weights and the baseline's moments; the rows are the store's."""
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
