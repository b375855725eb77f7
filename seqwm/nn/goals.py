"""What a planner goes for in place of a reward that says nothing until it is too late; written by hand.

A reward of one until the pole falls is the same for every plan that does not fall, wherever it takes the cart, and by
the time a plan sees the end of the rail no action keeps the pole up. PETS was published with costs of its own, not with
the rewards of environments; those say how close a step comes to the goal.

Shapes: N steps; observations before and behind them [N, F]; features of actions [N, A], within -1 and 1 in bounded
Boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqwm.nn.by_hand import written
from seqwm.nn.rewards import RewardRule


def upright_in_the_middle(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """Chua et al.'s for their cart pole, which is as long: exp(-d^2 / l^2) of the tip's distance d, less 0.01 u^2."""
    length, force = 0.6, 3.0
    cart, angle = following[:, 0], following[:, 1]
    across, below = cart + length * torch.sin(angle), length * (1 - torch.cos(angle))
    closeness = torch.exp(-(across.square() + below.square()) / length**2)
    return closeness - 0.01 * (force * action[:, 0]).square()


_GOALS: dict[str, RewardRule] = {"InvertedPendulum-v5": upright_in_the_middle}


def goal(environment: str | None) -> RewardRule:
    """That of an environment by its Gymnasium id.

    Raises:
        RecipeError: there is none.
    """
    return written(_GOALS, environment, "model.plans_for", "goal", "reward")
