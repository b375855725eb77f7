"""Beam search over the tokens of an autoregressive trajectory model, batched over environments and beams.

A transition is a row of D codes in the order observation, action, reward, value. The search stands behind an
observation. For each of H transitions it

1. proposes action sequences for every beam (the likeliest, or a sample without replacement: stochastic beam search,
   Kool, van Hoof and Welling 2019), all from one root at first, since all beams begin as the same past;
2. reads the expected reward and the expected value of each, and feeds the likeliest reward;
3. keeps the best `beams` by the objective and imagines the next observation of those only.

Objectives (Janner, Li and Levine 2021, section 3.2):

    return       sum_{h<t} g^h r_h + g^t v_{t-1}: the value, which excludes its own reward, stands for what follows.
    goal         minus the distance of the nearest imagined observation to the goal.
    likelihood   the log-probability of the imagined codes, values left out: imitation.

An imagined stop token ends a beam: what it has gathered stays, nothing follows, and it competes on with that. A search
with room for every sequence is exhaustive, and then finds the maximum of its objective.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from seqwm.control.gumbel_noise import GumbelNoise
from seqwm.tokenizers.transition import TokenLayout

CPU_BYTES, DEVICE_BYTES = 32 << 20, 4 << 30
"""What the branches of environments that are searched together may remember. A CPU slows down by half where that
outgrows its cache, since all of it is read for every token; a device only has to hold it."""

Objective = Literal["return", "goal", "likelihood"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How wide, how deep and how daring a search is.

    Attributes:
        horizon: transitions that a plan looks ahead, H.
        beams: plans kept after each transition.
        expansion: action sequences tried for each of them (and, for likelihood, observations).
        context: transitions of the past that the search stands on, the present one included; null takes what the
            model's context leaves beside the horizon.
        sample: draw proposals from the model's distribution; otherwise take the likeliest.
        action_top_k, action_nucleus: actions come from the likeliest k codes of each column, and from the smallest set
            of codes that holds this share of probability; 0 and 1 are no limit. (The published `cdf_act` names the
            share that is cut off, 0.6, and so keeps 0.4.)
        observation_top_k, observation_nucleus: the same of imagined observations; 1 takes the likeliest code.
        plan_every: steps that a plan is followed before the next is made.
    """

    horizon: int = 5
    beams: int = 32
    expansion: int = 2
    context: int | None = None
    sample: bool = True
    action_top_k: int = 0
    action_nucleus: float = 1.0
    observation_top_k: int = 1
    observation_nucleus: float = 1.0
    plan_every: int = 1

    def __post_init__(self) -> None:
        for name in ("horizon", "beams", "expansion", "context", "plan_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: found {value}, expected at least 1")
        for name in ("action_nucleus", "observation_nucleus"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected a share above 0 and at most 1")
        if self.plan_every > self.horizon:
            raise ValueError(
                f"plan_every: found {self.plan_every}, expected at most the horizon, {self.horizon}: "
                "a plan cannot be followed beyond its end"
            )


class Memory(Protocol):
    """What a model knows of the past of N branches in each of E environments; `extend` adds to it."""

    def fork(self, width: int) -> Memory:
        """Every branch becomes `width` children that share its past."""
        ...

    def keep(self, children: Tensor) -> Memory:
        """Of the children of one fork, those named by number, int64 [E, N, M]; one may be named more than once."""
        ...

    def select(self, branches: Tensor) -> Memory:
        """The branches named by number, int64 [E, M], as branches of their own."""
        ...


class TokenModel(Protocol):
    """An autoregressive model of transitions, one code after another. Logits are [E, N, V + 1], the stop token last."""

    @property
    def layout(self) -> TokenLayout:
        """What the codes are."""
        ...

    def prefill(self, codes: Tensor, rows: Tensor, horizon: int) -> tuple[Memory, Tensor]:
        """Memory of one branch an environment, and the logits of its first action code.

        Args:
            codes: int64 [E, R, D], the past transitions first; of the last one only the observation is read.
            rows: int64 [E], how many of them are there.
            horizon: transitions that will follow at most.
        """
        ...

    def branch_bytes(self, horizon: int) -> int:
        """What one branch remembers of that many transitions."""
        ...

    def extend(self, memory: Memory, codes: Tensor, column: int) -> Tensor:
        """Append codes int64 [E, N] of one column to the memory; the logits of the column that follows."""
        ...

    def expectation(self, logits: Tensor, column: int) -> Tensor:
        """The mean value float32 [E, N] of one column under its logits."""
        ...

    def distance(self, codes: Tensor, goal: Tensor) -> Tensor:
        """Distance float32 [E, N] of observation codes [E, N, O] to goals float32 [E, O], NaN where one is free."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What a search found, the best first.

    Attributes:
        codes: int64 [E, N, H, D], row h holding the observation *before* action h, the action, its likeliest reward
            and no value (0); the first row's observation is the present one and left 0.
        scores: float32 [E, N], of the objective; minus infinity for beams that hold no sequence.
        lengths: int64 [E, N], transitions until the end: H, or less where a stop token was imagined.
    """

    codes: Tensor
    scores: Tensor
    lengths: Tensor


@torch.inference_mode()
def beam_search(
    model: TokenModel,
    context: Tensor,
    rows: Tensor,
    options: SearchOptions,
    *,
    objective: Objective = "return",
    goal: Tensor | None = None,
    keys: Tensor | None = None,
) -> Plan:
    """The best continuations of E contexts.

    Args:
        model: predicts codes.
        context: int64 [E, R, D], transitions; the last one's observation is the present.
        rows: int64 [E], how many of the R are there.
        options: width, depth, limits.
        objective: what is maximised.
        goal: float32 [E, O], for the objective 'goal'; NaN in columns that may be anything.
        keys: int64 [E], names the draws of each environment; required where `options.sample`.
    """
    if (goal is None) == (objective == "goal"):
        raise ValueError(f"objective '{objective}' {'needs a goal' if goal is None else 'takes no goal'}")
    if options.sample and keys is None:
        raise ValueError("a search that samples needs keys; pass them or set `sample` to false")
    together = (CPU_BYTES if context.device.type == "cpu" else DEVICE_BYTES) // (
        options.beams * max(model.branch_bytes(options.horizon), 1)
    )
    together = max(together, 1)
    plans = []
    for first in range(0, len(context), together):
        part = slice(first, first + together)
        noise = GumbelNoise(keys[part]) if options.sample and keys is not None else None
        part_goal = None if goal is None else goal[part]
        plans.append(_search(model, context[part], rows[part], options, objective, part_goal, noise))
    return Plan(*(torch.cat(leaves) for leaves in zip(*((p.codes, p.scores, p.lengths) for p in plans), strict=True)))


