"""Dreamer V3's recurrence as plain tensors, forward and backward pass written out for a CPU.

One step of the cell (`seqwm.nn.rssm.BlockGRU`), with k counting the blocks of h and d = D / blocks its columns:

    s  = [ layer(h), layer(z), driven ]                 layer: linear map, RMS norm, SiLU
    y_k = h_k W_k + s V_k + b_k                         n = layer's norm and SiLU of all y
    r, c, u = n_k G_k + g_k                             of d columns each
    h' = h + sigmoid(u - 1) (tanh(sigmoid(r) c) - h)

What is notable: `Observed` makes the recurrence over T rows one step of autograd. Of the backward pass only what one
row hands to the row before runs in a loop; the gradients of all weights are products over T B rows behind it. A step
without gradients (`Cell.forward`) is what dreams are made of. torch computes tanh(x) as
2 sigmoid(2 x) - 1 several times as fast as by that name, and so does this.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqwm.nn.distributions import blended, one_hot
from seqwm.nn.perceptron import product
from seqwm.nn.rms_layers import Normed, rms_silu, rms_silu_, rms_silu_backward

_of_sigmoid = torch.ops.aten.sigmoid_backward.default  # gradients from those of outputs and the outputs
_of_tanh = torch.ops.aten.tanh_backward.default


class CellWeights(NamedTuple):
    """Of the cell: its two layers, and the block-diagonal maps [blocks, d + 3 hidden, d] and [blocks, d, 3 d]."""

    state: Tensor
    state_bias: Tensor
    state_gain: Tensor
    stochastic: Tensor
    stochastic_bias: Tensor
    stochastic_gain: Tensor
    hidden: Tensor
    hidden_bias: Tensor
    hidden_gain: Tensor
    gates: Tensor
    gates_bias: Tensor


class Moved(NamedTuple):
    """What a step keeps for its backward pass; h' is the last."""

    h: Tensor
    z: Tensor
    state: Normed
    stochastic: Normed
    shared: Tensor
    hidden: Normed
    reset: Tensor
    raw: Tensor
    candidate: Tensor
    update: Tensor
    following: Tensor


