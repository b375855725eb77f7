"""Rewards written by hand: functions of a step, as the environments work them out; PETS was published with such ones.

A rule that contradicts the rewards of the data is refused, since environments of one name differ in their versions.

Shapes: N steps; observations before and behind them [N, F]; features of actions [N, A], within -1 and 1 in bounded
Boxes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from seqwm.core.errors import DataError
from seqwm.data.problems import Problem
from seqwm.nn.by_hand import written
from seqwm.nn.ends import CONTRADICTED, inverted_pendulum

RewardRule: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(observation [N, F], action [N, A], following [N, F]) to rewards [N]."""

_TOLERANCE = 1e-3


def always_one(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """One for every step, the last included."""
    return observation.new_ones(len(observation))


def balanced(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """One unless the pole has fallen."""
    return 1.0 - inverted_pendulum(following).to(following.dtype)


def swung_up(observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """Minus the squared angle, a tenth of the squared speed and a thousandth of the squared torque (at most 2)."""
    angle, speed, torque = torch.atan2(observation[:, 1], observation[:, 0]), observation[:, 2], 2 * action[:, 0]
    return -(angle.square() + 0.1 * speed.square() + 0.001 * torque.square())


_RULES: dict[str, RewardRule] = {
    "CartPole-v1": always_one,
    "InvertedPendulum-v5": balanced,
    "Pendulum-v1": swung_up,
}


def reward_rule(environment: str | None) -> RewardRule:
    """The rule of an environment by its Gymnasium id.

    Raises:
        RecipeError: there is none.
    """
    return written(_RULES, environment, "model.reward", "reward", "learned")


def contradicted(rule: RewardRule, observation: Tensor, action: Tensor, following: Tensor, reward: Tensor) -> float:
    """The share of steps whose reward, [N], is off a rule's by more than a thousandth of one and of itself.

    Raises:
        DataError: it is above `CONTRADICTED`.
    """
    off = (rule(observation, action, following) - reward).abs()
    wrong = off > _TOLERANCE * (1 + reward.abs())
    share = float(wrong.double().mean()) if len(wrong) else 0.0
    if share > CONTRADICTED:
        found = f"{100 * share:.1f} % of {len(wrong)} rows contradict it, by up to {float(off.max()):.3g}"
        mend = "learn the reward (model.reward: learned), or name the environment that the data is of"
        raise DataError([Problem("reward-contradicted", found, f"at most {100 * CONTRADICTED:g} %", mend)])
    return share
