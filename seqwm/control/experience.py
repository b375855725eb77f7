"""Transitions in memory, one a row of one tensor, real and imagined ones alike: what learns from single steps draws.

Shapes: N transitions, F features of an observation, A of an action. A row holds 2 F + A + 2 numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqwm.core.tree import tree_map
from seqwm.core.types import Episode, Tree
from seqwm.data.windows import for_torch
from seqwm.nn.ensemble_world import EnsembleWorld


@dataclass(frozen=True, slots=True)
class Experience:
    """N transitions.

    Attributes:
        observation, following: before and after the action, float32 [N, F].
        action: its features, float32 [N, A]; between -1 and 1 where the space is bounded.
        reward: float32 [N].
        terminated: float32 [N], 1 where the task ended with this action; a mere cut is 0.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    following: Tensor
    terminated: Tensor

    def packed(self) -> Tensor:
        """As rows, [N, 2 F + A + 2]."""
        ends = torch.stack([self.reward, self.terminated.float()], 1)
        return torch.cat([self.observation, self.following, self.action, ends], 1)

    @classmethod
    def unpacked(cls, rows: Tensor, features: int) -> Experience:
        """Views of rows [N, 2 F + A + 2] with F `features` of an observation."""
        observation, following, action, ends = rows.split([features, features, rows.shape[1] - 2 * features - 2, 2], 1)
        return cls(observation, action, ends[:, 0], following, ends[:, 1])


class ExperienceTable:
    """Rows in order of their coming, in a tensor that grows by doubling.

    Args:
        features: of an observation, F.
        actions: features of an action, A.
        device: where rows are kept.
    """

    def __init__(self, features: int, actions: int, device: torch.device | str = "cpu") -> None:
        self.features = features
        self._buffer = torch.zeros(0, 2 * features + actions + 2, device=device)
        self._used = 0

    def __len__(self) -> int:
        return self._used

    @property
    def rows(self) -> Tensor:
        """All of them, [N, 2 F + A + 2], as a view."""
        return self._buffer[: self._used]

    def append(self, rows: Tensor) -> None:
        """Add rows, [N, 2 F + A + 2]."""
        needed = self._used + len(rows)
        if needed > len(self._buffer):
            grown = self._buffer.new_zeros(max(needed, 2 * len(self._buffer)), self._buffer.shape[1])
            grown[: self._used] = self.rows
            self._buffer = grown
        self._buffer[self._used : needed] = rows
        self._used = needed

    def keep(self, count: int) -> None:
        """Forget all but the last `count` rows."""
        kept = self.rows[max(len(self) - count, 0) :].clone()
        self._used = len(kept)
        self._buffer[: self._used] = kept

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` rows, uniformly and with replacement."""
        place = torch.randint(self._used, (count,), generator=generator, device=self._buffer.device)
        return self._buffer.index_select(0, place)


def draw_mixed(
    real: ExperienceTable, imagined: ExperienceTable, count: int, real_share: float, generator: torch.Generator
) -> Experience:
    """`count` transitions, round(count * real_share) of them real; all are, as long as none was imagined."""
    whole = count if not len(imagined) else round(count * real_share)
    parts = [table.draw(n, generator) for table, n in ((real, whole), (imagined, count - whole)) if n]
    return Experience.unpacked(torch.cat(parts), real.features)


def lived(world: EnsembleWorld, episode: Episode) -> Tensor:
    """The rows of an episode, as many as it has observations behind an action."""
    assert episode.rewards is not None
    count = len(episode) if episode.final_observation else len(episode) - 1
    ended = np.zeros(len(episode), np.bool_)
    ended[-1:] = episode.terminated
    before = tree_map(lambda leaf: leaf[:count], episode.observations)
    after = tree_map(lambda leaf: leaf[1 : count + 1], episode.observations)
    actions = tree_map(lambda leaf: leaf[:count], episode.actions)
    return as_rows(world, before, actions, episode.rewards[:count], after, ended[:count])


def as_rows(
    world: EnsembleWorld,
    observations: Tree,
    actions: Tree,
    rewards: NDArray[np.floating],
    following: Tree,
    terminated: NDArray[np.bool_],
) -> Tensor:
    """Rows, [N, 2 F + A + 2], of transitions in an environment's own form, leaves [N, ...]."""
    before, acted, after = (
        tree_map(lambda leaf: torch.from_numpy(for_torch(leaf)).to(world.input_mean.device), tree)
        for tree in (observations, actions, following)
    )
    features = world.features(before)
    reward, ended = (torch.from_numpy(part.astype(np.float32)).to(features.device) for part in (rewards, terminated))
    return Experience(features, world.actions.features(acted), reward, world.features(after), ended).packed()
