"""Short rollouts of a learned world that branch off from real states: the imagined experience of MBPO.

Janner et al., "When to Trust Your Model: Model-Based Policy Optimization", 2019. Model error compounds with every step,
so each branch takes a few from a state that was really there. A branch ends where the world says that the task does, so
no row begins behind an end. What a pessimist adds (a penalty, a halt where the ensemble disagrees) enters with `amend`.

Shapes: N starts, F features of an observation, A of an action, R imagined rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium import Space
from gymnasium import spaces as gym_spaces
from torch import Tensor

from seqwm.control.experience import Experience
from seqwm.core.spaces import leaf_spaces
from seqwm.nn.ensemble_world import EnsembleWorld

Amend: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(observation [N, F], action [N, A], reward [N], terminated bool [N]) to the reward and the end that are kept."""


@dataclass(frozen=True, slots=True)
class Branches:
    """What was imagined.

    Attributes:
        rows: as `Experience.packed`, [R, 2 F + A + 2], step by step, the branches that still run in their order.
        ended: branches that came to an end of the task (or to a halt) before the horizon.
        outside: rows that led out of the observation space, those among them that led to no number, which are left out.
    """

    rows: Tensor
    ended: int
    outside: int


class Bounds:
    """The observation space of an ensemble as a box of features."""

    def __init__(self, space: Space[Any]) -> None:
        low, high = [], []
        for leaf in leaf_spaces(space).values():
            assert isinstance(leaf, gym_spaces.Box), "an ensemble's observations are Boxes"
            low.append(np.ravel(leaf.low))
            high.append(np.ravel(leaf.high))
        self._low, self._high = (torch.from_numpy(np.concatenate(side).astype(np.float32)) for side in (low, high))

    def left(self, observation: Tensor) -> Tensor:
        """Which rows of [N, F] lie outside or are no numbers, bool [N]."""
        low, high = self._low.to(observation.device), self._high.to(observation.device)
        return ~((observation >= low) & (observation <= high) & observation.isfinite()).all(1)


@torch.no_grad()
def branch(
    world: EnsembleWorld,
    act: Callable[[Tensor], Tensor],
    starts: Tensor,
    horizon: int,
    bounds: Bounds,
    generator: torch.Generator,
    *,
    amend: Amend | None = None,
) -> Branches:
    """Up to `horizon` steps from each start.

    Args:
        world: steps them.
        act: features of actions [N, A] in observations [N, F].
        starts: observations that were really there, [N, F].
        horizon: steps of a branch that comes to no end.
        bounds: of observations.
        generator: of the world's draws; `act` has its own.
        amend: what a pessimist makes of rewards and ends.
    """
    state = {"observation": starts, "member": torch.full((len(starts),), -1, device=starts.device)}
    steps: list[Tensor] = []
    ended = outside = 0
    for _ in range(horizon):
        if not len(state["member"]):
            break
        observation = state["observation"]
        action = act(observation)
        after = world.step(state, world.actions.restore(action), generator)
        reward, terminated = after.reward, after.terminated
        if amend is not None:
            reward, terminated = amend(observation, action, reward, terminated)
        following = after.state["observation"]
        rows = Experience(observation, action, reward, following, terminated).packed()
        outside += int(bounds.left(following).sum())
        known = rows.isfinite().all(1)
        ended += int((terminated & known).sum())
        steps.append(rows[known])
        going = known & ~terminated
        state = {name: tensor[going] for name, tensor in after.state.items()}
    width = 2 * starts.shape[1] + world.actions.size + 2
    return Branches(torch.cat([starts.new_zeros(0, width), *steps]), ended, outside)


def branch_horizon(rows: int, horizon: int, growing: tuple[int, int]) -> int:
    """MBPO's schedule: 1 until `growing[0]` environment steps, then linearly up to `horizon` at `growing[1]`.

    `horizon` always, where both are the same.
    """
    first, last = growing
    if first == last:
        return horizon
    share = min(max((rows - first) / (last - first), 0.0), 1.0)
    return int(1 + share * (horizon - 1))
