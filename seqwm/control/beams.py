"""The branches of a beam search over tokens: what they have gathered, how they grow by a code, which are kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqwm.control.gumbel_noise import GumbelNoise
from seqwm.control.token_model import Memory, TokenModel


@dataclass(slots=True)
class Beams:
    """N branches in each of E environments; leaves are [E, N, ...].

    Attributes:
        memory, logits: of the model, behind the last code.
        codes: int64 [E, N, H + 1, D].
        alive: whether the branch holds a sequence that the limits allow.
        ended: whether a stop token was imagined.
        log_probability: of all codes imagined but values.
        gathered: discounted expected rewards.
        value: expected value behind the last reward; 0 where ended.
        nearest: the least distance to the goal so far.
        lengths: transitions until the end.
        scores: at the last pruning.
    """

    memory: Memory
    logits: Tensor
    codes: Tensor
    alive: Tensor
    ended: Tensor
    log_probability: Tensor
    gathered: Tensor
    value: Tensor
    nearest: Tensor
    lengths: Tensor
    scores: Tensor

    @classmethod
    def root(cls, memory: Memory, logits: Tensor, horizon: int, columns: int) -> Beams:
        """One branch an environment, behind the present observation."""
        shape = logits.shape[:2]
        zero = logits.new_zeros(shape)
        return cls(
            memory=memory,
            logits=logits,
            codes=torch.zeros(*shape, horizon + 1, columns, dtype=torch.int64, device=logits.device),
            alive=torch.ones_like(zero, dtype=torch.bool),
            ended=torch.zeros_like(zero, dtype=torch.bool),
            log_probability=zero,
            gathered=zero,
            value=zero,
            nearest=torch.full_like(zero, torch.inf),
            lengths=torch.full(shape, horizon, device=logits.device),
            scores=zero,
        )

    def observation(self, depth: int, columns: int) -> Tensor:
        """Codes int64 [E, N, O] of the observation of transition `depth`."""
        return self.codes[:, :, depth, :columns]

    def take(self, memory: Memory, branches: Tensor) -> Beams:
        """The named branches [E, M], over a memory in which they stand already."""

        def gather(leaf: Tensor) -> Tensor:
            return leaf.gather(1, branches)

        wide = branches[:, :, None, None].expand(-1, -1, *self.codes.shape[2:])
        return Beams(
            memory=memory,
            logits=self.logits,
            codes=self.codes.gather(1, wide),
            alive=gather(self.alive),
            ended=gather(self.ended),
            log_probability=gather(self.log_probability),
            gathered=gather(self.gathered),
            value=gather(self.value),
            nearest=gather(self.nearest),
            lengths=gather(self.lengths),
            scores=gather(self.scores),
        )

    def best(self, beams: int, scores: Tensor) -> Beams:
        """The `beams` branches with the highest scores [E, N], the best first; dead ones come last."""
        scores, branches = scores.masked_fill(~self.alive, -torch.inf).topk(min(beams, scores.shape[1]), dim=1)
        kept = self.take(self.memory.select(branches), branches)
        kept.logits = self.logits.gather(1, branches[:, :, None].expand(-1, -1, self.logits.shape[2]))
        kept.scores = scores
        return kept


def propose(
    model: TokenModel,
    beams: Beams,
    depth: int,
    columns: range,
    width: int,
    limits: tuple[int, float],
    noise: GumbelNoise | None,
    *,
    scored: bool,
) -> Beams:
    """Up to `width` continuations of every branch over some columns of transition `depth`.

    The continuations of a branch are the likeliest by a beam search of their own, or with noise a sample without
    replacement from the model's distribution within the limits. A branch that has ended has one, itself. Where the
    likeliest code is asked for and nothing is `scored`, log-probabilities are not computed.
    """
    environments, parents = beams.alive.shape
    children = 1
    log_probability = beams.logits.new_zeros(environments, parents, 1)  # as the model has it
    allowed = log_probability  # within the limits, renormalised
    perturbed = log_probability
    ended = beams.ended[..., None]  # of the children
    stop = beams.logits.shape[-1] - 1
    codes: list[Tensor] = []
    for column in columns:
        logits = beams.logits.view(environments, parents, children, -1)
        if width == 1 and limits[0] == 1 and not scored:
            token = logits.argmax(-1)
        else:
            model_step = logits.log_softmax(-1)
            limited = _limit(model_step, *limits)
            itself = torch.full_like(limited[:1, :1, :1], -torch.inf)
            itself[..., 0] = 0
            limited = torch.where(ended[..., None], itself, limited)
            model_step = torch.where(ended[..., None], itself, model_step)
            continued = allowed[..., None] + limited
            ranks = continued if noise is None else noise.perturb(continued, perturbed, (depth, column))
            vocabulary = continued.shape[-1]
            perturbed, place = ranks.flatten(2).topk(min(width, children * vocabulary))
            chosen, token = place // vocabulary, place % vocabulary
            allowed = continued.flatten(2).gather(2, place)
            log_probability = log_probability.gather(2, chosen) + model_step.flatten(2).gather(2, place)
            codes = [earlier.gather(2, chosen) for earlier in codes]
            ended = ended.gather(2, chosen) | (token == stop)
            if children == 1 and token.shape[2] > 1:
                beams.memory = beams.memory.fork(token.shape[2])
            elif children > 1:
                beams.memory = beams.memory.keep(chosen)
            children = token.shape[2]
        codes.append(token)
        beams.logits = model.extend(beams.memory, token.flatten(1) % stop, column)
    return _descend(beams, depth, columns, torch.stack(codes, -1), allowed, log_probability)


def _descend(
    beams: Beams, depth: int, columns: range, codes: Tensor, allowed: Tensor, log_probability: Tensor
) -> Beams:
    """The children [E, N, M] of a proposal as branches [E, N * M]; `codes` is [E, N, M, columns]."""
    environments, parents, children = allowed.shape[0], beams.alive.shape[1], codes.shape[2]
    device = codes.device
    branches = torch.arange(parents, device=device).repeat_interleave(children).expand(environments, -1)
    grown = beams.take(beams.memory, branches) if children > 1 else beams
    grown.alive = grown.alive & (allowed.flatten(1) > -torch.inf)
    grown.log_probability = grown.log_probability + log_probability.flatten(1)
    stop = grown.logits.shape[-1] - 1
    codes = codes.flatten(1, 2)
    if columns.start == 0:  # only an observation can begin with the stop token
        stops = (codes[..., 0] == stop) & ~grown.ended
        grown.ended = grown.ended | stops
        grown.lengths = torch.where(stops, depth, grown.lengths)
        grown.value = grown.value.masked_fill(stops, 0)
    codes = codes.masked_fill(grown.ended[..., None], 0)
    if children == 1:
        grown.codes = grown.codes.clone()
    grown.codes[:, :, depth, columns.start : columns.stop] = codes
    return grown


def take_reward(model: TokenModel, beams: Beams, depth: int) -> Beams:
    """Feed the likeliest reward; note its mean, and the mean value that follows."""
    layout = model.layout
    reward = model.expectation(beams.logits, layout.reward).masked_fill(beams.ended, 0)
    token = beams.logits.argmax(-1)
    beams.codes[:, :, depth, layout.reward] = token.masked_fill(beams.ended, 0)
    beams.logits = model.extend(beams.memory, token, layout.reward)
    beams.gathered = beams.gathered + layout.discount**depth * reward
    beams.value = model.expectation(beams.logits, layout.value).masked_fill(beams.ended, 0)
    return beams


def _limit(log_probability: Tensor, top_k: int, nucleus: float) -> Tensor:
    """Log-probabilities with all but the likeliest codes at minus infinity, renormalised."""
    limited = log_probability
    if 0 < top_k < log_probability.shape[-1]:
        least = log_probability.topk(top_k, dim=-1).values[..., -1:]
        limited = limited.masked_fill(log_probability < least, -torch.inf)
    if nucleus < 1:
        falling = log_probability.sort(dim=-1, descending=True).values
        share_before = falling.exp().cumsum(-1) - falling.exp()
        least = falling.masked_fill(share_before >= nucleus, torch.inf).amin(-1, keepdim=True)
        limited = limited.masked_fill(log_probability < least, -torch.inf)
    return limited if limited is log_probability else limited.log_softmax(-1)
