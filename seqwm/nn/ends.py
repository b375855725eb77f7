"""Ends of tasks written by hand: functions of the observation behind an action, as the environments decide them.

What ends a task is often a line of their code and hard to learn from a few ends. A rule that contradicts the flags of
the data is refused, since environments of one name differ in their versions and options.

Shapes: N observations of F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from seqwm.core.errors import DataError
from seqwm.data.problems import Problem
from seqwm.nn.by_hand import written

if TYPE_CHECKING:
    from torch import Tensor

EndRule: TypeAlias = "Callable[[Tensor], Tensor]"
"""Observations [N, F] to whether the task has ended there, bool [N]."""

CONTRADICTED = 0.01
"""Share of the data's rows that a rule may contradict."""


def never(observation: Tensor) -> Tensor:
    """A task that goes on until it is cut."""
    return (observation != observation).any(1)


def cart_pole(observation: Tensor) -> Tensor:
    """The cart is more than 2.4 from the middle, or the pole leans by more than 12 degrees."""
    return ~((observation[:, 0].abs() <= 2.4) & (observation[:, 2].abs() <= 12 * math.pi / 180))


def inverted_pendulum(observation: Tensor) -> Tensor:
    """The pole leans by more than 0.2 radians."""
    return ~(observation[:, 1].abs() <= 0.2)


def hopper(observation: Tensor) -> Tensor:
    """The torso is below 0.7 or leans by 0.2 radians, or anything but its height is 100 or more."""
    height, angle, rest = observation[:, 0], observation[:, 1], observation[:, 1:]
    return ~((height > 0.7) & (angle.abs() < 0.2) & (rest.abs() < 100).all(1))


def walker(observation: Tensor) -> Tensor:
    """The torso is not between 0.8 and 2, or leans by a radian."""
    height, angle = observation[:, 0], observation[:, 1]
    return ~((height > 0.8) & (height < 2.0) & (angle.abs() < 1.0))


_RULES: dict[str, EndRule] = {
    "CartPole-v1": cart_pole,
    "HalfCheetah-v5": never,
    "Hopper-v5": hopper,
    "InvertedPendulum-v5": inverted_pendulum,
    "Pendulum-v1": never,
    "Walker2d-v5": walker,
}


def end_rule(environment: str | None) -> EndRule:
    """The rule of an environment by its Gymnasium id.

    Raises:
        RecipeError: there is none.
    """
    return written(_RULES, environment, "model.ends", "end", "learned")


def contradicted(rule: EndRule, following: Tensor, terminated: Tensor) -> float:
    """The share of rows whose flag, bool [N], a rule contradicts at the observation behind them, [N, F].

    Raises:
        DataError: it is above `CONTRADICTED`.
    """
    wrong = rule(following) != terminated
    share = float(wrong.double().mean()) if len(wrong) else 0.0
    if share > CONTRADICTED:
        missed = int((wrong & terminated).sum())
        found = f"{100 * share:.1f} % of {len(wrong)} rows contradict it: {missed} ends missed, "
        found += f"{int(wrong.sum()) - missed} seen where the task went on"
        mend = "learn the end (model.ends: learned), or name the environment that the data is of"
        expected = f"at most {100 * CONTRADICTED:g} %"
        raise DataError([Problem("ends-contradicted", found, expected, mend)])
    return share
