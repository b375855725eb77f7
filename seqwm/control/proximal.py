"""Proximal policy optimisation: play a round, then go a bounded way towards what turned out better than expected.

Schulman et al., "Proximal Policy Optimization Algorithms", 2017, for policies that see the last few frames and choose
one of a few actions. With the probability ratio r of an action now and when it was played, and its advantage A,

    L = -E[min(r A, clip(r, 1 - 0.2, 1 + 0.2) A)] + 0.5 E[(v - R)^2] - 0.01 E[entropy].

R are lambda-returns (lambda 0.95, discount 0.99), and A = R - v, which is generalised advantage estimation (Schulman
et al., 2016); advantages are standardised over the round. An episode that was cut goes on, in R, with the value of its
last frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seqwm.control.actor_critic import lambda_returns
from seqwm.control.lanes import Lanes
from seqwm.control.rollout import gather
from seqwm.core.protocols import Policy
from seqwm.core.tree import flatten
from seqwm.core.types import Spaces
from seqwm.data.store import TrajectoryStore

DISCOUNT, LAMBDA = 0.99, 0.95
_CLIP, _VALUE, _ENTROPY = 0.2, 0.5, 0.01
_EPOCHS, _MINIBATCH = 4, 128

Evaluated = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Frames uint8 [N, context, H, W, C] to log-probabilities of actions [N, A] and values [N]."""


@dataclass(frozen=True, slots=True)
class Played:
    """N transitions of a round.

    Attributes:
        frames: the last ones before each, uint8 [N, context, H, W, C].
        actions: from 0, int64 [N].
        log_probabilities: of them, when they were played [N].
        advantages: standardised [N].
        returns: [N].
        mean_return: undiscounted, of the episodes that ended by themselves; of all where none did.
    """

    frames: Tensor
    actions: Tensor
    log_probabilities: Tensor
    advantages: Tensor
    returns: Tensor
    mean_return: float

    def minibatches(self, generator: torch.Generator) -> Iterator[Played]:
        """Every transition four times, 128 at once, in an order that is drawn."""
        for _ in range(_EPOCHS):
            for rows in torch.randperm(len(self.actions), generator=generator).split(_MINIBATCH):
                yield Played(
                    self.frames[rows],
                    self.actions[rows],
                    self.log_probabilities[rows],
                    self.advantages[rows],
                    self.returns[rows],
                    self.mean_return,
                )


def played(vector: Lanes, policy: Policy, evaluated: Evaluated, steps: int, context: int, seed: int) -> Played:
    """Play `steps` transitions from new episodes on; what was thought of them when they were played.

    Args:
        vector: environments with one image and one Discrete action.
        policy: draws its actions from torch's own generator.
        evaluated: what the policy thinks of frames.
        steps: transitions, of all lanes together.
        context: frames that it sees.
        seed: names the episodes.
    """
    start = int(getattr(vector.single_action_space, "start", 0))
    store = TrajectoryStore.create(None, Spaces(vector.single_observation_space, vector.single_action_space))
    gather(vector, policy, store, steps, seed=seed)
    parts: list[tuple[Tensor, ...]] = []
    for episode in store.episodes():
        assert episode.rewards is not None
        frames = stacked(next(iter(flatten(episode.observations).values())), context)
        thought, values = (part.cpu() for part in evaluated(frames))
        actions = torch.from_numpy(np.array(next(iter(flatten(episode.actions).values())))) - start
        ahead = values[1:].clone()
        discounts = torch.full_like(ahead, DISCOUNT)
        if episode.terminated:
            discounts[-1] = 0.0
        rewards = torch.from_numpy(np.array(episode.rewards))
        returns = lambda_returns(rewards, discounts, ahead, LAMBDA)
        said = thought[:-1].gather(1, actions[:, None])[:, 0]
        parts.append((frames[:-1], actions, said, returns - values[:-1], returns))
    seen, actions, said, advantages, returns = (torch.cat(part) for part in zip(*parts, strict=True))
    advantages = (advantages - advantages.mean()) / advantages.std().clamp_min(1e-6)
    ended = store.terminated | store.truncated
    mean = float(store.returns[ended].mean() if ended.any() else store.returns.mean())
    return Played(seen, actions, said, advantages, returns, mean)


def stacked(frames: Any, context: int) -> Tensor:
    """For each of frames uint8 [T, H, W, C] the `context` last ones [T, context, H, W, C]; before the first, copies."""
    padded = torch.from_numpy(np.concatenate([np.repeat(frames[:1], context - 1, 0), frames]))
    return padded.unfold(0, context, 1).movedim(-1, 1)


def proximal_loss(log_probabilities: Tensor, value: Tensor, rows: Played) -> tuple[Tensor, dict[str, float]]:
    """The loss of a minibatch, and what to log.

    Args:
        log_probabilities: of all actions now [N, A].
        value: now [N].
        rows: what was played.
    """
    device = value.device
    actions, before, advantages, returns = (
        part.to(device) for part in (rows.actions, rows.log_probabilities, rows.advantages, rows.returns)
    )
    ratio = (log_probabilities.gather(1, actions[:, None])[:, 0] - before).exp()
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - _CLIP, 1 + _CLIP) * advantages).mean()
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1).mean()
    missed = F.mse_loss(value, returns)
    loss = -gain + _VALUE * missed - _ENTROPY * entropy
    figures = {"loss": loss, "gain": gain, "value_error": missed, "entropy": entropy}
    return loss, {name: float(figure.detach()) for name, figure in figures.items()}
