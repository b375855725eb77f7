"""What an observation is worth, as a network that learns it from paths: the baseline of a policy gradient.

Advantages are generalised ones (Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage
Estimation", 2016): R - v for lambda-returns R. A path that was cut goes on, in R, with its last observation's value.

Shapes, time first: H steps, N paths, R rows that were lived, F features of an observation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seqwm.control.actor_critic import lambda_returns
from seqwm.control.imagined_paths import Paths
from seqwm.core.types import Metrics
from seqwm.nn.perceptron import Perceptron

_LAYERS, _WIDTH, _RATE, _BATCH = 2, 128, 1e-3, 256
_PASSES, _FIRST_PASSES = 2, 10  # over the rows of a round, and of the first one, at which it knows nothing


class ValueBaseline(nn.Module):
    """Values in units of the largest return of the first round.

    Args:
        features: of an observation, F.
        discount, trace: gamma and lambda of returns.
    """

    unit: Tensor

    def __init__(self, features: int, discount: float, trace: float) -> None:
        super().__init__()
        self.discount, self.trace = discount, trace
        self.network = Perceptron(features, 1, _LAYERS, _WIDTH)
        self.register_buffer("unit", torch.tensor(0.0))
        self._optimiser = torch.optim.Adam(self.network.parameters(), _RATE, fused=True)

    @torch.no_grad()
    def advantages(self, paths: Paths, seen: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Of the steps that were lived, in their order, standardised, [R]; then learn their returns.

        Args:
            paths: of one round.
            seen: their observations as the network takes them, [H + 1, N, F].
            generator: of the order in which rows are learned.
        """
        discounts = self.discount * (~paths.terminated).float()
        rows = seen[:-1][paths.lived]
        if not self.unit:
            whole = lambda_returns(paths.reward, discounts, torch.zeros_like(paths.reward), 1.0)[paths.lived]
            self.unit.copy_(whole.abs().max().clamp_min(1e-6))
            self._learn(rows, whole, _FIRST_PASSES, generator)
        values = self.network(seen)[..., 0] * self.unit
        returns = lambda_returns(paths.reward, discounts, values[1:], self.trace)[paths.lived]
        advantages = returns - values[:-1][paths.lived]
        explained = 1 - advantages.square().mean() / returns.var().clamp_min(1e-12)
        self._learn(rows, returns, _PASSES, generator)
        return (advantages - advantages.mean()) / advantages.std().clamp_min(1e-6), {"explained": float(explained)}

    def _learn(self, rows: Tensor, returns: Tensor, passes: int, generator: torch.Generator) -> None:
        for _ in range(passes):
            for place in torch.randperm(len(rows), generator=generator, device=rows.device).split(_BATCH):
                passed = self.network.passed(rows[place])
                wrong = passed[-1] - (returns[place] / self.unit)[:, None]
                self.network.learn(passed, 2 * wrong / len(place), len(place))
                self._optimiser.step()

    def moments(self) -> dict[str, Any]:
        """Adam's, by the name of the parameter."""
        moments = {name: dict(self._optimiser.state[p]) for name, p in self.network.named_parameters()}
        return {name: tensors for name, tensors in moments.items() if tensors}

    def load_moments(self, moments: dict[str, Any]) -> None:
        """The inverse of `moments`."""
        for name, p in self.network.named_parameters():
            if name in moments:
                self._optimiser.state[p] = {part: tensor.to(p.device) for part, tensor in moments[name].items()}
