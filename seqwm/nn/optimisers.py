"""LaProp with adaptive gradient clipping, the optimiser of Dreamer V3.

Ziyin et al., "LaProp: Separating Momentum and Adaptivity in Adam", 2020: gradients are scaled by their running root
mean square first and averaged into a momentum after, both bias-corrected. Each tensor's gradient is clipped before that
to a share of the tensor's own norm (Brock et al., "High-Performance Large-Scale Image Recognition Without
Normalization", 2021; over whole tensors, as danijar/dreamerv3 does).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def clip_to_weights(gradients: list[Tensor], weights: list[Tensor], share: float, floor: float = 1e-3) -> None:
    """Scale each gradient in place so that its norm is at most `share` of its weight's, taken as `floor` at least."""
    norms = torch._foreach_norm(gradients)
    limits = torch._foreach_norm(weights)
    scales = [(share * limit.clamp_min(floor) / norm).clamp_max(1.0) for norm, limit in zip(norms, limits, strict=True)]
    torch._foreach_mul_(gradients, [scale.nan_to_num(nan=1.0) for scale in scales])


class LaProp(torch.optim.Optimizer):
    """Momentum of scaled gradients.

    Args:
        parameters: tensors, or groups of them, as in any torch optimiser.
        lr: the rate.
        betas: decay of the momentum and of the mean square.
        eps: added to the root mean square.
        clip: largest norm of a tensor's gradient as a share of the tensor's norm; None leaves gradients alone.
        weight_decay: decoupled, of all tensors.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 4e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        clip: float | None = 0.3,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "clip": clip, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            for p in weights:
                if not self.state[p]:
                    self.state[p] = {
                        "step": torch.tensor(0.0),
                        "square": torch.zeros_like(p),
                        "mean": torch.zeros_like(p),
                    }
            states = [self.state[p] for p in weights]
            squares, means = [s["square"] for s in states], [s["mean"] for s in states]
            gradients = [p.grad.clone() for p in weights if p.grad is not None]
            if group["clip"] is not None:
                clip_to_weights(gradients, weights, group["clip"])
            momentum, decay = group["betas"]
            torch._foreach_add_([s["step"] for s in states], 1.0)
            count = float(states[0]["step"])
            torch._foreach_mul_(squares, decay)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - decay)
            roots = torch._foreach_sqrt(torch._foreach_div(squares, 1 - decay**count))
            torch._foreach_add_(roots, group["eps"])
            torch._foreach_div_(gradients, roots)
            torch._foreach_lerp_(means, gradients, 1 - momentum)
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, means, alpha=-group["lr"] / (1 - momentum**count))
