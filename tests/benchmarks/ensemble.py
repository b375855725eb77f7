"""An ensemble's gradient step against separate networks in a loop, and its rollouts against ways that peers step.

    python tests/benchmarks/ensemble.py

MBPO's sizes for Hopper: 14 inputs, 13 outputs (change, reward, end), 7 members of 4 x 200, 5 of them elites. One
thread, turn about; the best of the rounds in CPU seconds, since machines are shared. Printed as one line of JSON:

    training     separate torch networks' time for a gradient step at 256 rows over the ensemble's, both with fused Adam
    everyone     the time of one batched forward of all rows through every elite over that of a whole step of the world,
                 in which each row goes through one (draws, standardisation, reward and end are in it)
    shared_out   the same of one batched forward of a fifth of the rows through each elite, mbrl-lib's `random_model`
    transitions_per_second    of the world, 100 000 starts at once
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import pairwise

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


def fastest(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
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
    options = EnsembleOptions()
    spaces = Box(-np.inf, np.inf, (FEATURES,), np.float32), Box(-1.0, 1.0, (ACTIONS,), np.float32)
    world, networks = EnsembleWorld(options, "TS-1", *spaces), separate(options)
    ensemble = world.ensemble
    x, y = torch.randn(options.members, ROWS, INPUTS), torch.randn(options.members, ROWS, FEATURES + 2)
    y[..., -1] = (y[..., -1] > 0).float()  # the end
    parameters = [p for network in networks for p in network.parameters()]
    optimisers = [torch.optim.Adam(some, 1e-3, fused=True) for some in (ensemble.parameters(), parameters)]

    def own() -> None:
        ensemble.learn(x, y)
        optimisers[0].step()

    def looped() -> None:
        optimisers[1].zero_grad(set_to_none=True)
        for network, rows, target in zip(networks, x, y, strict=True):
            said = Normals(*network(rows).chunk(2, -1), flags=1)
            said.negative_log_likelihood(target).mean().backward()
        optimisers[1].step()

    training = fastest({"own": own, "looped": looped}, rounds=40)
    elites = options.elites
    weights, biases = ([p.detach()[:elites] for p in some] for some in (ensemble.weights, ensemble.biases))
    starts, generator = torch.randn(STARTS, INPUTS), torch.Generator()
    state = {"observation": starts[:, :FEATURES].contiguous(), "member": torch.full((STARTS,), -1)}
    with torch.no_grad():
        jobs: dict[str, Callable[[], object]] = {
            "own": lambda: world.step(state, starts[:, FEATURES:], generator),
            "everyone": lambda: batched(weights, biases, starts.expand(elites, -1, -1)),
            "shared_out": lambda: batched(weights, biases, starts.view(elites, -1, INPUTS)),
        }
        stepping = fastest(jobs, rounds=5)
    print(
        json.dumps(
            {
                "training": round(training["looped"] / training["own"], 2),
                "everyone": round(stepping["everyone"] / stepping["own"], 2),
                "shared_out": round(stepping["shared_out"] / stepping["own"], 2),
                "transitions_per_second": round(STARTS / stepping["own"]),
            }
        )
    )


if __name__ == "__main__":
    main()
