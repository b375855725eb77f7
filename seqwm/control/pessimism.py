"""What offline methods make of an ensemble's doubt: a price on the reward, or a halt where its members disagree.

Both enter imagined branches as `amend` of `seqwm.control.branched_rollouts`; f_i and sigma_i are the mean and the
standard deviation that elite i predicts.

Shapes: N rows, F features of an observation, A of an action.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqwm.control.branched_rollouts import Amend
from seqwm.control.experience import Experience
from seqwm.core.random import indices
from seqwm.nn.ensemble_world import EnsembleWorld

_LOOKED_AT = 10_000  # rows of the data that a threshold is taken from


@torch.no_grad()
def spread(world: EnsembleWorld, observation: Tensor, action: Tensor) -> Tensor:
    """u(s, a) = max_i |sigma_i(s, a)| of MOPO (Yu et al. 2020), [N], over observation and reward in their own units."""
    said = world.ensemble(world.inputs(observation, action))
    deviation = (0.5 * said.log_variance[world.ensemble.elites]).exp() * world.output_std
    largest: Tensor = deviation[..., :-1].norm(dim=-1).amax(0)
    return largest


@torch.no_grad()
def disagreement(world: EnsembleWorld, observation: Tensor, action: Tensor) -> Tensor:
    """d(s, a) = max_ij |f_i(s, a) - f_j(s, a)| of MOReL (Kidambi et al. 2020), [N].

    Of the change of the observation, in standard deviations of the data's changes.
    """
    means = world.ensemble(world.inputs(observation, action)).mean[world.ensemble.elites][..., :-2]
    pairs = [(one - other).norm(dim=-1) for i, one in enumerate(means) for other in means[:i]]
    return torch.stack([means.new_zeros(len(observation)), *pairs]).amax(0)


def priced(world: EnsembleWorld, price: float) -> Amend:
    """MOPO's reward r - price * u(s, a)."""

    def amend(observation: Tensor, action: Tensor, reward: Tensor, terminated: Tensor) -> tuple[Tensor, Tensor]:
        return reward - price * spread(world, observation, action), terminated

    return amend


def halting(world: EnsembleWorld, threshold: Callable[[], float], reward: float, discount: float) -> Amend:
    """MOReL's halt where d(s, a) is above a threshold.

    The state behind is absorbing and earns `reward` at every step, the one that leads there included, for what is said
    of an unknown step's reward is as little known. Its value is reward / (1 - discount) in closed form, so the row ends
    with that.
    """

    def amend(observation: Tensor, action: Tensor, earned: Tensor, terminated: Tensor) -> tuple[Tensor, Tensor]:
        unknown = disagreement(world, observation, action) > threshold()
        return torch.where(unknown, reward / (1 - discount), earned), terminated | unknown

    return amend


def known_up_to(world: EnsembleWorld, rows: Tensor, share: float, seed: int) -> float:
    """The disagreement that this share of real rows, [N, 2 F + A + 2], does not exceed.

    The share of ten thousand of them, where there are more.
    """
    if len(rows) > _LOOKED_AT:
        drawn = indices(seed, torch.arange(_LOOKED_AT).numpy().astype("uint64"), len(rows))
        rows = rows[torch.from_numpy(drawn).to(rows.device)]
    steps = Experience.unpacked(rows, sum(leaf.size for leaf in world.leaves))
    return float(disagreement(world, steps.observation, steps.action).quantile(share))
