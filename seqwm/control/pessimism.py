"""What offline methods make of an ensemble's doubt: a price on the reward, or a halt where its members disagree.

Both enter whole paths as `doubt` (`seqwm.control.imagined_paths`), the price branches, too, as
`amend` (`seqwm.control.branched_rollouts`); f_i and sigma_i are the mean and the
standard deviation that elite i predicts.

Shapes: N rows, F features of an observation, A of an action.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqwm.control.branched_rollouts import Amend
from seqwm.control.experience import Experience
from seqwm.core.random import indices
from seqwm.nn.ensemble import Normals
from seqwm.nn.ensemble_world import EnsembleWorld

_LOOKED_AT = 10_000  # rows of the data that a threshold is taken from


@torch.no_grad()
def spread(world: EnsembleWorld, observation: Tensor, action: Tensor) -> Tensor:
    """u(s, a) = max_i |sigma_i(s, a)| of MOPO (Yu et al. 2020), [N], over observation and reward in their own units."""
    return largest_deviation(world, world.ensemble(world.inputs(observation, action)))


def largest_deviation(world: EnsembleWorld, said: Normals) -> Tensor:
    """The same of what every member says, [M, N, O]."""
    deviation = (0.5 * said.log_variance[world.ensemble.elites]).exp() * world.output_std
    largest: Tensor = deviation[..., :-1].norm(dim=-1).amax(0)
    return largest


@torch.no_grad()
def disagreement(world: EnsembleWorld, observation: Tensor, action: Tensor) -> Tensor:
    """d(s, a) = max_ij |f_i(s, a) - f_j(s, a)| of MOReL (Kidambi et al. 2020), [N].

    Of the change of the observation, in standard deviations of the data's changes.
    """
    return apart(world, world.ensemble(world.inputs(observation, action)))


def apart(world: EnsembleWorld, said: Normals) -> Tensor:
    """The same of what every member says, [M, N, O]."""
    means = said.mean[world.ensemble.elites][..., :-2]
    pairs = [(one - other).norm(dim=-1) for i, one in enumerate(means) for other in means[:i]]
    return torch.stack([means.new_zeros(means.shape[1]), *pairs]).amax(0)


def priced(world: EnsembleWorld, price: float) -> Amend:
    """MOPO's reward r - price * u(s, a)."""

    def amend(observation: Tensor, action: Tensor, reward: Tensor, terminated: Tensor) -> tuple[Tensor, Tensor]:
        return reward - price * spread(world, observation, action), terminated

    return amend


@dataclass(frozen=True, slots=True)
class Halt:
    """MOReL's halt where d(s, a) is above a threshold.

    The state behind is absorbing and earns `reward` at every step, the one that leads there included, for what is said
    of an unknown step's reward is as little known. Its value is reward / (1 - discount) in closed form, so the row ends
    with that.

    Attributes:
        threshold: of the disagreement.
        reward: of every step there.
        discount: gamma.
    """

    threshold: float
    reward: float
    discount: float

    def amend(self, distance: Tensor, earned: Tensor, terminated: Tensor) -> tuple[Tensor, Tensor]:
        """Reward [N] and end, bool [N], of steps by their disagreement [N]; what is no number is unknown, too."""
        unknown = ~(distance <= self.threshold)
        return torch.where(unknown, self.reward / (1 - self.discount), earned), terminated | unknown


def known_up_to(world: EnsembleWorld, rows: Tensor, share: float, seed: int) -> float:
    """The disagreement that this share of real rows, [N, 2 F + A + 2], does not exceed.

    The share of ten thousand of them, where there are more.
    """
    if len(rows) > _LOOKED_AT:
        drawn = indices(seed, torch.arange(_LOOKED_AT).numpy().astype("uint64"), len(rows))
        rows = rows[torch.from_numpy(drawn).to(rows.device)]
    steps = Experience.unpacked(rows, world.size)
    return float(disagreement(world, steps.observation, steps.action).quantile(share))
