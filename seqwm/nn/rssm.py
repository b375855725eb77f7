"""The recurrent state-space model, one cell with the differences of its history as named options.

Hafner et al., "Learning Latent Dynamics for Planning from Pixels" (PlaNet), 2019; Dreamer V1, 2020; V2, 2021; V3, 2023,
in the form of danijar/dreamerv3 since 2024. A state has a deterministic part h and a random part z:

    h_t = f(h_{t-1}, z_{t-1}, a_{t-1})        recurrence
    z_t ~ q(z | h_t, e_t)                     posterior, with e_t the encoded observation
    z_t ~ p(z | h_t)                          prior, without it

Options: z normal (PlaNet, V1) or so many categories mixed with a share of the uniform distribution (V2, V3); f a plain
GRU, or one with block-diagonal weights whose three inputs are each embedded and normalised (V3).

**Arrival form.** Row t holds what arrives together: o_t and the action a_{t-1} that led to it. Where `first` is True
nothing led to it: h, z and the action before are zeros, whatever they were given as.

**What is notable.** All that depends on the observation and the action alone is computed for all T rows at once; noise
is drawn before the loop; the prior is read off h after it. So the loop over T holds little more than the recurrence.
V3's is written out for a CPU besides, with its backward pass (`seqwm.nn.block_cell`); the loop here says what it does.

Shapes: B batch, T time, D deterministic size, S categorical variables (or normal ones), K classes, Z = S K (or S).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqwm.core.types import State
from seqwm.nn.block_cell import Cell, CellWeights, Observed
from seqwm.nn.dense import (
    EPSILON,
    Activation,
    BlockLinear,
    Layer,
    Linear,
    Norm,
    activate,
    norm_is_written_out,
    normalisation,
    passed,
)
from seqwm.nn.distributions import categorical_kl, drawn, mixed, normal_kl, straight_through
from seqwm.nn.rms_layers import product_type, raised


@dataclass(frozen=True, slots=True, kw_only=True)
class RSSMOptions:
    """Sizes and kinds.

    Attributes:
        deterministic: size of h.
        stochastic: variables in z.
        classes: of each of them; 0 makes them normal.
        hidden: width of the layers around the recurrence.
        recurrence: 'gru', or 'block_gru' with `blocks` blocks.
        blocks: must divide `deterministic`.
        prior_layers: hidden layers between h and the prior; the posterior has one.
        norm, activation: of the layers.
        uniform: share of the uniform distribution in categories.
        minimum_std: added to the deviation of normal variables.
    """

    deterministic: int = 128
    stochastic: int = 8
    classes: int = 8
    hidden: int = 64
    recurrence: Literal["gru", "block_gru"] = "block_gru"
    blocks: int = 8
    prior_layers: int = 2
    norm: Norm = "rms"
    activation: Activation = "silu"
    uniform: float = 0.01
    minimum_std: float = 0.1


@dataclass(frozen=True, slots=True)
class Latents:
    """States of T rows and the distributions they were drawn from.

    Attributes:
        deterministic: [B, T, D].
        stochastic: samples [B, T, Z].
        posterior, prior: parameters of z with and without the observation; [B, T, S, K] log-probabilities, or
            [B, T, 2 S] means and deviations.
    """

    deterministic: Tensor
    stochastic: Tensor
    posterior: Tensor
    prior: Tensor

    @property
    def features(self) -> Tensor:
        """[B, T, Z + D], what heads read."""
        return torch.cat([self.stochastic, self.deterministic], -1)


class RSSM(nn.Module):
    """The cell.

    Args:
        options: sizes and kinds.
        actions: features of an action.
        embedding: size of an encoded observation.
    """

    def __init__(self, options: RSSMOptions, actions: int, embedding: int) -> None:
        super().__init__()
        o = self.options = options
        self.size = o.stochastic * max(o.classes, 1)
        parameters = self.size if o.classes else 2 * o.stochastic
        self.recurrence: BlockGRU | PlainGRU
        self.recurrence = (BlockGRU if o.recurrence == "block_gru" else PlainGRU)(o, self.size, actions)
        both = o.deterministic + embedding
        self.posterior_state = Linear(o.deterministic, o.hidden, fan_in=both)
        self.posterior_observation = Linear(embedding, o.hidden, bias=False, fan_in=both)
        self.posterior_norm = normalisation(o.norm, o.hidden)
        self.posterior_output = Linear(o.hidden, parameters)
        sizes = [o.deterministic] + [o.hidden] * o.prior_layers
        self.prior_hidden = nn.Sequential(*[Layer(a, b, o.norm, o.activation) for a, b in pairwise(sizes)])
        self.prior_output = Linear(o.hidden, parameters)

    @property
    def feature_size(self) -> int:
        """Of what heads read."""
        return self.size + self.options.deterministic

    def initial(self, lanes: int, device: torch.device | str = "cpu") -> State:
        """Zeros: deterministic [B, D], stochastic [B, Z]."""
        return {
            "deterministic": torch.zeros(lanes, self.options.deterministic, device=device),
            "stochastic": torch.zeros(lanes, self.size, device=device),
        }

    def noise(self, *shape: int, generator: torch.Generator | None, device: torch.device | str = "cpu") -> Tensor:
        """What sampling needs, [*shape, S]: uniform for categories, else standard normal."""
        draw = torch.rand if self.options.classes else torch.randn
        return draw(*shape, self.options.stochastic, generator=generator, device=device)

    def observe(
        self, embedded: Tensor, actions: Tensor, first: Tensor, state: State, noise: Tensor | None
    ) -> tuple[Latents, State]:
        """Posterior states of T rows.

        Args:
            embedded: encoded observations [B, T, E].
            actions: features of the action that led to each row, [B, T, A].
            first: bool [B, T], where an episode begins.
            state: before the first row.
            noise: of `noise(B, T)`; None takes the most likely (the mean).
        """
        deterministic, stochastic = state["deterministic"], state["stochastic"]
        keep = (~first).to(embedded.dtype)[..., None]
        driven = self.recurrence.embed_action(actions * keep)
        seen = raised(self.posterior_observation(embedded))
        if self._written_out(embedded):
            return self._observed(driven, seen, keep, state, noise)
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        for t in range(embedded.shape[1]):
            going = keep[:, t]
            deterministic = self.recurrence(deterministic * going, stochastic * going, driven[:, t])
            posterior = self._posterior(deterministic, seen[:, t])
            stochastic = self._draw(posterior, None if noise is None else noise[:, t])
            rows.append((deterministic, stochastic, posterior))
        h, z, q = (torch.stack(parts, 1) for parts in zip(*rows, strict=True))
        return Latents(h, z, q, self.prior(h)), {"deterministic": deterministic, "stochastic": stochastic}

    def _written_out(self, x: Tensor) -> bool:
        """Whether `seqwm.nn.block_cell` does the recurrence."""
        o, block = self.options, isinstance(self.recurrence, BlockGRU)
        return block and bool(o.classes and o.uniform) and norm_is_written_out(o.norm, o.activation, x)

    def _observed(
        self, driven: Tensor, seen: Tensor, keep: Tensor, state: State, noise: Tensor | None
    ) -> tuple[Latents, State]:
        """The same as the loop of `observe`, as one step of autograd."""
        o, gain = self.options, self.posterior_norm.weight
        layers = (self.posterior_state, self.posterior_output)
        (into, into_bias), (out, out_bias) = ((layer.weight, layer.bias) for layer in layers)
        weights = (*cast(BlockGRU, self.recurrence).weights(), into, into_bias, gain, out, out_bias)
        start, constants = (state["deterministic"], state["stochastic"]), (o.classes, o.uniform, EPSILON["rms"])
        with torch.autocast(driven.device.type, enabled=False):  # too few rows at a time to gain by bf16
            h, z, q = Observed.apply(driven, seen, keep, *start, noise, *constants, *weights)
        return Latents(h, z, q, self.prior(h)), {"deterministic": h[:, -1], "stochastic": z[:, -1]}

    def update(self, state: State, embedded: Tensor, action: Tensor, first: Tensor, noise: Tensor | None) -> State:
        """The posterior state after one row: embedded [B, E], action [B, A], first [B], noise of `noise(B)`."""
        going = (~first).to(embedded.dtype)[:, None]
        driven = self.recurrence.embed_action(action * going)
        h = self.recurrence(state["deterministic"] * going, state["stochastic"] * going, driven)
        posterior = self._posterior(h, self.posterior_observation(embedded))
        return {"deterministic": h, "stochastic": self._draw(posterior, noise)}

    def step(self, state: State, action: Tensor, noise: Tensor | None) -> State:
        """The state that follows `action` (features [B, A]) without looking; noise of `noise(B)`."""
        driven = self.recurrence.embed_action(action)
        h = self.recurrence(state["deterministic"], state["stochastic"], driven)
        if self.options.classes and not torch.is_grad_enabled():
            raw = passed(h, self.prior_hidden, self.prior_output).unflatten(-1, (-1, self.options.classes))
            return {"deterministic": h, "stochastic": drawn(raised(raw), self.options.uniform, noise).flatten(-2)}
        return {"deterministic": h, "stochastic": self._draw(self.prior(h), noise)}

    def prior(self, deterministic: Tensor) -> Tensor:
        """Parameters of z given h [..., D]."""
        raw = passed(deterministic, self.prior_hidden, self.prior_output)
        return self._distribution(raised(raw))

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        """KL(p || q) summed over the variables, [...], of parameters as `Latents` holds them."""
        if self.options.classes:
            return categorical_kl(p, q).sum(-1)
        return normal_kl(*p.chunk(2, -1), *q.chunk(2, -1))

    def _posterior(self, h: Tensor, seen: Tensor) -> Tensor:
        hidden = activate(self.posterior_norm(raised(self.posterior_state(h) + seen)), self.options.activation)
        return self._distribution(raised(self.posterior_output(hidden)))

    def _distribution(self, raw: Tensor) -> Tensor:
        o = self.options
        if o.classes:
            return mixed(raw.unflatten(-1, (o.stochastic, o.classes)), o.uniform)
        mean, raw_std = raw.chunk(2, -1)
        return torch.cat([mean, F.softplus(raw_std) + o.minimum_std], -1)

    def _draw(self, parameters: Tensor, noise: Tensor | None) -> Tensor:
        if self.options.classes:
            return straight_through(parameters, noise).flatten(-2)
        mean, std = parameters.chunk(2, -1)
        return mean if noise is None else mean + std * noise


def kl_losses(rssm: RSSM, posterior: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of a balanced KL, both of the same value, [B, T].

    The first, KL(sg(posterior) || prior), teaches the prior; the second, KL(posterior || sg(prior)), the posterior. The
    sum of both has the gradients of the plain KL.
    """
    return rssm.kl(posterior.detach(), prior), rssm.kl(posterior, prior.detach())


