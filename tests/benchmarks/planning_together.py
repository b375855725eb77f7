"""Plans a second: 16 environments searched at once against one environment alone.

    python tests/benchmarks/planning_together.py [--pairs 3] [--horizons 5 15] [--threads 1] [--device cpu]

Sizes as in `planning.py`. Both sides run turn about with the same threads and the same precision, first float32, then
products in bfloat16 (`planner.precision: bf16`); one thread is timed by its processor time, more threads by the clock.

One environment's 32 beams are matrices already, so that there is less to gain from more of them than their number
suggests. Each line therefore says what arithmetic there is: `gflop` of one plan, `reached` GFLOP a second by both
sides, `products` GFLOP a second that this machine reaches in the network's largest product alone with the rows of 16
environments, and `bound`, the ratio if a plan were nothing but products at that rate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from planning import BEAMS, make_model, plan_with
from torch.utils.flop_counter import FlopCounterMode

from seqwm.core.allocator import keep_freed_memory

MANY = 16


def seconds(run: Callable[[], object], device: str) -> float:
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    began = clock()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - began


def product_rate(dtype: torch.dtype, device: str) -> float:
    """GFLOP a second of 128 columns to 512, for the rows that two children a beam make."""
    rows = MANY * BEAMS * 2
    left, weight = torch.randn(rows, 128, device=device, dtype=dtype), torch.randn(512, 128, device=device, dtype=dtype)
    best = min(seconds(lambda: [F.linear(left, weight) for _ in range(10)], device) for _ in range(20))
    return 10 * 2 * rows * 128 * 512 / best / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--horizons", type=int, nargs="+", default=[5, 15])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does
    device, threads = arguments.device, arguments.threads
    torch.set_num_threads(threads)
    for horizon in arguments.horizons:
        exact = make_model(horizon, device)
        for precision, model in (("float32", exact), ("bf16", exact.with_half_products())):
            one, many = plan_with(model, horizon, 1, device), plan_with(model, horizon, MANY, device)
            with FlopCounterMode(display=False) as counter:
                one()
            gflop = counter.get_total_flops() / 1e9
            pairs = [(seconds(one, device), seconds(many, device) / MANY) for _ in range(arguments.pairs)]
            alone, together = (statistics.median(side) for side in zip(*pairs, strict=True))
            rate = product_rate(torch.float32 if precision == "float32" else torch.bfloat16, device)
            figures = {
                "ours": 1 / together,
                "peer": 1 / alone,
                "ratio": statistics.median(a / b for a, b in pairs),
                "gflop": gflop,
                "reached": [gflop / together, gflop / alone],
                "products": rate,
                "bound": alone * rate / gflop,
            }
            name = f"planning for {MANY} environments at once against one, horizon {horizon}, {precision}"
            rounded = {
                key: [round(each, 3) for each in value] if isinstance(value, list) else round(value, 3)
                for key, value in figures.items()
            }
            print(json.dumps({"name": name, "threads": threads} | rounded | {"unit": "plans a second"}), flush=True)


if __name__ == "__main__":
    main()
