"""The gap between dream and reality: what a policy is expected to get in a world model, and what it gets.

The same policy plays episodes in both, each from its first step, and what it has got after h steps is compared for
every h. A model that is exploited shows here: its dream promises more than reality gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from seqwm.control.gathering import Gathering
from seqwm.control.lanes import Lanes
from seqwm.core.protocols import Policy
from seqwm.core.types import Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.evaluation.statistics import bootstrap_interval


@dataclass(frozen=True, slots=True)
class Side:
    """What was got after 1 to H steps, in a dream or in reality.

    Attributes:
        mean, low, high: of the undiscounted return so far, with the 95 % interval over episodes, [H].
        going: share of the episodes that have not ended after each step, [H].
        returns: of the whole episodes, up to H steps each, [N].
    """

    mean: list[float]
    low: list[float]
    high: list[float]
    going: list[float]
    returns: list[float]


@dataclass(frozen=True, slots=True)
class DreamGap:
    """A policy in a dream and in reality.

    Attributes:
        dream, reality: the two sides.
        parts_at: the first horizon at which the intervals do not meet; None where they always do.
    """

    dream: Side
    reality: Side
    parts_at: int | None

    def __str__(self) -> str:
        """A table, one line a horizon."""
        lines = [f"{'horizon':>8}{'dream':>12} {'95 % interval':>22}{'reality':>12} {'95 % interval':>22}"]
        for h in shown_horizons(len(self.dream.mean)):
            cells = [
                f"{side.mean[h - 1]:>12.4g} {f'[{side.low[h - 1]:.4g}, {side.high[h - 1]:.4g}]':>22}"
                for side in (self.dream, self.reality)
            ]
            lines.append(f"{h:>8}{''.join(cells)}")
        parted = "they never part" if self.parts_at is None else f"they part at {self.parts_at}"
        return "\n".join([*lines, f"{len(self.dream.returns)} episodes each; {parted}"])


def dream_gap(dream: Lanes, reality: Lanes, policy: Policy, horizon: int, *, seed: int = 0) -> DreamGap:
    """One episode of a policy in every lane of a dream and of reality.

    Args:
        dream, reality: environments side by side, as many in both.
        policy: acts in both.
        horizon: steps that are compared, H.
        seed: names the episodes.
    """
    named = (("dream", dream), ("reality", reality))
    sides = [side(rewards_of(lanes, policy, horizon, seed, name)) for name, lanes in named]
    apart = [h + 1 for h in range(horizon) if sides[0].low[h] > sides[1].high[h] or sides[1].low[h] > sides[0].high[h]]
    return DreamGap(sides[0], sides[1], apart[0] if apart else None)


def rewards_of(
    lanes: Lanes, policy: Policy, horizon: int, seed: int, name: str | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Rewards [N, H] of one episode in every lane, zero behind its end, and whether it goes on after each step.

    With a name a bar of that name is shown.
    """
    store = TrajectoryStore.create(None, Spaces(lanes.single_observation_space, lanes.single_action_space))
    gathering = Gathering(lanes, store, seed)
    rewards, going = np.zeros((lanes.num_envs, horizon)), np.zeros((lanes.num_envs, horizon), np.bool_)
    alive = np.ones(lanes.num_envs, np.bool_)
    for step in tqdm(range(horizon), desc=name, unit="step", disable=True if name is None else None):
        happened = gathering.round(policy)
        rewards[:, step] = happened.rewards * alive
        alive &= ~(happened.terminated | happened.truncated)
        going[:, step] = alive
        if not alive.any():
            break
    return rewards, going


def side(played: tuple[NDArray[np.float64], NDArray[np.bool_]]) -> Side:
    """What `rewards_of` found, summed up to every horizon."""
    rewards, going = played
    sums = rewards.cumsum(1)
    means = sums.mean(0).tolist()
    intervals = [bootstrap_interval(sums[:, h]) or (mean, mean) for h, mean in enumerate(means)]
    return Side(
        means,
        [low for low, _ in intervals],
        [high for _, high in intervals],
        going.mean(0).tolist(),
        sums[:, -1].tolist(),
    )


def shown_horizons(horizon: int) -> Sequence[int]:
    """1, 2, 5, 10, 20, 50 ... and the last."""
    steps = (base * 10**power for power in range(6) for base in (1, 2, 5))
    return [*(h for h in steps if h < horizon), horizon]
