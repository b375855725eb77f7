"""An ensemble's gradient step against separate networks in a loop, and its rollouts against ways that peers step.

    python tests/benchmarks/ensemble.py

MBPO's sizes for Hopper: 14 inputs, 13 outputs (change, reward, end), 7 members of 4 x 200, 5 of them elites. One
thread, turn about; the best of the rounds in CPU seconds, since machines are shared. Printed as one line of JSON:

    training     separate torch networks' time for a gradient step at 256 rows over the ensemble's, both with fused Adam
    everyone     the time of one batched forward of all rows through every elite over that of a whole step of the world,
                 in which each row goes through one (draws, standardisation, reward and end are in it)
    shared_out   the same of one batched forward of a fifth of the rows through each elite, mbrl-lib's `random_model`
    transitions_per_second    of the world, 100 000 starts at once

The other ways are float32, as they come. A second line has the ensemble with `precision: bf16`, and beside each ratio
(`..._both`) the one to the other way with its own products in bf16, by `torch.autocast` or bf16 weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box
from torch import Tensor, nn

from seqwm.nn.ensemble import EnsembleOptions, Normals
from seqwm.nn.ensemble_world import EnsembleWorld

FEATURES, ACTIONS, ROWS, STARTS = 11, 3, 256, 100_000
INPUTS = FEATURES + ACTIONS


def separate(options: EnsembleOptions) -> list[nn.Sequential]:
    """The same networks as modules of their own."""
    networks = []
    for _ in range(options.members):
        sizes = [INPUTS, *[options.width] * options.layers]
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())]
        networks.append(nn.Sequential(*layers, nn.Linear(options.width, 2 * (FEATURES + 2))))
    return networks


def batched(weights: list[Tensor], biases: list[Tensor], x: Tensor) -> Tensor:
    """One product a layer for all members, [M, B, I]."""
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = F.silu(torch.baddbmm(bias, x, weight.mT))
    return torch.baddbmm(biases[-1], x, weights[-1].mT)


def fastest(jobs: dict[Any, Callable[[], object]], rounds: int) -> dict[Any, float]:
    """CPU seconds of each job, the best of its turns."""
    seconds = {name: float("inf") for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            begin = time.process_time()
            job()
            if turn:  # the first is for warming up
                seconds[name] = min(seconds[name], time.process_time() - begin)
    return seconds


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spaces = Box(-np.inf, np.inf, (FEATURES,), np.float32), Box(-1.0, 1.0, (ACTIONS,), np.float32)
    kinds: tuple[Literal["float32", "bf16"], ...] = ("float32", "bf16")
    worlds = {kind: EnsembleWorld(EnsembleOptions(precision=kind), "TS-1", *spaces) for kind in kinds}
    options, networks = EnsembleOptions(), separate(EnsembleOptions())
    x, y = torch.randn(options.members, ROWS, INPUTS), torch.randn(options.members, ROWS, FEATURES + 2)
    y[..., -1] = (y[..., -1] > 0).float()  # the end
    optimisers = {
        kind: torch.optim.Adam(world.ensemble.parameters(), 1e-3, fused=True) for kind, world in worlds.items()
    }
    separately = torch.optim.Adam([p for network in networks for p in network.parameters()], 1e-3, fused=True)

    def own(kind: Literal["float32", "bf16"]) -> None:
        worlds[kind].ensemble.learn(x, y)
        optimisers[kind].step()

    def looped(kind: Literal["float32", "bf16"]) -> None:
        separately.zero_grad(set_to_none=True)
        for network, rows, target in zip(networks, x, y, strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
                outputs = network(rows).float()
            said = Normals(*outputs.chunk(2, -1), flags=1)
            said.negative_log_likelihood(target).mean().backward()
        separately.step()

    jobs: dict[Any, Callable[[], object]] = {
        (side.__name__, kind): partial(side, kind) for kind in kinds for side in (own, looped)
    }
    training = fastest(jobs, rounds=40)
    elites, ensemble = options.elites, worlds["float32"].ensemble
    starts, generator = torch.randn(STARTS, INPUTS), torch.Generator()
    state = {"observation": starts[:, :FEATURES].contiguous(), "member": torch.full((STARTS,), -1)}
    jobs = {}
    for kind, dtype in zip(kinds, (torch.float32, torch.bfloat16), strict=True):
        weights, biases = (
            [p.detach()[:elites].to(dtype) for p in some] for some in (ensemble.weights, ensemble.biases)
        )
        rows = starts.to(dtype)
        jobs["own", kind] = partial(worlds[kind].step, state, starts[:, FEATURES:], generator)
        jobs["everyone", kind] = partial(batched, weights, biases, rows.expand(elites, -1, -1))
        jobs["shared_out", kind] = partial(batched, weights, biases, rows.view(elites, -1, INPUTS))
    with torch.no_grad():
        stepping = fastest(jobs, rounds=5)
    for kind in kinds:
        figures: dict[str, object] = {"precision": kind}
        for name, seconds, other in (
            ("training", training, "looped"),
            *((n, stepping, n) for n in ("everyone", "shared_out")),
        ):
            figures[name] = round(seconds[other, "float32"] / seconds["own", kind], 2)
            if kind == "bf16":
                figures[f"{name}_both"] = round(seconds[other, kind] / seconds["own", kind], 2)
        figures["transitions_per_second"] = round(STARTS / stepping["own", kind])
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