class PlainGRU(nn.Module):
    """One layer over (z, a), then a GRU cell, normalised where the options say so (the cell of PlaNet, V1 and V2)."""

    def __init__(self, options: RSSMOptions, stochastic: int, actions: int) -> None:
        super().__init__()
        o = self.options = options
        self.inputs = Linear(stochastic, o.hidden, fan_in=stochastic + actions)
        self.action = Linear(actions, o.hidden, bias=False, fan_in=stochastic + actions)
        self.inputs_norm = normalisation(o.norm, o.hidden)
        self.gates = Linear(o.hidden + o.deterministic, 3 * o.deterministic)
        self.gates_norm = normalisation(o.norm, 3 * o.deterministic)

    def embed_action(self, action: Tensor) -> Tensor:
        """What of the cell depends on the action alone, [..., hidden]."""
        return cast(Tensor, self.action(action))

    def forward(self, h: Tensor, z: Tensor, driven: Tensor) -> Tensor:
        """h [B, D], z [B, Z] and the embedded action to the next h."""
        x = activate(self.inputs_norm(raised(self.inputs(z) + driven)), self.options.activation)
        return _gated(self.gates_norm(raised(self.gates(torch.cat([x, h], -1)))), h)


class BlockGRU(nn.Module):
    """Dreamer V3's cell: h, z and a embedded apart, then a hidden layer and gates that are block-diagonal in h."""

    def __init__(self, options: RSSMOptions, stochastic: int, actions: int) -> None:
        super().__init__()
        o = self.options = options
        self.state_in = Layer(o.deterministic, o.hidden, o.norm, o.activation)
        self.stochastic_in = Layer(stochastic, o.hidden, o.norm, o.activation)
        self.action_in = Layer(actions, o.hidden, o.norm, o.activation)
        self.hidden = BlockLinear(o.deterministic + o.blocks * 3 * o.hidden, o.deterministic, o.blocks)
        self.hidden_norm = normalisation(o.norm, o.deterministic)
        self.gates = BlockLinear(o.deterministic, 3 * o.deterministic, o.blocks)

    def weights(self) -> CellWeights:
        """All but those of `embed_action`."""
        layers = (*self.state_in.parts(), *self.stochastic_in.parts())
        hidden = (self.hidden.weight, self.hidden.bias, cast(Tensor, self.hidden_norm.weight))
        return CellWeights(*layers, *hidden, self.gates.weight, self.gates.bias)

    def embed_action(self, action: Tensor) -> Tensor:
        """What of the cell depends on the action alone, [..., hidden]; actions beyond 1 are scaled back to it."""
        return cast(Tensor, self.action_in(action / action.detach().abs().clamp_min(1)))

    def forward(self, h: Tensor, z: Tensor, driven: Tensor) -> Tensor:
        """h [B, D], z [B, Z] and the embedded action to the next h."""
        o = self.options
        if not torch.is_grad_enabled() and norm_is_written_out(o.norm, o.activation, h):
            return Cell(self.weights(), EPSILON["rms"], product_type(h)).step(h, z, driven)
        shared = torch.cat([self.state_in(h), self.stochastic_in(z), driven], -1)
        blocks = h.unflatten(-1, (o.blocks, -1)).transpose(0, 1)
        x = self.hidden(blocks, shared)
        x = activate(self.hidden_norm(raised(x).transpose(0, 1).flatten(1)), o.activation)
        gates = self.gates(x.unflatten(-1, (o.blocks, -1)).transpose(0, 1))  # [blocks, B, 3 D / blocks]
        return _gated(raised(gates).transpose(0, 1), h.unflatten(-1, (o.blocks, -1))).flatten(1)


def _gated(gates: Tensor, h: Tensor) -> Tensor:
    """The GRU's update of h [..., D] from gates [..., 3 D]; its bias of -1 keeps more of h at first."""
    reset, candidate, update = gates.chunk(3, -1)
    update = torch.sigmoid(update - 1)
    return torch.lerp(h, torch.tanh(torch.sigmoid(reset) * candidate), update)
