"""What learns to act from a learned world's branches: fit an ensemble, branch off from real states, soft actor-critic.

One update is one of soft actor-critic, on a batch of real and of imagined transitions. Before it, the ensemble is
fitted again if enough has been lived since, and new branches are made if it is their time. The imagined rows are a
second store, a table in memory: they are no episodes and are thrown away after a few rounds, a `TrajectoryStore` takes
35 microseconds to check and keep each and 110 to draw a batch of 256, the table 0.05 and 10.
Everything random is a function of (seed, step).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from seqwm.control.actor_policy import ActorPolicy
from seqwm.control.branched_rollouts import Amend, Bounds, branch, branch_horizon
from seqwm.control.ensemble_fit import FitOptions, fit_rows, refuse_precision
from seqwm.control.experience import ExperienceTable, as_rows, draw_mixed, lived
from seqwm.control.soft_actor_critic import SoftActorCritic, SoftActorCriticUpdates
from seqwm.core.protocols import Policy
from seqwm.core.random import torch_generator
from seqwm.core.types import Metrics
from seqwm.nn.ensemble_world import EnsembleWorld

if TYPE_CHECKING:
    from seqwm.control.gathering import Transitions
    from seqwm.data.store import TrajectoryStore
    from seqwm.training.options import TrainOptions

_UPDATES, _BRANCHES = 1, 2  # places among the random streams under a seed; fits have their own


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchOptions:
    """When to fit and when to branch; the defaults are MBPO's for Hopper, whose steps have 20 updates each.

    Attributes:
        refit_every: transitions lived between two fits of the ensemble.
        every: updates between two rounds of branches.
        starts: branches of a round.
        horizon: steps of a branch.
        growing: transitions lived at which the horizon leaves 1 and at which it is reached; the same for no growth.
        kept: rounds whose rows are learned from.
        real_share: of a batch; with 1 nothing is fitted or imagined, which is soft actor-critic alone.
    """

    refit_every: int = 250
    every: int = 5000
    starts: int = 100_000
    horizon: int = 15
    growing: tuple[int, int] = (20_000, 150_000)
    kept: int = 4
    real_share: float = 0.05

    def __post_init__(self) -> None:
        for name in ("refit_every", "every", "starts", "horizon", "kept"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if not 0 <= self.real_share <= 1:
            raise ValueError(f"real_share: found {self.real_share}, expected a share between 0 and 1")
        if not 0 <= self.growing[0] <= self.growing[1]:
            raise ValueError(f"growing: found {list(self.growing)}, expected two numbers of transitions in order")


class BranchedLearner:
    """Ensemble, branches and soft actor-critic, learned together from a store that is finished or growing.

    Of `train:`, steps, batch_size and learning_rate count; they are those of soft actor-critic.

    Args:
        model: a torch module with the two below, and `policy()`.
        world, agent: within it, with fresh weights.
        options: when to fit and to branch.
        fitting: of the ensemble.
        store: with rewards and actions; what comes later is told by `observe`.
        train: of the updates.
        seed: of all draws.
        amend: what a pessimist makes of imagined rewards and ends (`seqwm.control.branched_rollouts`).

    Raises:
        RecipeError: `train.precision` is set.
    """

    def __init__(
        self,
        model: Any,
        world: EnsembleWorld,
        agent: SoftActorCritic,
        options: BranchOptions,
        fitting: FitOptions,
        store: TrajectoryStore,
        train: TrainOptions,
        seed: int,
        *,
        amend: Amend | None = None,
    ) -> None:
        refuse_precision(train, "model.ensemble.precision and model.agent.precision say it of each")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.world, self.agent = model.to(self.device), world, agent
        self.options, self.store, self.seed = options, store, seed
        self._fitting, self._batch_size, self._amend = fitting, train.batch_size, amend
        self._updates = SoftActorCriticUpdates(agent, train.learning_rate)
        self._bounds = Bounds(store.spaces.observation)
        self.real, self.imagined = (ExperienceTable(world.size, world.actions.size, self.device) for _ in range(2))
        self._episodes: list[int] = []  # the number of the episode that a real row is of, in the order they began in
        self._under_way: list[int] = []  # of each lane
        self._begun = len(store)
        for number, episode in enumerate(store.episodes()):
            self._remember(lived(world, episode), [number])
        self._rounds: list[int] = []  # imagined rows of each round that is kept
        self._fitted: int | None = None  # rows lived at the last fit
        self._figures: Metrics = {}

    def observe(self, transitions: Transitions) -> None:
        """Take what just happened, so that branches and updates need not wait for the end of an episode."""
        t = transitions
        self._under_way = self._under_way or [-1] * len(t.first)
        for lane in np.flatnonzero(t.first).tolist():
            self._under_way[lane] = self._begun
            self._begun += 1
        rows = as_rows(self.world, t.observations, t.actions, t.rewards, t.following, t.terminated)
        self._remember(rows, self._under_way)

    def _remember(self, rows: Tensor, episodes: list[int]) -> None:
        """Real rows, each of its own episode or all of one."""
        self.real.append(rows)
        self._episodes += episodes if len(episodes) > 1 else episodes * len(rows)

    def update(self, step: int) -> Metrics:
        """One update of soft actor-critic, behind a fit and a round of branches where they are due."""
        if self.options.real_share < 1:
            if self._fitted is None or len(self.real) >= self._fitted + self.options.refit_every:
                lived_in = torch.tensor(self._episodes)
                fitted = fit_rows(self.world, self.real.rows, lived_in, self._fitting, self.seed, step, self.store.path)
                self._figures |= fitted
                self._fitted = len(self.real)
            if step % self.options.every == 0:
                self._branch(step)
        generator = torch_generator(self.seed, _UPDATES, step, device=self.device.type)
        batch = draw_mixed(self.real, self.imagined, self._batch_size, self.options.real_share, generator)
        return self._updates.update(batch, generator) | self._figures

    def _branch(self, step: int) -> None:
        """A round of branches from real states; the oldest round's rows go."""
        options = self.options
        generator = torch_generator(self.seed, _BRANCHES, step, device=self.device.type)
        starts = self.real.draw(options.starts, generator)[:, : self.real.features]
        horizon = branch_horizon(len(self.real), options.horizon, options.growing)

        def act(observation: Tensor) -> Tensor:
            return self.agent.act(observation, generator)

        made = branch(self.world, act, starts, horizon, self._bounds, generator, amend=self._amend)
        self.imagined.append(made.rows)
        self._rounds = [*self._rounds, len(made.rows)][-options.kept :]
        self.imagined.keep(sum(self._rounds))
        self._figures |= {
            "horizon": horizon,
            "imagined_rows": len(self.imagined),
            "ended": made.ended / options.starts,
            "outside": made.outside / max(len(made.rows), 1),
        }

    def policy(self, explore: bool) -> Policy:
        """The actor as it is now."""
        policy: Policy = ActorPolicy(self.world, self.agent, explore) if explore else self.trained().policy()
        return policy

    def trained(self) -> Any:
        """The model to evaluate and to save."""
        self.model.eval()
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Weights, moments, and every row: real ones, too, for episodes under way are not in the store."""
        return {
            "model": self.model.state_dict(),
            "moments": self._updates.state_dict(),
            "real": self.real.rows,
            "episodes": {"of_rows": torch.tensor(self._episodes), "under_way": self._under_way, "begun": self._begun},
            "imagined": self.imagined.rows,
            "rounds": self._rounds,
            "fitted": self._fitted,
            "figures": self._figures,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self._updates.load_state_dict(state.get("moments", {}))
        for table, name in ((self.real, "real"), (self.imagined, "imagined")):
            table.keep(0)
            table.append(state[name].to(self.device))
        episodes = state["episodes"]
        self._episodes = episodes["of_rows"].tolist()
        self._under_way, self._begun = episodes["under_way"], episodes["begun"]
        self._rounds, self._fitted, self._figures = state["rounds"], state["fitted"], state.get("figures", {})
