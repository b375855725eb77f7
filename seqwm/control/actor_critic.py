"""An actor and a critic that learn in imagination, one algorithm with the differences of the Dreamers as named options.

From each start state the world is stepped H times with the actor's actions; reward, discount and value are then read
off the imagined states at once. With what arrives at state t+1, the lambda-return of state t is

    R_t = r_{t+1} + d_{t+1} ((1 - lambda) v_{t+1} + lambda R_{t+1}),   R_H = v_H.

The actor follows its gradient through the dynamics (V1), or REINFORCE with the critic as baseline (V3), or a mix of
both (V2). Every state counts by the chance of getting there, d_0 d_1 ... d_t; d_0 is that of the start itself, so what
is imagined behind the end of an episode counts nothing (danijar/dreamerv3).

V3 adds: returns divided by the range between their 5th and 95th percentile, if that is above 1; a critic drawn towards
a slow average of itself, with targets from the fast one; and the critic's loss on the logged rows, whose returns
bootstrap from the imagined ones. V2 takes its targets from a copy of the critic that is renewed now and then.

Shapes, time first: H imagined steps, N start states, F features of a state, A features of an action.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from gymnasium import Space
from gymnasium import spaces as gym_spaces
from torch import Tensor, nn

from seqwm.core.errors import SpaceError
from seqwm.core.spaces import leaf_spaces
from seqwm.core.types import State
from seqwm.data.arrivals import Arrivals
from seqwm.nn.dense import MLP, Activation, Norm, in_pieces
from seqwm.nn.distributions import (
    BoundedNormal,
    Categories,
    TanhNormal,
    mixed,
    two_hot_bins,
    two_hot_loss,
    two_hot_mean,
)
from seqwm.nn.latent_world import LatentWorld, held_still
from seqwm.nn.leaves import Leaf
from seqwm.nn.rms_layers import product_type, raised

Part: TypeAlias = Categories | BoundedNormal | TanhNormal


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorCriticOptions:
    """Sizes, kinds and scales.

    Attributes:
        layers, width: of both networks.
        norm, activation: of their layers.
        horizon: imagined steps, H.
        return_lambda: how much of the imagined future counts beside the critic's word on it.
        entropy: its weight in the actor's loss.
        dynamics_share: of the gradient through the dynamics in the actor's; the rest is REINFORCE.
        normalise_returns: divide advantages by the range of returns.
        values: the critic's head, 'two_hot' or 'squared' error.
        slow: what a slow copy of the critic is for: its 'targets', a 'regulariser', or 'none'.
        slow_rate, slow_every: the copy moves by this share, every so many updates.
        continuous: the distribution of continuous actions.
        uniform: share of the uniform distribution in discrete ones.
    """

    layers: int = 3
    width: int = 64
    norm: Norm = "rms"
    activation: Activation = "silu"
    horizon: int = 15
    return_lambda: float = 0.95
    entropy: float = 3e-4
    dynamics_share: float = 0.0
    normalise_returns: bool = True
    values: Literal["two_hot", "squared"] = "two_hot"
    slow: Literal["regulariser", "targets", "none"] = "regulariser"
    slow_rate: float = 0.02
    slow_every: int = 1
    continuous: Literal["bounded_normal", "tanh_normal"] = "bounded_normal"
    uniform: float = 0.01


@dataclass(frozen=True, slots=True)
class Actions:
    """A distribution of whole actions: independent parts, one for each category and each Box."""

    parts: tuple[Part, ...]
    sizes: tuple[int, ...]

    def noise(self, generator: torch.Generator | None) -> Tensor:
        """What sampling needs, [..., M]: a uniform number for each category, a normal one for each entry of a Box."""
        drawn = []
        for part in self.parts:
            if isinstance(part, Categories):
                like = part.log_probabilities
                drawn.append(torch.rand((*like.shape[:-1], 1), generator=generator, device=like.device))
            else:
                drawn.append(torch.randn(part.mean.shape, generator=generator, device=part.mean.device))
        return torch.cat(drawn, -1)

    def sample(self, noise: Tensor) -> Tensor:
        """Features of an action, [..., A]; gradients pass."""
        return torch.cat([part.sample(own) for part, own in zip(self.parts, self._split(noise), strict=True)], -1)

    def mode(self) -> Tensor:
        """Features of the likeliest action, [..., A]."""
        return torch.cat([part.mode() for part in self.parts], -1)

    def log_density(self, action: Tensor) -> Tensor:
        """[...] of [..., A]."""
        split = zip(self.parts, action.split(self.sizes, -1), strict=True)
        return torch.stack([part.log_density(own) for part, own in split]).sum(0)

    def entropy(self, noise: Tensor) -> Tensor:
        """[...]; `noise` as for sampling."""
        split = zip(self.parts, self._split(noise), strict=True)
        return torch.stack([part.entropy(own) for part, own in split]).sum(0)

    def _split(self, noise: Tensor) -> tuple[Tensor, ...]:
        widths = [1 if isinstance(part, Categories) else part.mean.shape[-1] for part in self.parts]
        split: tuple[Tensor, ...] = noise.split(widths, -1)
        return split


@dataclass(frozen=True, slots=True)
class Dream:
    """States that the actor's actions lead to, none of them observed.

    Attributes:
        features: [H + 1, N, F], the start first.
        actions: features of the action taken in each state but the last, [H, N, A].
        log_densities, entropies: of the actor there, [H, N], with gradients for its weights alone.
    """

    features: Tensor
    actions: Tensor
    log_densities: Tensor
    entropies: Tensor


@dataclass(frozen=True, slots=True)
class Losses:
    """Of one batch of dreams.

    Attributes:
        actor, critic: 0-d.
        returns: lambda-returns of the imagined states but the last, [H, N].
        figures: 0-d tensors to log.
    """

    actor: Tensor
    critic: Tensor
    returns: Tensor
    figures: dict[str, Tensor]


def lambda_returns(rewards: Tensor, discounts: Tensor, values: Tensor, return_lambda: float) -> Tensor:
    """R_t of H states from what arrives at the states behind them, all [H, ...]; see the module's equation."""
    ahead, returns = values[-1], []
    for t in reversed(range(len(rewards))):
        ahead = rewards[t] + discounts[t] * torch.lerp(values[t], ahead, return_lambda)
        returns.append(ahead)
    return torch.stack(returns[::-1])


