"""A planning step by beam search, against the same search without a cache.

    python tests/benchmarks/planning.py [--pairs 3] [--horizons 5 15] [--device cpu]

Hopper's sizes: 16 tokens a transition, 5 transitions of context, beam 32, 2 continuations a beam, 4 layers of 4 heads
of 32, random weights, one thread. The peer runs the same search in the same model, turn about, but computes every logit
as the published implementation does: a forward pass over all tokens of all beams, with every column's head at every
position. Its plans are checked to be the same. A second peer also crops those sequences to the last 5 transitions, as
the published planner does; it computes less, and finds other plans.

One JSON line a comparison: seconds of CPU time (of a device: of the clock) for one step, and the median over the paired
ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium.spaces
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seqwm.control.beam_search import Plan, SearchOptions, beam_search
from seqwm.control.token_model import TokenModel
from seqwm.core.allocator import keep_freed_memory
from seqwm.core.spaces import space_to_json
from seqwm.methods.trajectory_transformer import TrajectoryTransformer, TrajectoryTransformerConfig

OBSERVATION, ACTION, CODES, CONTEXT, BEAMS = 11, 3, 100, 5, 32


def make_model(horizon: int, device: str) -> TrajectoryTransformer:
    config = TrajectoryTransformerConfig(
        observation_space=space_to_json(gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32)),
        action_space=space_to_json(gymnasium.spaces.Box(-1.0, 1.0, (ACTION,), np.float32)),
        codes=CODES,
        context_length=CONTEXT + horizon,
    )
    torch.manual_seed(0)
    model = TrajectoryTransformer(config).eval()
    discretizer = model.tokenizer.discretizer
    discretizer.counts.fill_(CODES)
    discretizer.values.copy_(torch.linspace(-1, 1, CODES).expand_as(discretizer.values))
    moved: TrajectoryTransformer = model.to(device)
    return moved


@dataclass
class Sequences:
    """Whole sequences of codes, [E, N, tokens]: the memory of a search that caches nothing."""

    codes: Tensor
    children: int = 1

    def fork(self, width: int) -> Sequences:
        return Sequences(self.codes.repeat_interleave(width, 1), width)

    def keep(self, children: Tensor) -> Sequences:
        families = self.codes.view(*children.shape[:2], self.children, -1)
        wide = children[..., None].expand(-1, -1, -1, families.shape[-1])
        return Sequences(families.gather(2, wide).flatten(1, 2), children.shape[2])

    def select(self, branches: Tensor) -> Sequences:
        return Sequences(self.codes.gather(1, branches[..., None].expand(-1, -1, self.codes.shape[-1])))


class Recomputing:
    """The model as the published planner uses it: everything again for every token."""

    def __init__(self, model: TrajectoryTransformer, most_transitions: int | None) -> None:
        self.model, self.layout, self.most = model, model.layout, most_transitions
        self.expectation, self.distance, self.branch_bytes = model.expectation, model.distance, model.branch_bytes

    def prefill(self, codes: Tensor, rows: Tensor, horizon: int) -> tuple[Sequences, Tensor]:
        memory = Sequences(codes.flatten(1)[:, None, : -(self.layout.action + 2)])
        return memory, self.logits(memory)

    def extend(self, memory: Sequences, codes: Tensor, column: int) -> Tensor:
        memory.codes = torch.cat([memory.codes, codes[..., None]], -1)
        return self.logits(memory)

    def logits(self, memory: Sequences) -> Tensor:
        columns, codes = self.layout.columns, memory.codes.flatten(0, 1)
        if self.most is not None:  # whole transitions at a time, to at most this many less one token
            excess = max(codes.shape[1] - (self.most * columns - 1), 0)
            codes = codes[:, -(-excess // columns) * columns :]
        length = codes.shape[1]
        transitions = F.pad(codes, (0, -length % columns)).view(len(codes), -1, columns)
        return self.model(transitions).flatten(1, 2)[:, length - 1].view(*memory.codes.shape[:2], -1)


def timed(device: str, run: Callable[[], Plan]) -> tuple[float, Plan]:
    """Seconds, of the processor or of a device's clock, and the plan."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    began = clock()
    plan = run()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - began, plan


def plan_with(model: TokenModel, horizon: int, environments: int, device: str) -> Callable[[], Plan]:
    generator = torch.Generator().manual_seed(1)
    shape = (environments, CONTEXT, OBSERVATION + ACTION + 2)
    context = torch.randint(0, CODES, shape, generator=generator).to(device)
    rows = torch.full((environments,), CONTEXT, device=device)
    keys = torch.arange(environments, device=device)
    options = SearchOptions(horizon=horizon, beams=BEAMS, expansion=2)
    return lambda: beam_search(model, context, rows, options, keys=keys)


def report(name: str, ours: list[float], peer: list[float], ratios: list[float], unit: str) -> None:
    figures = {"ours": statistics.median(ours), "peer": statistics.median(peer), "ratio": statistics.median(ratios)}
    print(
        json.dumps({"name": name} | {key: round(value, 4) for key, value in figures.items()} | {"unit": unit}),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--horizons", type=int, nargs="+", default=[5, 15])
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does
    device = arguments.device
    torch.set_num_threads(1)
    unit = "CPU seconds a step" if device == "cpu" else "seconds a step"
    for horizon in arguments.horizons:
        model = make_model(horizon, device)
        ours = plan_with(model, horizon, 1, device)
        ours()
        for name, most in (("the same search, whole sequences", None), ("cropped to 5 transitions", CONTEXT)):
            peer = plan_with(Recomputing(model, most), horizon, 1, device)
            pairs = [(timed(device, ours), timed(device, peer)) for _ in range(arguments.pairs)]
            if most is None:
                assert all(torch.equal(mine.codes, theirs.codes) for (_, mine), (_, theirs) in pairs)
            own, others = [mine for (mine, _), _ in pairs], [theirs for _, (theirs, _) in pairs]
            ratios = [b / a for a, b in zip(own, others, strict=True)]
            report(f"planning step, beam 32, horizon {horizon}, against {name}", own, others, ratios, unit)


if __name__ == "__main__":
    main()
