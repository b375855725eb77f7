"""The natural policy gradient: a step of one size in what the policy does, whichever way its weights say it.

Kakade, "A Natural Policy Gradient", 2001, as Rajeswaran et al., "Towards Generalization and Simplicity in Continuous
Control", 2017, make it: actions are normal around a network of the observation, with deviations that are learned and
the same everywhere. With the gradient g of the mean of log pi(a | s) A over N steps and Fisher's matrix F,

    w <- w + sqrt(2 delta / g^T F^-1 g) F^-1 g,

so that the policy before and the one behind are about `delta` nats apart. F^-1 g comes of conjugate gradients, for
which F is only ever multiplied: with J the derivative of the mean by its weights, F = E[J^T diag(1 / sigma^2) J] for
these and 2 for each log sigma. `clone` is where it begins from logs: the likeliest such policy.

Shapes: R rows, F features of an observation, A entries of an action.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import Space
from gymnasium import spaces as gym_spaces
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

from seqwm.core.errors import SpaceError
from seqwm.core.spaces import leaf_spaces
from seqwm.core.types import Metrics
from seqwm.nn.perceptron import Perceptron

_DAMPING, _PRODUCTS = 1e-4, 10  # of conjugate gradients
_FISHER_ROWS = 5000  # that F is of, where there are more
_CLONED = 256  # rows of an update of cloning


@dataclass(frozen=True, slots=True, kw_only=True)
class NaturalGradientOptions:
    """Sizes and rates.

    Attributes:
        layers, width: of the actor.
        discount: gamma.
        trace: lambda of returns.
        step_size: delta, in nats.
        deviation: of actions, at least, as a share of half their range.
    """

    layers: int = 2
    width: int = 32
    discount: float = 0.999
    trace: float = 0.97
    step_size: float = 0.01
    deviation: float = 0.1

    def __post_init__(self) -> None:
        for name in ("layers", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected a share below 1")
        for name in ("step_size", "deviation"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected a positive number")


class GaussianActor(nn.Module):
    """Actions normal around a network of standardised observations.

    Args:
        options: sizes.
        features: of an observation, F.
        action_space: a bounded Box; its actions are within [-1, 1] here.

    Raises:
        SpaceError: actions of another kind.
    """

    observation_mean: Tensor
    observation_std: Tensor

    def __init__(self, options: NaturalGradientOptions, features: int, action_space: Space[Any]) -> None:
        super().__init__()
        for path, space in leaf_spaces(action_space).items():
            if not isinstance(space, gym_spaces.Box) or not space.is_bounded():
                raise SpaceError(
                    f"action '{path}': found {space}, expected a Box with finite bounds for normal draws; pets and "
                    "dreamer take discrete actions, gymnasium.wrappers.RescaleAction gives a Box bounds"
                )
        self.options = options
        entries = gym_spaces.flatdim(action_space)
        self.centre = Perceptron(features, entries, options.layers, options.width)
        self.log_std = nn.Parameter(torch.zeros(entries))
        self.register_buffer("observation_mean", torch.zeros(features))
        self.register_buffer("observation_std", torch.ones(features))

    def standardised(self, features: Tensor) -> Tensor:
        """Observations [..., F] as the network takes them."""
        return (features - self.observation_mean) / self.observation_std

    def forward(self, features: Tensor) -> Tensor:
        """Means [..., A] in observations [..., F]."""
        means: Tensor = self.centre(self.standardised(features))
        return means

    @torch.no_grad()
    def draw(self, features: Tensor, generator: torch.Generator | None) -> Tensor:
        """Actions [..., A] in observations [..., F]; they may be out of bounds."""
        means = self(features)
        noise = torch.randn(means.shape, generator=generator, device=means.device)
        drawn: Tensor = means + self.log_std.exp() * noise
        return drawn

    @torch.no_grad()
    def act(self, features: Tensor, generator: torch.Generator | None = None, *, explore: bool = True) -> Tensor:
        """Actions within their bounds, [..., A]: drawn, or the mean."""
        action: Tensor = self.draw(features, generator) if explore else self(features)
        return action.clamp(-1, 1)

    def log_density(self, features: Tensor, action: Tensor) -> Tensor:
        """log pi(a | s) of rows [R, F] and [R, A], [R]."""
        away: Tensor = (action - self(features)) * torch.exp(-self.log_std)
        return (-0.5 * away.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


@torch.no_grad()
def clone(
    actor: GaussianActor, observation: Tensor, action: Tensor, updates: int, rate: float, generator: torch.Generator
) -> float:
    """Let an actor do what was done: the likeliest mean by Adam, then the deviation that is left around it.

    Args:
        actor: is changed; standardises observations by these from then on.
        observation, action: rows, [R, F] and [R, A].
        updates: of the mean, 256 rows each.
        rate: of Adam.
        generator: of the draws.

    Returns:
        The mean squared error of the mean.
    """
    actor.observation_mean.copy_(observation.mean(0))
    actor.observation_std.copy_(observation.std(0, correction=0).clamp_min(1e-6))
    seen, network = actor.standardised(observation), actor.centre
    optimiser = torch.optim.Adam(network.parameters(), rate, fused=True)
    for _ in range(updates):
        place = torch.randint(len(seen), (_CLONED,), generator=generator, device=seen.device)
        passed = network.passed(seen[place])
        network.learn(passed, 2 * (passed[-1] - action[place]) / _CLONED, _CLONED)
        optimiser.step()
    squares = (network(seen) - action).square().mean(0)
    actor.log_std.copy_(0.5 * squares.log()).clamp_(min=math.log(actor.options.deviation))
    return float(squares.mean())


@torch.enable_grad()
def natural_step(actor: GaussianActor, observation: Tensor, action: Tensor, advantage: Tensor) -> Metrics:
    """One step of the module's equation for rows [R, F], [R, A] and [R]; deviations stay above their least.

    Returns:
        The slope, sqrt(g^T F^-1 g): gain for a nat of the square root.
    """
    weights = list(actor.parameters())
    gain = (actor.log_density(observation, action) * advantage).mean()
    g = torch.cat([part.flatten() for part in torch.autograd.grad(gain, weights)])
    every = max(1, len(observation) // _FISHER_ROWS)
    way = conjugate_gradients(fisher(actor, observation[::every]), g)
    squared = max(float(g @ way), 1e-20)
    with torch.no_grad():
        moved = (math.sqrt(2 * actor.options.step_size / squared) * way).split([p.numel() for p in weights])
        for p, part in zip(weights, moved, strict=True):
            p.add_(part.view_as(p))
        actor.log_std.clamp_(min=math.log(actor.options.deviation))
    return {"slope": math.sqrt(squared)}


def fisher(actor: GaussianActor, observation: Tensor) -> Callable[[Tensor], Tensor]:
    """What multiplies a vector of all weights, in the order of `parameters()`, by F + 1e-4 of rows [R, F]."""
    weights = {name: p.detach() for name, p in actor.named_parameters()}
    precision = torch.exp(-2 * weights["log_std"]) / len(observation)

    def means(changed: dict[str, Tensor]) -> Tensor:
        made: Tensor = functional_call(actor, changed, (observation,))
        return made

    back: Any = vjp(means, weights)[1]

    def multiply(v: Tensor) -> Tensor:
        parts = v.split([p.numel() for p in weights.values()])
        way = {name: part.view_as(weights[name]) for name, part in zip(weights, parts, strict=True)}
        moved: Any = jvp(means, (weights,), (way,))[1]
        (product,) = back(moved * precision)
        product["log_std"] = 2 * way["log_std"]
        return torch.cat([product[name].flatten() for name in weights]) + _DAMPING * v

    return multiply


def conjugate_gradients(multiply: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
    """About x with M x = b, for a symmetric positive M that `multiply` multiplies by, after ten products."""
    x, left, way = torch.zeros_like(b), b.clone(), b.clone()
    square = float(left @ left)
    for _ in range(_PRODUCTS):
        if square < 1e-20:
            break
        moved = multiply(way)
        far = square / float(way @ moved)
        x, left = x + far * way, left - far * moved
        now = float(left @ left)
        way, square = left + now / square * way, now
    return x
