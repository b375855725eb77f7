"""A world in latent space: encoder, recurrent state-space model, and heads for observation, reward and going on.

PlaNet and every Dreamer share it; what differs between them is named in `WorldOptions`. It answers the package's
contract for worlds: `encode`, `step` and `decode` on an explicit state.

**Heads** read the state that something arrives with: the reward of a step is read off the state behind it. The head for
going on predicts (1 - terminated) times the discount, so that what it gives is the discount of imagination and no
further one is needed; truncation is not an end.

**KL.** Two halves, scaled apart: `dynamics` teaches the prior, `representation` the posterior (V2's balancing of 0.8 is
0.8 and 0.2; the plain KL of V1 is 1 and 1). Free nats are taken off each row (V3), or off the mean over the batch (V1).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from gymnasium import Space
from torch import Tensor, nn

from seqwm.core.protocols import Step
from seqwm.core.types import Batch, State, TensorTree
from seqwm.data.arrivals import Arrivals, arrivals
from seqwm.nn.dense import MLP, in_pieces
from seqwm.nn.distributions import two_hot_bins, two_hot_loss, two_hot_mean
from seqwm.nn.leaves import ActionCodec
from seqwm.nn.observations import ObservationCodec, Units
from seqwm.nn.rms_layers import raised
from seqwm.nn.rssm import RSSM, Latents, RSSMOptions, kl_losses


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldOptions:
    """Sizes, kinds, and scales of the losses.

    Attributes:
        rssm: of the state-space model; its norm and activation are used everywhere.
        layers, width: of the encoder's and decoder's MLPs, and width of the heads.
        head_layers: of the heads for reward and going on.
        depth: channels of the first convolution on images.
        units: of numbers in observations.
        rewards: 'two_hot', 'squared' error, or 'none' where the data has no rewards.
        discount: the share of the next step in the sum of rewards.
        reconstruction_scale: of the squared errors; a half makes them the negative log-likelihood of unit normals.
        dynamics_scale, representation_scale: of the halves of the KL.
        free_nats: below it, a half of the KL has no gradient.
        free_of: whether that is each 'row', or the mean over the 'batch'.
    """

    rssm: RSSMOptions = field(default_factory=RSSMOptions)
    layers: int = 3
    width: int = 64
    head_layers: int = 1
    depth: int = 8
    units: Units = "symlog"
    rewards: Literal["two_hot", "squared", "none"] = "two_hot"
    discount: float = 0.997
    reconstruction_scale: float = 1.0
    dynamics_scale: float = 1.0
    representation_scale: float = 0.1
    free_nats: float = 1.0
    free_of: Literal["row", "batch"] = "row"


class LatentWorld(nn.Module):
    """The networks; state: deterministic float32 [B, D], stochastic float32 [B, Z].

    Args:
        options: sizes and kinds.
        observation_space, action_space: of one step.
    """

    bins: Tensor

    def __init__(self, options: WorldOptions, observation_space: Space[Any], action_space: Space[Any]) -> None:
        super().__init__()
        o = self.options = options
        features = o.rssm.deterministic + o.rssm.stochastic * max(o.rssm.classes, 1)
        kinds: Any = {"norm": o.rssm.norm, "activation": o.rssm.activation}
        sizes: Any = {"layers": o.layers, "width": o.width}
        self.actions = ActionCodec(action_space)
        self.observations = ObservationCodec(
            observation_space, features, depth=o.depth, units=o.units, **sizes, **kinds
        )
        self.rssm = RSSM(o.rssm, self.actions.size, self.observations.size)
        self.register_buffer("bins", two_hot_bins())
        if o.rewards != "none":
            outputs, scale = (len(self.bins), 0.0) if o.rewards == "two_hot" else (1, 1.0)
            self.reward_head = MLP(features, outputs, o.head_layers, o.width, scale=scale, **kinds)
        self.continue_head = MLP(features, 1, o.head_layers, o.width, **kinds)

    # -- learning ---------------------------------------------------------------------------------------------------

    def observe(self, rows: Arrivals, state: State, noise: Tensor | None) -> tuple[Latents, State]:
        """The posterior states of T rows, and the last; see `RSSM.observe`."""
        embedded = self.observations.encode(rows.observations)
        return self.rssm.observe(embedded, self.actions.features(rows.actions), rows.first, state, noise)

    def losses(self, rows: Arrivals, latents: Latents) -> dict[str, Tensor]:
        """Each loss, scaled, as a mean over valid rows: 0-d tensors by name."""
        o, features, valid = self.options, latents.features, rows.valid
        parts = {
            "reconstruction": o.reconstruction_scale * self.observations.loss(features, rows.observations),
            "continue": F.binary_cross_entropy_with_logits(
                raised(self.continue_head(features)[..., 0]), o.discount * (~rows.terminated).float(), reduction="none"
            ),
        }
        if o.rewards != "none":
            assert rows.rewards is not None
            outputs = self.reward_head(features)
            if o.rewards == "two_hot":
                parts["reward"] = two_hot_loss(outputs, rows.rewards, bins=self.bins)
            else:
                parts["reward"] = 0.5 * (raised(outputs[..., 0]) - rows.rewards).square()
        dynamics, representation = kl_losses(self.rssm, latents.posterior, latents.prior)
        for name, scale, kl in (
            ("dynamics", o.dynamics_scale, dynamics),
            ("representation", o.representation_scale, representation),
        ):
            parts[name] = scale * (kl.clamp_min(o.free_nats) if o.free_of == "row" else kl)
        means = {name: (part * valid).sum() / valid.sum() for name, part in parts.items()}
        if o.free_of == "batch":
            for name, scale in (("dynamics", o.dynamics_scale), ("representation", o.representation_scale)):
                means[name] = means[name].clamp_min(scale * o.free_nats)
        return means

    # -- what heads say of features [..., Z + D] --------------------------------------------------------------------

    def features(self, state: State) -> Tensor:
        """[B, Z + D]."""
        return torch.cat([state["stochastic"], state["deterministic"]], -1)

    def reward(self, features: Tensor) -> Tensor:
        """The mean of the reward that arrives with these states, [...]."""
        if self.options.rewards == "two_hot":
            return in_pieces(lambda rows: two_hot_mean(self.reward_head(rows), self.bins), features)
        return in_pieces(lambda rows: raised(self.reward_head(rows)[..., 0]), features)

    def discounts(self, features: Tensor) -> Tensor:
        """The probability that the task goes on, times the discount, [...]."""
        return in_pieces(lambda rows: torch.sigmoid(raised(self.continue_head(rows)[..., 0])), features)

    # -- the contract -----------------------------------------------------------------------------------------------

    def encode(self, context: Batch) -> State:
        """The most likely state at the observation of the last valid row."""
        rows = arrivals(context)
        latents, _ = self.observe(rows, self.rssm.initial(len(rows.first), rows.first.device), None)
        lanes, last = torch.arange(len(rows.first), device=rows.first.device), context.valid.sum(1) - 1
        return {"deterministic": latents.deterministic[lanes, last], "stochastic": latents.stochastic[lanes, last]}

    def step(self, state: State, action: TensorTree, generator: torch.Generator | None) -> Step:
        """The state behind an action, the mean reward, and whether the task ended; see `seqwm.core.protocols`."""
        lanes, device = len(state["deterministic"]), state["deterministic"].device
        noise = None if generator is None else self.rssm.noise(lanes, generator=generator, device=device)
        following = self.rssm.step(state, self.actions.features(action), noise)
        features = self.features(following)
        going = self.discounts(features).detach() / self.options.discount
        level = 0.5 if generator is None else torch.rand(lanes, generator=generator, device=device)
        reward = self.reward(features) if self.options.rewards != "none" else features.new_zeros(lanes)
        return Step(following, reward, going < level)

    def decode(self, state: State) -> TensorTree:
        """The observation that a state stands for."""
        return self.observations.decode(self.features(state))


@contextmanager
def held_still(*modules: nn.Module) -> Iterator[None]:
    """What is computed within has gradients with respect to its inputs, but none for the weights of these modules."""
    weights = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in weights:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in weights:
            p.requires_grad_(True)
