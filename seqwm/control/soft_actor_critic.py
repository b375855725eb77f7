"""Soft actor-critic: two critics, an actor that squashes normal draws by tanh, and a temperature that finds itself.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018. With d = 1 where the task ended (not where an
episode was merely cut), a' drawn by the actor in s', and slow copies Q- of the critics,

    y        = r + gamma (1 - d) (min_i Q-_i(s', a') - alpha log pi(a' | s'))
    J(Q)     = mean 1/2 sum_i (Q_i(s, a) - y)^2
    J(pi)    = mean alpha log pi(a | s) - min_i Q_i(s, a),  a drawn by the actor in s
    J(alpha) = mean -log(alpha) (log pi(a | s) + H),        H the entropy that is wanted, -A by default

All three gradients are taken at the weights before the update, as the authors' own code does, and written out: with
n the noise that draws a = tanh(x), x = mu + sigma n,

    log pi = sum -n^2 / 2 - log sigma - log(1 - a^2) + const
    d log pi / dx = 2 a          d log pi / d log sigma = 2 a sigma n - 1

so that an update is some hundred and fifty small operations in place of autograd's thousand, which is what one costs at
these sizes. Nothing is worked out in vain: no gradient of critics that only say how good the actor's action is, none of
the actor in s'. `tests/benchmarks/sac.py` measures it beside Stable-Baselines3.

Shapes: B transitions, F features of an observation, A entries of an action within [-1, 1].
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

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

_LOG_STD = (-20.0, 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftActorCriticOptions:
    """Sizes and rates; the defaults are the authors'.

    Attributes:
        layers, width: of the actor and of each critic.
        discount: gamma.
        target_rate: share by which the slow critics move after each update.
        entropy: what the temperature holds the actor's entropy at; null takes minus the entries of an action.
        temperature: alpha at first.
        precision: of products between hidden layers; 'bf16' takes half their time where the processor has instructions
            for it.
    """

    layers: int = 2
    width: int = 256
    discount: float = 0.99
    target_rate: float = 0.005
    entropy: float | None = None
    temperature: float = 1.0
    precision: Literal["float32", "bf16"] = "float32"


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
        sizes = options.layers, options.width, torch.bfloat16 if options.precision == "bf16" else None
        self.actor = Perceptron(features, 2 * self.entries, *sizes)
        self.critics = nn.ModuleList([Perceptron(features + self.entries, 1, *sizes) for _ in range(2)])
        self.slow = deepcopy(self.critics).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(options.temperature)))
        self.wanted = -float(self.entries) if options.entropy is None else options.entropy

    def actions(self, features: Tensor) -> TanhNormal:
        """The distribution of actions in states [..., F]; log deviations are cut at -20 and 2."""
        mean, log_std = self.actor(features).chunk(2, -1)
        return TanhNormal(mean, log_std.clamp(*_LOG_STD).exp())

    @torch.no_grad()
    def act(self, features: Tensor, generator: torch.Generator | None = None, *, explore: bool = True) -> Tensor:
        """Entries of actions, [..., A]: drawn, or tanh of the mean."""
        actions = self.actions(features)
        if not explore:
            return actions.mode()
        return actions.sample(torch.randn(actions.mean.shape, generator=generator, device=features.device))

    @torch.no_grad()
    def targets(self, batch: Experience, action: Tensor, log_density: Tensor) -> Tensor:
        """y of the module's equation for a' [B, A] and log pi(a' | s') [B]."""
        x = torch.cat([batch.following, action], 1)
        value = torch.minimum(*(critic(x)[:, 0] for critic in self.slow))
        value = value - self.log_temperature.exp() * log_density
        return batch.reward + self.options.discount * (1 - batch.terminated) * value

    @torch.no_grad()
    def learn(self, batch: Experience, noise: Tensor) -> dict[str, Tensor]:
        """Set the gradients of J(Q), J(pi) and J(alpha), each of its own weights.

        Args:
            batch: transitions.
            noise: standard normal [2, B, A]; draws a in s and a' in s'.

        Returns:
            0-d tensors to log: critic_loss, the value of the actor's actions, its entropy and the temperature.
        """
        count, temperature = len(batch.reward), self.log_temperature.exp()
        passed = self.actor.passed(torch.cat([batch.observation, batch.following]))
        mean, raw = passed[-1].chunk(2, 1)
        log_std = raw.clamp(*_LOG_STD)
        actions = TanhNormal(mean, log_std.exp())
        drawn, log_density = actions.sample(noise.flatten(0, 1)), -actions.entropy(noise.flatten(0, 1))
        y = self.targets(batch, drawn[count:], log_density[count:])
        action, log_density = drawn[:count], log_density[:count]

        x = [torch.cat([batch.observation, which], 1) for which in (batch.action, action)]
        critics: list[Any] = [*self.critics]
        seen = [critic.passed(torch.cat(x)) for critic in critics]
        values = torch.stack([one[-1][:, 0] for one in seen])
        errors, judged = values[:, :count] - y, values[:, count:]
        first = (judged[0] <= judged[1]).to(values.dtype)  # whose word counts
        gradients = torch.cat([errors / count, torch.stack([first, 1 - first])], 1)[..., None]
        slopes = [critic.learn(*one, count) for critic, *one in zip(critics, seen, gradients, strict=True)]
        slope = (slopes[0] + slopes[1])[:, batch.observation.shape[1] :]  # of the lower value in the actor's action

        of_x = (2 * temperature * action - slope * (1 - action.square())) / count
        of_log_std = of_x * actions.std[:count] * noise[0] - temperature / count
        of_log_std = of_log_std * (raw == log_std)[:count]  # none where it was cut
        self.actor.learn([part[:count] for part in passed], torch.cat([of_x, of_log_std], 1), count)
        self.log_temperature.grad = -(log_density.mean() + self.wanted)
        return {
            "critic_loss": 0.5 * errors.square().sum(0).mean(),
            "value": judged.amin(0).mean(),
            "entropy": -log_density.mean(),
            "temperature": temperature,
        }

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
        figures = self.networks.learn(batch, torch.randn(shape, generator=generator, device=batch.action.device))
        self._optimiser.step()
        self.networks.follow()
        return dict(zip(figures, torch.stack([*figures.values()]).tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Adam's moments by the name of the parameter; the networks are saved by who owns them."""
        moments = {name: dict(self._optimiser.state[p]) for p, name in self._names.items()}
        return {name: tensors for name, tensors in moments.items() if tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for p, name in self._names.items():
            if name in state:
                self._optimiser.state[p] = {part: tensor.to(p.device) for part, tensor in state[name].items()}
