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

    def _close(self, *, terminated: bool, truncated: bool) -> None:
        episode = Episode(
            observations=unflatten({path: np.stack(leaves) for path, leaves in self._observations.items()}),
            actions=unflatten({path: np.stack(leaves) for path, leaves in self._actions.items()}),
            rewards=np.asarray(self._rewards, np.float32),
            terminated=terminated,
            truncated=truncated,
            meta=self._meta,
        )
        self._store.append(episode)
        self._observations, self._actions, self._rewards = {}, {}, []