def _search(
    model: TokenModel,
    context: Tensor,
    rows: Tensor,
    options: SearchOptions,
    objective: Objective,
    goal: Tensor | None,
    noise: GumbelNoise | None,
) -> Plan:
    layout, imitates = model.layout, objective == "likelihood"
    actions = range(layout.observation, layout.reward + imitates)  # imitation proposes rewards like actions
    observation = range(layout.observation)
    memory, logits = model.prefill(context, rows, options.horizon)
    beams = _Beams.root(memory, logits, options.horizon, layout.columns)
    for depth in range(options.horizon):
        width = options.expansion * (options.beams if depth == 0 else 1)
        limits = (options.action_top_k, options.action_nucleus)
        beams = _propose(model, beams, depth, actions, width, limits, noise, scored=imitates)
        if not imitates:
            beams = _take_reward(model, beams, depth)
        if objective == "return":
            beams = beams.best(options.beams, beams.gathered + layout.discount ** (depth + 1) * beams.value)
        elif imitates:
            beams = beams.best(options.beams, beams.log_probability)
        if depth + 1 < options.horizon or objective == "goal":
            beams.logits = model.extend(beams.memory, torch.zeros_like(beams.lengths), layout.value)
            limits = (options.observation_top_k, options.observation_nucleus)
            width = options.expansion if imitates else 1
            beams = _propose(model, beams, depth + 1, observation, width, limits, noise, scored=imitates)
            if goal is not None:
                distance = model.distance(beams.observation(depth + 1, layout.observation), goal)
                beams.nearest = torch.where(beams.ended, beams.nearest, torch.minimum(beams.nearest, distance))
                beams = beams.best(options.beams, -beams.nearest)
            elif imitates:
                beams = beams.best(options.beams, beams.log_probability)
    match objective:
        case "return":
            scores = beams.gathered + layout.discount**options.horizon * beams.value
        case "goal":
            scores = -beams.nearest
        case "likelihood":
            scores = beams.log_probability
    beams = beams.best(options.beams, scores)
    return Plan(beams.codes[:, :, : options.horizon], beams.scores, beams.lengths)


@dataclass(slots=True)
class _Beams:
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
    def root(cls, memory: Memory, logits: Tensor, horizon: int, columns: int) -> _Beams:
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
        return self.codes[:, :, depth, :columns]

    def take(self, memory: Memory, branches: Tensor) -> _Beams:
        """The named branches [E, M], over a memory in which they stand already."""

        def gather(leaf: Tensor) -> Tensor:
            return leaf.gather(1, branches)

        wide = branches[:, :, None, None].expand(-1, -1, *self.codes.shape[2:])
        return _Beams(
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

    def best(self, beams: int, scores: Tensor) -> _Beams:
        """The `beams` branches with the highest scores [E, N], the best first; dead ones come last."""
        scores, branches = scores.masked_fill(~self.alive, -torch.inf).topk(min(beams, scores.shape[1]), dim=1)
        kept = self.take(self.memory.select(branches), branches)
        kept.logits = self.logits.gather(1, branches[:, :, None].expand(-1, -1, self.logits.shape[2]))
        kept.scores = scores
        return kept


def _propose(
    model: TokenModel,
    beams: _Beams,
    depth: int,
    columns: range,
    width: int,
    limits: tuple[int, float],
    noise: GumbelNoise | None,
    *,
    scored: bool,
) -> _Beams:
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
    beams: _Beams, depth: int, columns: range, codes: Tensor, allowed: Tensor, log_probability: Tensor
) -> _Beams:
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


def _take_reward(model: TokenModel, beams: _Beams, depth: int) -> _Beams:
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