class ActorCritic(nn.Module):
    """The two networks, the slow copy and the range of returns.

    Args:
        options: sizes, kinds and scales.
        features: of a state, F.
        action_space: Discrete, MultiDiscrete, bounded Box, or a Dict of them.

    Raises:
        SpaceError: a Box of actions that is not bounded.
    """

    bins: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, options: ActorCriticOptions, features: int, action_space: Space[Any]) -> None:
        super().__init__()
        o = self.options = options
        spaces = leaf_spaces(action_space)
        for path, space in spaces.items():
            if isinstance(space, gym_spaces.Box) and not space.is_bounded():
                raise SpaceError(
                    f"action '{path}': found {space}, expected a Box with finite bounds, Discrete or MultiDiscrete "
                    "for an actor; rescale the actions (gymnasium.wrappers.RescaleAction) or use behavior_cloning"
                )
        self.leaves = [Leaf.of(path, space) for path, space in spaces.items()]
        outputs = sum(leaf.size if leaf.sizes else 2 * leaf.size for leaf in self.leaves)
        kinds: Any = {"norm": o.norm, "activation": o.activation}
        self.actor = MLP(features, outputs, o.layers, o.width, scale=0.01, **kinds)
        self.register_buffer("bins", two_hot_bins())
        sizes = (len(self.bins), 0.0) if o.values == "two_hot" else (1, 1.0)
        self.critic = MLP(features, sizes[0], o.layers, o.width, scale=sizes[1], **kinds)
        self.slow: MLP | None = None
        if o.slow != "none":
            self.slow = deepcopy(self.critic).requires_grad_(False)
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    # -- acting -----------------------------------------------------------------------------------------------------

    def policy(self, features: Tensor) -> Actions:
        """The distribution of actions in states [..., F]."""
        return self._distribution(self.actor(features))

    def _distribution(self, outputs: Tensor) -> Actions:
        o, outputs, offset = self.options, raised(outputs), 0
        parts: list[Part] = []
        sizes: list[int] = []
        for leaf in self.leaves:
            if leaf.sizes:
                for logits in outputs[..., offset : offset + leaf.size].split(leaf.sizes, -1):
                    parts.append(Categories(mixed(logits, o.uniform)))
                sizes += leaf.sizes
                offset += leaf.size
            else:
                mean, raw_std = outputs[..., offset : offset + 2 * leaf.size].chunk(2, -1)
                kind = BoundedNormal if o.continuous == "bounded_normal" else TanhNormal
                parts.append(kind.of(mean, raw_std))
                sizes.append(leaf.size)
                offset += 2 * leaf.size
        return Actions(tuple(parts), tuple(sizes))

    def dream(self, world: LatentWorld, start: State, generator: torch.Generator | None) -> Dream:
        """H steps from N start states; gradients reach the actor through the dynamics unless they are switched off.

        The actor's own outputs keep theirs, so that nothing is computed twice for REINFORCE.
        """
        horizon, lanes = self.options.horizon, len(start["deterministic"])
        device = start["deterministic"].device
        noise = world.rssm.noise(horizon, lanes, generator=generator, device=device)
        kind = product_type(start["deterministic"])  # of all that read them
        state, features = start, [world.features(start).to(kind)]
        outputs, drawn, actions = [], [], []
        for t in range(horizon):
            with torch.enable_grad():
                outputs.append(self.actor(features[-1].detach()))
            chosen = self._distribution(outputs[-1])
            drawn.append(chosen.noise(generator))
            actions.append(chosen.sample(drawn[-1]))
            state = world.rssm.step(state, actions[-1], noise[t])
            features.append(world.features(state).to(kind))
        taken = torch.stack(actions)
        with torch.enable_grad():
            chosen = self._distribution(torch.stack(outputs))
            score, spread = chosen.log_density(taken.detach()), chosen.entropy(torch.stack(drawn))
        return Dream(torch.stack(features), taken, score, spread)

    # -- learning ---------------------------------------------------------------------------------------------------

    def losses(self, world: LatentWorld, start: State, generator: torch.Generator | None) -> Losses:
        """The losses of dreams from N start states; the world gets no gradient from them.

        In training mode the range of returns moves by these.
        """
        o = self.options
        start = {name: tensor.detach() for name, tensor in start.items()}
        through = o.dynamics_share > 0
        still = [world, self.critic] + ([self.slow] if self.slow is not None else [])
        with torch.set_grad_enabled(through), held_still(*still):
            dream = self.dream(world, start, generator)
            seen = dream.features.detach()
            rewards, discounts = world.reward(dream.features[1:]), world.discounts(dream.features)
        outputs = self.critic(seen)
        if through:
            with held_still(*still):
                target = self.slow if o.slow == "targets" and self.slow is not None else self.critic
                values = self.value(target(dream.features))
        else:
            with torch.no_grad():
                values = self.value(self.slow(seen) if o.slow == "targets" and self.slow is not None else outputs)
        returns = lambda_returns(rewards, discounts[1:], values[1:], o.return_lambda)
        if self.training:
            self._measure(returns.detach())
        weights = discounts.detach().cumprod(0)[:-1]

        gain = o.entropy * dream.entropies
        if through:
            gain = gain + o.dynamics_share * returns / self._scale()
        if o.dynamics_share < 1:
            advantage = (returns - values[:-1]).detach() / self._scale()
            gain = gain + (1 - o.dynamics_share) * dream.log_densities * advantage
        returns = returns.detach()
        figures = {
            "imagined_return": returns.mean(),
            "imagined_reward": rewards.detach().mean(),
            "value": values.detach().mean(),
            "entropy": dream.entropies.detach().mean(),
            "return_range": (self.high - self.low).clone(),
        }
        critic = self._critic_loss(outputs[:-1], seen[:-1], returns, weights)
        return Losses(-(weights * gain).mean(), critic, returns, figures)

    def replay_loss(self, features: Tensor, rows: Arrivals, imagined: Tensor, discount: float) -> Tensor:
        """The critic's loss on logged rows, whose returns bootstrap from the imagined ones; gradients reach the world.

        Args:
            features: of the posterior states, [B, T, F].
            rows: that were observed.
            imagined: lambda-returns of dreams from these states, [B, T].
            discount: the share of the next step.
        """
        assert rows.rewards is not None
        returns = replay_returns(rows, imagined, discount, self.options.return_lambda)
        features, weights = features[:, :-1], (~rows.last[:, :-1]).float()
        return self._critic_loss(self.critic(features), features, returns, weights)

    def imitation_loss(self, features: Tensor, rows: Arrivals, actions: Tensor) -> Tensor:
        """Minus the log-density of logged actions under the actor, whose weights alone get a gradient.

        It keeps an actor that learns from logs alone near what they did, as Fujimoto and Gu's TD3+BC does ("A
        Minimalist Approach to Offline Reinforcement Learning", 2021): what a world dreams of other actions is
        exploited before it is known to be wrong.

        Args:
            features: of the posterior states, [B, T, F].
            rows: that were observed.
            actions: features of what led to each row, [B, T, A].
        """
        chosen = self.policy(features[:, :-1].detach())
        return -((~rows.last[:, :-1]) * chosen.log_density(actions[:, 1:])).mean()

    def value(self, outputs: Tensor) -> Tensor:
        """What the critic's outputs stand for, [...]."""
        return two_hot_mean(outputs, self.bins) if self.options.values == "two_hot" else raised(outputs[..., 0])

    def _critic_loss(self, outputs: Tensor, features: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        targets = [target]
        if self.options.slow == "regulariser" and self.slow is not None:
            slow = self.slow
            with torch.no_grad():
                targets.append(in_pieces(lambda rows: self.value(slow(rows)), features))
        if self.options.values == "two_hot":
            loss = two_hot_loss(outputs, *targets, bins=self.bins)
        else:
            loss = torch.stack([0.5 * (raised(outputs[..., 0]) - one).square() for one in targets]).sum(0)
        return (weights * loss).mean()

    def _scale(self) -> Tensor | float:
        return (self.high - self.low).clamp_min(1.0) if self.options.normalise_returns else 1.0

    def _measure(self, returns: Tensor) -> None:
        if self.options.normalise_returns:
            low, high = torch.quantile(returns.flatten(), torch.tensor([0.05, 0.95], device=returns.device))
            self.low.lerp_(low, 0.01)
            self.high.lerp_(high, 0.01)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the slow critic, after update number `step`."""
        if self.slow is not None and (step + 1) % self.options.slow_every == 0:
            torch._foreach_lerp_(list(self.slow.parameters()), list(self.critic.parameters()), self.options.slow_rate)


def replay_returns(rows: Arrivals, imagined: Tensor, discount: float, return_lambda: float) -> Tensor:
    """Lambda-returns of logged rows but the last, [B, T - 1], bootstrapping from imagined ones, [B, T].

    Termination ends the sum; any other end bootstraps. What is returned for the last row of an episode means nothing.
    """
    assert rows.rewards is not None
    live = discount * (~rows.terminated).float()
    share = return_lambda * (~rows.last).float()
    ahead, returns = imagined[:, -1], []
    for t in reversed(range(1, imagined.shape[1])):
        ahead = rows.rewards[:, t] + live[:, t] * torch.lerp(imagined[:, t], ahead, share[:, t])
        returns.append(ahead)
    return torch.stack(returns[::-1], 1)
