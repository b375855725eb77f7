"""Members of an ensemble in one batched product against separate networks, and each row through its own member.

    python tests/benchmarks/ensemble.py

MBPO's sizes for Hopper: 14 inputs, 12 outputs, 7 members of 4 x 200. One thread, turn about; the best of the rounds in
CPU seconds, since machines are shared. Printed as one line of JSON: `training` is the ratio of separate networks' time
for a gradient step at 256 rows to the batched one's, `rollout` that of one forward of all rows through every member to
each row through one, and `rows_per_second` what the latter steps, 100 000 at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

from seqwm.nn.ensemble import EnsembleOptions, GaussianEnsemble, Normals

INPUTS, OUTPUTS, ROWS, STARTS = 14, 12, 256, 100_000


def separate(options: EnsembleOptions) -> list[nn.Sequential]:
    """The same networks as modules of their own."""
    networks = []
    for _ in range(options.members):
        sizes = [INPUTS, *[options.width] * options.layers]
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())]
        networks.append(nn.Sequential(*layers, nn.Linear(options.width, 2 * OUTPUTS)))
    return networks


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
    ensemble, networks = GaussianEnsemble(options, INPUTS, OUTPUTS), separate(options)
    x, y = torch.randn(options.members, ROWS, INPUTS), torch.randn(options.members, ROWS, OUTPUTS)
    parameters = [p for network in networks for p in network.parameters()]
    optimisers = torch.optim.Adam(ensemble.parameters(), 1e-3), torch.optim.Adam(parameters, 1e-3)

    def batched() -> None:
        optimisers[0].zero_grad(set_to_none=True)
        ensemble.loss(x, y).backward()
        optimisers[0].step()

    def looped() -> None:
        optimisers[1].zero_grad(set_to_none=True)
        for network, own, target in zip(networks, x, y, strict=True):
            said = Normals(*network(own).chunk(2, -1))
            said.negative_log_likelihood(target).mean().backward()
        optimisers[1].step()

    training = fastest({"batched": batched, "looped": looped}, rounds=20)
    starts, member = torch.randn(STARTS, INPUTS), torch.randint(options.members, (STARTS,))
    with torch.no_grad():
        jobs: dict[str, Callable[[], object]] = {
            "own": lambda: ensemble.of_members(starts, member),
            "all": lambda: ensemble(starts),
        }
        stepping = fastest(jobs, rounds=3)
    print(
        json.dumps(
            {
                "training": round(training["looped"] / training["batched"], 2),
                "rollout": round(stepping["all"] / stepping["own"], 2),
                "rows_per_second": round(STARTS / stepping["own"]),
            }
        )
    )


if __name__ == "__main__":
    main()
