"""One running environment's way into a store: steps gather here and become an episode when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from seqwm.core.tree import flatten, unflatten
from seqwm.core.types import Episode, Scalar, Tree

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore


class Lane:
    """Collects the steps of one environment; `reset`, then `step` until the episode ends."""

    def __init__(self, store: TrajectoryStore) -> None:
        self._store = store
        self._observations: dict[str, list[Any]] = {}
        self._actions: dict[str, list[Any]] = {}
        self._rewards: list[float] = []
        self._meta: dict[str, Scalar] = {}

    def __len__(self) -> int:
        """Transitions gathered since the reset."""
        return len(self._rewards)

    def reset(self, observation: Tree, **meta: Scalar) -> None:
        """Begin an episode with its first observation; `meta` is kept with it."""
        self._observations = {path: [np.copy(leaf)] for path, leaf in flatten(observation).items()}
        self._actions, self._rewards, self._meta = {}, [], meta

    def step(self, action: Tree, reward: float, observation: Tree, terminated: bool, truncated: bool) -> None:
        """Add a transition; an end appends the episode to the store. A step that is both is a termination."""
        for path, leaf in flatten(action).items():
            self._actions.setdefault(path, []).append(np.copy(leaf))
        for path, leaf in flatten(observation).items():
            self._observations[path].append(np.copy(leaf))
        self._rewards.append(float(reward))
        if terminated or truncated:
            self._close(terminated=terminated, truncated=truncated and not terminated)

    def cut(self) -> None:
        """End the episode here because we stop looking; an episode without transitions is forgotten."""
        if self._rewards:
            self._close(terminated=False, truncated=True)

    def running(self) -> Episode | None:
        """What was gathered since the reset, as an episode without an end; None where that is nothing."""
        return self._episode(terminated=False, truncated=False) if self._rewards else None

    def resume(self, episode: Episode) -> None:
        """Go on behind what `running` gave."""
        assert episode.rewards is not None
        self.reset({}, **episode.meta)
        self._observations = {path: list(leaf) for path, leaf in flatten(episode.observations).items()}
        self._actions = {path: list(leaf) for path, leaf in flatten(episode.actions).items()}
        self._rewards = episode.rewards.tolist()

    def _close(self, *, terminated: bool, truncated: bool) -> None:
        episode = self._episode(terminated=terminated, truncated=truncated)
        self._observations, self._actions, self._rewards = {}, {}, []
        self._store.append(episode)

    def _episode(self, *, terminated: bool, truncated: bool) -> Episode:
        return Episode(
            observations=unflatten({path: np.stack(leaves) for path, leaves in self._observations.items()}),
            actions=unflatten({path: np.stack(leaves) for path, leaves in self._actions.items()}),
            rewards=np.asarray(self._rewards, np.float32),
            terminated=terminated,
            truncated=truncated,
            meta=self._meta,
        )
