"""Windows a second from the memory-mapped store, against d3rlpy's sampler and slices of a torch-formatted `datasets`.

    python tests/benchmarks/windows.py [--pairs 5] [--d3rlpy-python PATH]

One million steps of 17 observations and 6 actions (float32) in episodes of 1 000; windows of 20 steps, torch tensors
out, one thread, all three with what a Decision Transformer trains on: observations, actions, rewards, returns-to-go,
time steps and ends (`datasets` from columns that hold them; it pads nothing). d3rlpy pins another Gymnasium, so it
runs in an environment of its own (`pip install d3rlpy==2.8.1`), whose Python is named; it is left out where none is.
They are timed turn about, a second each, with the same batch size; one JSON line a comparison, the ratio being the
median over the pairs.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

EPISODES, LENGTH, OBSERVATION, ACTION, STEPS, SECONDS = 1000, 1000, 17, 6, 20, 1.0


def rate(batch: Callable[[], object], windows: int) -> float:
    """Windows a second of a function that makes so many at a call."""
    calls, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < SECONDS:
        batch()
        calls += 1
    return calls * windows / passed


def serve_d3rlpy(data: str) -> None:
    """In d3rlpy's own environment: a figure for every batch size that is asked for on standard input."""
    import d3rlpy
    import torch
    from d3rlpy.torch_utility import TorchTrajectoryMiniBatch

    torch.set_num_threads(1)
    rows = np.load(data)
    ends = np.zeros(EPISODES * LENGTH, np.float32)
    ends[LENGTH - 1 :: LENGTH] = 1
    observations, actions, rewards = rows[:, :OBSERVATION], rows[:, OBSERVATION:-1], rows[:, -1:]
    log = d3rlpy.dataset.MDPDataset(observations, actions, rewards, np.zeros_like(ends), ends)

    def batch(size: int) -> TorchTrajectoryMiniBatch:
        return TorchTrajectoryMiniBatch.from_batch(log.sample_trajectory_batch(size, STEPS), "cpu")

    for line in sys.stdin:
        print(f"\nRATE {rate(functools.partial(batch, int(line)), int(line))}", flush=True)


def d3rlpy_rates(python: str, data: Path) -> Callable[[int], float]:
    """Asks a d3rlpy process for windows a second at a batch size."""
    process = subprocess.Popen(
        [python, __file__, "--serve-d3rlpy", str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def ask(size: int) -> float:
        assert process.stdin is not None
        assert process.stdout is not None
        print(size, file=process.stdin, flush=True)
        for line in process.stdout:
            if line.startswith("RATE"):
                return float(line.split()[1])
        raise SystemExit(f"{python}: the d3rlpy process ended with status {process.wait()}")

    return ask


def our_rates(rows: np.ndarray, folder: Path) -> Callable[[int], float]:
    import gymnasium

    from seqwm.core.types import Episode, Spaces
    from seqwm.data.store import TrajectoryStore

    box = gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32)
    written = TrajectoryStore.create(folder, Spaces(box, gymnasium.spaces.Box(-10, 10, (ACTION,), np.float32)))
    for chunk in rows.reshape(EPISODES, LENGTH, -1):
        observations = np.concatenate([chunk[:, :OBSERVATION], chunk[-1:, :OBSERVATION]])
        written.append(Episode(observations, chunk[:, OBSERVATION:-1], chunk[:, -1], terminated=False, truncated=True))
    written.close()
    store = TrajectoryStore.open(folder)
    count = 0

    def measure(size: int) -> float:
        windows = store.windows(STEPS, size, seed=0)

        def batch() -> None:
            nonlocal count
            windows.batch(count)
            count += 1

        return rate(batch, size)

    return measure


def slice_rates(rows: np.ndarray, folder: Path) -> Callable[[int], float]:
    import datasets
    import torch

    rewards = rows[:, -1].reshape(EPISODES, LENGTH)
    table = {
        "observation": rows[:, :OBSERVATION],
        "action": rows[:, OBSERVATION:-1],
        "reward": rewards.ravel(),
        "return_to_go": rewards[:, ::-1].cumsum(1, np.float32)[:, ::-1].ravel(),
        "timestep": np.tile(np.arange(LENGTH), EPISODES),
        "terminated": np.zeros(EPISODES * LENGTH, np.bool_),
        "truncated": np.zeros(EPISODES * LENGTH, np.bool_),
    }
    features = datasets.Features(
        {
            "observation": datasets.Sequence(datasets.Value("float32"), OBSERVATION),
            "action": datasets.Sequence(datasets.Value("float32"), ACTION),
            "reward": datasets.Value("float32"),
            "return_to_go": datasets.Value("float32"),
            "timestep": datasets.Value("int64"),
            "terminated": datasets.Value("bool"),
            "truncated": datasets.Value("bool"),
        }
    )
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(table, features=features).save_to_disk(folder)
    log = datasets.load_from_disk(str(folder)).with_format("torch")
    generator = np.random.default_rng(0)

    def measure(size: int) -> float:
        def batch() -> None:
            starts = generator.integers(0, EPISODES * LENGTH - STEPS, size)
            parts = [log[int(start) : int(start) + STEPS] for start in starts]
            for name in table:
                torch.stack([part[name] for part in parts])

        return rate(batch, size)

    return measure


def compare(
    name: str,
    size: int,
    ours: Callable[[int], float],
    theirs: Callable[[int], float],
    pairs: int,
    batches: bool = False,
) -> None:
    ours(size), theirs(size)
    found = [(ours(size), theirs(size)) for _ in range(pairs)]
    per = size if batches else 1
    line = {
        "name": name,
        "ours": round(statistics.median(own for own, _ in found) / per),
        "peer": round(statistics.median(peer for _, peer in found) / per, 1),
        "ratio": round(statistics.median(own / peer for own, peer in found), 1),
        "unit": f"batches of {size}/s" if batches else "windows/s",
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--d3rlpy-python", help="the Python of an environment that has d3rlpy")
    parser.add_argument("--serve-d3rlpy", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve_d3rlpy:
        return serve_d3rlpy(given.serve_d3rlpy)
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = np.random.default_rng(0).standard_normal((EPISODES * LENGTH, OBSERVATION + ACTION + 1), np.float32)
        ours = our_rates(rows, folder / "store")
        slices = slice_rates(rows, folder / "datasets")
        compare("windows-vs-datasets-torch-slices", 1024, ours, slices, given.pairs, batches=False)
        if given.d3rlpy_python:
            np.save(folder / "rows.npy", rows)
            d3rlpy = d3rlpy_rates(given.d3rlpy_python, folder / "rows.npy")
            compare("windows-vs-d3rlpy", 1024, ours, d3rlpy, given.pairs, batches=False)
            compare("dt-batches-vs-d3rlpy", 64, ours, d3rlpy, given.pairs, batches=True)
    return None


if __name__ == "__main__":
    main()