class Cell:
    """The weights, laid out for the products.

    Args:
        weights: of the cell.
        eps: of the norms.
        kind: of the products.
    """

    def __init__(self, weights: CellWeights, eps: float, kind: torch.dtype) -> None:
        self.weights, self.eps, self.kind = weights, eps, kind
        self.low = low = CellWeights(*(weight.to(kind) for weight in weights))
        self.blocks, _, self.columns = low.hidden.shape
        self.own = low.hidden[:, : self.columns]
        self.shared = low.hidden[:, self.columns :].transpose(0, 1).flatten(1)  # [3 hidden, D]
        self.bias = low.hidden_bias.flatten()
        self.gates_bias = low.gates_bias.clone()
        self.gates_bias[..., 2 * self.columns :] -= 1  # of the update gate

    def forward(self, h: Tensor, z: Tensor, driven: Tensor) -> Moved:
        """From h [B, D], z [B, Z] and the embedded action [B, hidden], with what a backward pass needs."""
        w = self.weights
        state = rms_silu(product(h, w.state, w.state_bias), w.state_gain, self.eps)
        stochastic = rms_silu(product(z, w.stochastic, w.stochastic_bias), w.stochastic_gain, self.eps)
        shared = torch.cat([state[2], stochastic[2], driven], 1)
        hidden = rms_silu(self._joined(h, shared), w.hidden_gain, self.eps)
        reset, raw, update = self._gates(hidden[2])
        candidate = (reset * raw).mul_(2).sigmoid_().mul_(2).sub_(1)
        return Moved(h, z, state, stochastic, shared, hidden, reset, raw, candidate, update, h.lerp(candidate, update))

    def step(self, h: Tensor, z: Tensor, driven: Tensor) -> Tensor:
        """h' alone, with products of a type of their own."""
        w, low, kind = self.weights, self.low, self.kind
        low_h = h.to(kind)
        state = product(low_h, low.state, low.state_bias).to(h.dtype)
        stochastic = product(z.to(kind), low.stochastic, low.stochastic_bias).to(h.dtype)
        parts = rms_silu_(state, w.state_gain, self.eps), rms_silu_(stochastic, w.stochastic_gain, self.eps), driven
        shared = torch.cat([part.to(kind) for part in parts], 1)
        hidden = rms_silu_(self._joined(low_h, shared).to(h.dtype), w.hidden_gain, self.eps)
        reset, raw, update = self._gates(hidden.to(kind)).to(h.dtype)
        candidate = raw.mul_(reset).mul_(2).sigmoid_().mul_(2).sub_(1)
        return h.lerp(candidate, update)

    def _joined(self, h: Tensor, shared: Tensor) -> Tensor:
        """The inputs of the hidden layer's norm, [B, D]."""
        y = product(shared, self.shared.t(), self.bias)
        self._split(y).baddbmm_(self._split(h), self.own)
        return y

    def _gates(self, n: Tensor) -> Tensor:
        """Of a hidden layer [B, D]: reset gate, what it applies to, and update gate, [3, B, D]."""
        gates = torch.baddbmm(self.gates_bias, self._split(n).contiguous(), self.low.gates)
        gates = gates.view(self.blocks, -1, 3, self.columns).permute(2, 1, 0, 3).reshape(3, *n.shape)
        gates[::2].sigmoid_()
        return gates

    def backward(self, moved: Moved, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """From the gradient of h' those of h, z and driven, and what `gradients` needs of this step."""
        w, m = self.weights, moved
        of_update = _of_sigmoid((m.candidate - m.h).mul_(gradient), m.update)
        of_product = _of_tanh(gradient * m.update, m.candidate)
        of_reset = _of_sigmoid(of_product * m.raw, m.reset)
        of_gates = torch.stack([of_reset, of_product.mul_(m.reset), of_update])
        of_gates = of_gates.view(3, -1, self.blocks, self.columns).permute(2, 1, 0, 3).flatten(2)  # [blocks, B, 3 d]
        of_n = torch.bmm(of_gates, w.gates.transpose(1, 2)).transpose(0, 1).reshape(m.h.shape)
        of_hidden, hidden_gain = rms_silu_backward(of_n, m.hidden, w.hidden_gain)
        of_shared = product(of_hidden, self.shared)
        of_state, of_stochastic, of_driven = of_shared.chunk(3, 1)
        of_state, state_gain = rms_silu_backward(of_state, m.state, w.state_gain)
        of_stochastic, stochastic_gain = rms_silu_backward(of_stochastic, m.stochastic, w.stochastic_gain)
        of_h = gradient.addcmul(gradient, m.update, value=-1)
        self._split(of_h).baddbmm_(self._split(of_hidden), self.own.transpose(1, 2))
        of_h.add_(product(of_state, w.state.t()))
        kept = [of_state, state_gain, of_stochastic, stochastic_gain, of_hidden, hidden_gain, of_gates]
        return of_h, product(of_stochastic, w.stochastic.t()), of_driven, kept

    def gradients(self, moved: list[Moved], kept: list[list[Tensor]]) -> list[Tensor]:
        """Of all weights, in their order, from all steps and what their backward passes gave."""
        *parts, gates = zip(*kept, strict=True)
        state, state_gain, stochastic, stochastic_gain, hidden, hidden_gain = (torch.cat(part) for part in parts)
        of_gates = torch.cat(gates, 1)
        inputs = zip(*((step.h, step.z, step.shared, step.hidden[2]) for step in moved), strict=True)
        h, z, shared, n = (torch.cat(part) for part in inputs)
        own = torch.bmm(self._split(h).transpose(1, 2), self._split(hidden))
        common = (shared.t() @ hidden).unflatten(1, (self.blocks, -1)).transpose(0, 1)
        return [
            *(state.t() @ h, state.sum(0), state_gain.sum(0)),
            *(stochastic.t() @ z, stochastic.sum(0), stochastic_gain.sum(0)),
            *(torch.cat([own, common], 1), hidden.sum(0).view(self.blocks, 1, -1), hidden_gain.sum(0)),
            *(torch.bmm(self._split(n).transpose(1, 2), of_gates), of_gates.sum(1, keepdim=True)),
        ]

    def _split(self, x: Tensor) -> Tensor:
        """[B, D] as [blocks, B, d]."""
        return x.view(-1, self.blocks, self.columns).transpose(0, 1)


class PosteriorWeights(NamedTuple):
    """Of what draws z from h and the observation: a layer, of whose inputs only h is left, and a linear map."""

    state: Tensor
    state_bias: Tensor
    gain: Tensor
    output: Tensor
    output_bias: Tensor


class Observed(torch.autograd.Function):
    """Posterior states of T rows; see `seqwm.nn.rssm.RSSM.observe`.

    Takes driven and seen [B, T, hidden], what of the action and of the observation enters the cell and the posterior;
    keep [B, T, 1], zero where an episode begins; h [B, D] and z [B, S K] before the first row; noise [B, T, S] or None;
    the number K of classes and the share of the uniform distribution in them; eps of the norms; `CellWeights` and
    `PosteriorWeights`. Gives h [B, T, D], z [B, T, S K] and log-probabilities [B, T, S, K].
    """

    @staticmethod
    def forward(
        ctx: Any,
        driven: Tensor,
        seen: Tensor,
        keep: Tensor,
        h: Tensor,
        z: Tensor,
        noise: Tensor | None,
        classes: int,
        uniform: float,
        eps: float,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One row after another."""
        cell, w = Cell(CellWeights(*weights[:11]), eps, weights[0].dtype), PosteriorWeights(*weights[11:])
        rows: list[tuple[Moved, Normed, Tensor]] = []
        states, samples = [], []
        for t in range(driven.shape[1]):
            moved = cell.forward(h * keep[:, t], z * keep[:, t], driven[:, t])
            h = moved.following
            hidden = rms_silu(product(h, w.state, w.state_bias).add_(seen[:, t]), w.gain, eps)
            plain = product(hidden[2], w.output, w.output_bias).unflatten(1, (-1, classes)).softmax(-1)
            z = one_hot(blended(plain, uniform), None if noise is None else noise[:, t]).flatten(1)
            rows.append((moved, hidden, plain))
            states.append(h)
            samples.append(z)
        plain = torch.stack([row[2] for row in rows], 1)
        ctx.save_for_backward(keep, plain, *weights)
        ctx.rows, ctx.uniform, ctx.eps = rows, uniform, eps
        return torch.stack(states, 1), torch.stack(samples, 1), blended(plain, uniform).log_()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_states: Tensor, of_samples: Tensor, of_logs: Tensor) -> tuple[Tensor | None, ...]:
        """Backwards from row to row; then the weights' gradients from all rows at once."""
        keep, plain, *weights = ctx.saved_tensors
        cell, w = Cell(CellWeights(*weights[:11]), ctx.eps, weights[0].dtype), PosteriorWeights(*weights[11:])
        direct = of_logs.div(blended(plain, ctx.uniform))  # what reaches probabilities otherwise than through samples
        of_h, of_z = torch.zeros_like(of_states[:, 0]), torch.zeros_like(of_samples[:, 0])
        kept: list[list[Tensor]] = []
        tail: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for t in reversed(range(keep.shape[1])):
            moved, hidden, own = ctx.rows[t]
            reached = (of_z + of_samples[:, t]).view_as(own).add_(direct[:, t]).mul_(1 - ctx.uniform)
            of_output = torch.ops.aten._softmax_backward_data(reached, own, -1, own.dtype).flatten(1)
            of_hidden, of_gain = rms_silu_backward(product(of_output, w.output.t()), hidden, w.gain)
            arriving = product(of_hidden, w.state.t()).add_(of_h).add_(of_states[:, t])
            of_h, of_z, of_driven, parts = cell.backward(moved, arriving)
            of_h, of_z = of_h.mul_(keep[:, t]), of_z.mul_(keep[:, t])
            kept.append(parts)
            tail.append((of_hidden, of_gain, of_output, of_driven))
        order = list(reversed(ctx.rows))
        of_hidden, of_gain, of_output = (torch.cat([row[k] for row in tail]) for k in range(3))
        h, q = torch.cat([row[0].following for row in order]), torch.cat([row[1][2] for row in order])
        of_driven, of_seen = (torch.stack([row[k] for row in reversed(tail)], 1) for k in (3, 0))
        posterior = [of_hidden.t() @ h, of_hidden.sum(0), of_gain.sum(0), of_output.t() @ q, of_output.sum(0)]
        gradients = [*cell.gradients([row[0] for row in order], kept), *posterior]
        return (of_driven, of_seen, None, of_h, of_z, None, None, None, None, *gradients)
