"""Soft actor-critic: two critics, an actor that squashes normal draws by tanh, and a temperature that finds itself.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018. With d = 1 where the task ended (not where an
episode was merely cut), a' drawn by the actor in s', and slow copies Q- of the critics,

    y        = r + gamma (1 - d) (min_i Q-_i(s', a') - alpha log pi(a' | s'))
    J(Q)     = mean 1/2 sum_i (Q_i(s, a) - y)^2
    J(pi)    = mean alpha log pi(a | s) - min_i Q_i(s, a),  a drawn by the actor in s
    J(alpha) = mean -log(alpha) (log pi(a | s) + H),        H the entropy that is wanted, -A by default

All three gradients are taken at the weights before the update, as the authors' own code does, so that one backward pass
and one step of one optimiser make an update. No gradient is worked out in vain: none of critics that only say
how good the actor's action is, none of the actor in s'. With `seqwm.nn.perceptron` that is what makes an update cheap;
`tests/benchmarks/sac.py` measures it beside Stable-Baselines3.

Shapes: B transitions, F features of an observation, A entries of an action within [-1, 1].
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import Space
from gymnasium import spaces as gym_spaces
from torch import Tensor, nn

from seqwm.control.experience import Experience
from seqwm.core.errors import SpaceError
from seqwm.core.spaces import leaf_spaces
from seqwm.core.types import Metrics
from seqwm.nn.distributions import TanhNormal
from seqwm.nn.perceptron import Perceptron


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftActorCriticOptions:
    """Sizes and rates; the defaults are the authors'.

    Attributes:
        layers, width: of the actor and of each critic.
        discount: gamma.
        target_rate: share by which the slow critics move after each update.
        entropy: what the temperature holds the actor's entropy at; null takes minus the entries of an action.
        temperature: alpha at first.
    """

    layers: int = 2
    width: int = 256
    discount: float = 0.99
    target_rate: float = 0.005
    entropy: float | None = None
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Losses:
    """Of one batch.

    Attributes:
        total: 0-d, the sum of all three.
        figures: 0-d tensors to log: critic_loss, the value of the actor's actions, its entropy and the temperature.
    """

    total: Tensor
    figures: dict[str, Tensor]


class SoftActorCritic(nn.Module):
    """The networks, their slow copies and the temperature.

    Args:
        options: sizes and rates.
        features: of an observation, F.
        action_space: a bounded Box.

    Raises:
        SpaceError: actions of another kind.
    """

    def __init__(self, options: SoftActorCriticOptions, features: int, action_space: Space[Any]) -> None:
        super().__init__()
        for path, space in leaf_spaces(action_space).items():
            if not isinstance(space, gym_spaces.Box) or not space.is_bounded():
                raise SpaceError(
                    f"action '{path}': found {space}, expected a Box with finite bounds for soft actor-critic; pets "
                    "and dreamer take discrete actions, gymnasium.wrappers.RescaleAction gives a Box bounds"
                )
        self.options = options
        self.entries = gym_spaces.flatdim(action_space)
        sizes = options.layers, options.width
        self.actor = Perceptron(features, 2 * self.entries, *sizes)
        self.critics = nn.ModuleList([Perceptron(features + self.entries, 1, *sizes) for _ in range(2)])
        self.slow = deepcopy(self.critics).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(options.temperature)))
        self.wanted = -float(self.entries) if options.entropy is None else options.entropy

    def actions(self, features: Tensor) -> TanhNormal:
        """The distribution of actions in states [..., F]; log deviations are cut at -20 and 2."""
        mean, log_std = self.actor(features).chunk(2, -1)
        return TanhNormal(mean, log_std.clamp(-20, 2).exp())

    @torch.no_grad()
    def act(self, features: Tensor, generator: torch.Generator | None = None, *, explore: bool = True) -> Tensor:
        """Entries of actions, [..., A]: drawn, or tanh of the mean."""
        actions = self.actions(features)
        if not explore:
            return actions.mode()
        return actions.sample(torch.randn(actions.mean.shape, generator=generator, device=features.device))

    def targets(self, batch: Experience, action: Tensor, log_density: Tensor) -> Tensor:
        """y of the module's equation for a' [B, A] and log pi(a' | s') [B]."""
        value = _values(self.slow, batch.following, action).amin(0)
        value = value - self.log_temperature.exp() * log_density
        return batch.reward + self.options.discount * (1 - batch.terminated) * value

    def losses(self, batch: Experience, noise: Tensor) -> Losses:
        """J(Q) + J(pi) + J(alpha); `noise`, standard normal [2, B, A], draws a in s and a' in s'."""
        actions = self.actions(batch.observation)
        action, log_density = actions.sample(noise[0]), -actions.entropy(noise[0])
        with torch.no_grad():
            later = self.actions(batch.following)
            y = self.targets(batch, later.sample(noise[1]), -later.entropy(noise[1]))
        values = _values(self.critics, batch.observation, batch.action)
        judged = _values(self.critics, batch.observation, action, held=True).amin(0)
        surplus = (log_density + self.wanted).detach().mean()
        losses = {
            "critic": 0.5 * (values - y).square().sum(0).mean(),
            "actor": (self.log_temperature.detach().exp() * log_density - judged).mean(),
            "temperature": -self.log_temperature * surplus,
        }
        return Losses(
            torch.stack([*losses.values()]).sum(),
            {
                "critic_loss": losses["critic"].detach(),
                "value": judged.detach().mean(),
                "entropy": -log_density.detach().mean(),
                "temperature": self.log_temperature.detach().exp(),
            },
        )

    @torch.no_grad()
    def follow(self) -> None:
        """Move the slow critics."""
        torch._foreach_lerp_(list(self.slow.parameters()), list(self.critics.parameters()), self.options.target_rate)


class SoftActorCriticUpdates:
    """Adam on all of a SoftActorCritic's losses at once.

    Args:
        networks: on the device where they stay.
        learning_rate: of the actor, the critics and the temperature.
    """

    def __init__(self, networks: SoftActorCritic, learning_rate: float) -> None:
        self.networks = networks
        self._names = {p: name for name, p in networks.named_parameters() if p.requires_grad}
        self._optimiser = torch.optim.Adam(self._names, learning_rate, fused=True)

    def update(self, batch: Experience, generator: torch.Generator) -> Metrics:
        """One step from a batch from any source: a store's rows, imagined ones, or both."""
        shape = (2, *batch.action.shape)
        losses = self.networks.losses(batch, torch.randn(shape, generator=generator, device=batch.action.device))
        self._optimiser.zero_grad(set_to_none=True)
        losses.total.backward()
        self._optimiser.step()
        self.networks.follow()
        return dict(zip(losses.figures, torch.stack([*losses.figures.values()]).tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Adam's moments by the name of the parameter; the networks are saved by who owns them."""
        moments = {name: dict(self._optimiser.state[p]) for p, name in self._names.items()}
        return {name: tensors for name, tensors in moments.items() if tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for p, name in self._names.items():
            if name in state:
                self._optimiser.state[p] = {part: tensor.to(p.device) for part, tensor in state[name].items()}


def _values(critics: nn.ModuleList, observation: Tensor, action: Tensor, *, held: bool = False) -> Tensor:
    """What each critic says, [2, B]."""
    x = torch.cat([observation, action], 1)
    return torch.stack([critic(x, held=held)[:, 0] for critic in critics])
