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

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from seqwm.control.beams import Beams, propose, take_reward
from seqwm.control.gumbel_noise import GumbelNoise
from seqwm.control.token_model import TokenModel

CPU_BYTES, DEVICE_BYTES = 256 << 20, 4 << 30
"""What the branches of environments that are searched together may remember. All of it is read for every token: more
at once needs fewer calls, less stays nearer to a CPU's caches. A device only has to hold it."""

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
        precision: of the network's large products and of the past that a search reads; 'bf16' takes two thirds of the
            time where many plans are made at once, and may find other plans among those of nearly the same score. It is
            float32 where the machine does not compute in bf16.
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
    precision: Literal["float32", "bf16"] = "float32"

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
    on_cpu = context.device.type == "cpu"
    branches = options.beams * max(model.branch_bytes(options.horizon), 1)
    most = max((CPU_BYTES if on_cpu else DEVICE_BYTES) // branches, 1)
    abreast = min(torch.get_num_threads(), len(context)) if on_cpu else 1
    rounds = -(-len(context) // (most * abreast))

    @torch.inference_mode()  # which a thread has to be told of anew
    def search(part: Tensor) -> Plan:
        noise = GumbelNoise(keys[part]) if options.sample and keys is not None else None
        part_goal = None if goal is None else goal[part]
        return _search(model, context[part], rows[part], options, objective, part_goal, noise)

    parts = torch.arange(len(context), device=context.device).tensor_split(min(rounds * abreast, len(context)))
    plans = [search(part) for part in parts] if abreast == 1 else _side_by_side(search, parts, abreast)
    return Plan(*(torch.cat(leaves) for leaves in zip(*((p.codes, p.scores, p.lengths) for p in plans), strict=True)))


def _side_by_side(search: Callable[[Tensor], Plan], parts: Sequence[Tensor], abreast: int) -> list[Plan]:
    """Every part searched by one of some threads, which have a share of torch's own threads each.

    A search is thousands of small products one after another: threads that share each of them mostly wait for one
    another, threads that share the environments hardly do.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(abreast, initializer=lambda: torch.set_num_threads(threads // abreast)) as pool:
            return list(pool.map(search, parts))
    finally:
        torch.set_num_threads(threads)  # torch also notes the number for threads that it has yet to start


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
    beams = Beams.root(memory, logits, options.horizon, layout.columns)
    for depth in range(options.horizon):
        width = options.expansion * (options.beams if depth == 0 else 1)
        limits = (options.action_top_k, options.action_nucleus)
        beams = propose(model, beams, depth, actions, width, limits, noise, scored=imitates)
        if not imitates:
            beams = take_reward(model, beams, depth)
        if objective == "return":
            beams = beams.best(options.beams, beams.gathered + layout.discount ** (depth + 1) * beams.value)
        elif imitates:
            beams = beams.best(options.beams, beams.log_probability)
        if depth + 1 < options.horizon or objective == "goal":
            beams.logits = model.extend(beams.memory, torch.zeros_like(beams.lengths), layout.value)
            limits = (options.observation_top_k, options.observation_nucleus)
            width = options.expansion if imitates else 1
            beams = propose(model, beams, depth + 1, observation, width, limits, noise, scored=imitates)
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
