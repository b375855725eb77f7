"""Experience for a learner while it learns: so many environment steps for each update, into the store that it reads.

What a resumed run needs of the environments, whose own state cannot be saved, is in the checkpoint as logs: it plays
the episodes under way again from their seeds (`seqwm.control.gathering.Gathering`). With the store rewound to the
checkpoint's mark, a run that was killed goes on to the same numbers as one that was not.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from seqwm.control.gathering import Gathering, Transitions
from seqwm.control.lanes import Lanes
from seqwm.core.errors import RolloutError
from seqwm.core.protocols import Learner
from seqwm.core.random import key
from seqwm.core.types import Metrics
from seqwm.data.store import Mark, TrajectoryStore

RECENT_EPISODES = 10
"""`collected_return` is the mean over so many episodes."""

_EPISODES, _DRAWS = 2, 3  # places of the environments' seeds and of exploration among the random streams under a seed


@runtime_checkable
class Observer(Protocol):
    """A learner that wants every transition as it happens, not only whole episodes through the store."""

    def observe(self, transitions: Transitions) -> None:
        """What just happened in all lanes."""
        ...


class Collector:
    """The `collect` of the training loop: a learner's exploring policy in environments.

    A round is one step of all lanes; before it torch's default generator is seeded by its number, so that exploration
    may draw from it. Metrics: environment_steps (transitions so far, with those the store began with), episodes, and
    collected_return, the mean return of the last ten that ended.

    Args:
        learner: whose policy collects.
        vector: the environments.
        store: grows; episodes reach it when they end.
        updates_per_step: updates for each transition.
        seed: names the environments' seeds and the draws.
    """

    def __init__(
        self, learner: Learner, vector: Lanes, store: TrajectoryStore, updates_per_step: float, seed: int
    ) -> None:
        self._learner, self._vector, self._store = learner, vector, store
        self._updates_per_step, self._seed = updates_per_step, seed
        self._gathering = Gathering(vector, store, key(seed, _EPISODES))
        self._rounds = 0
        self._before = store.rows
        self.step = 0

    def __call__(self, step: int) -> Metrics:
        """Collect what update number `step` is to find.

        Raises:
            RolloutError: as `Gathering.round`. Where an environment failed, its episode is cut, so that `state_dict`
                is a point from which the run goes on with the next one.
        """
        self.step = step
        due = math.ceil(round((step + 1) / self._updates_per_step, 6) / self._vector.num_envs)
        while self._rounds < due:
            torch.default_generator.manual_seed(key(self._seed, _DRAWS, self._rounds) >> 1)
            if torch.cuda.is_available():
                torch.cuda.manual_seed(key(self._seed, _DRAWS, self._rounds) >> 1)
            try:
                transitions = self._gathering.round(self._learner.policy(explore=True))
            except RolloutError as error:
                if error.lane is not None:
                    self._gathering.cut(error.lane)
                raise
            self._rounds += 1
            if isinstance(self._learner, Observer):
                self._learner.observe(transitions)
        return self.metrics()

    def metrics(self) -> Metrics:
        """How much there is, and how well it went lately."""
        steps = self._before + self._rounds * self._vector.num_envs
        recent = float(np.mean(self._store.returns[-RECENT_EPISODES:]))
        return {"environment_steps": steps, "episodes": len(self._store), "collected_return": recent}

    def state_dict(self) -> dict[str, Any]:
        """The store's mark, the rounds made, and the episodes under way."""
        return {
            "mark": dataclasses.asdict(self._store.mark()),
            "rounds": self._rounds,
            "before": self._before,
            "gathering": self._gathering.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> list[int]:
        """Go on from what `state_dict` gave; `store` is already rewound.

        Returns the lanes whose environments did not do again what they had done, as `Gathering.load_state_dict`.
        """
        self._rounds, self._before = state["rounds"], state["before"]
        return self._gathering.load_state_dict(state["gathering"])


def rewind(store: TrajectoryStore, state: dict[str, Any]) -> None:
    """Bring a store back to where it was when a collector gave `state`."""
    store.rewind(Mark(**state["mark"]))
