"""Resident memory while training from ten million steps: the memory-mapped store against arrays in memory.

    python tests/benchmarks/memory.py [--steps 10000000] [--updates 600]

17 observations, 6 actions, rewards (float32), episodes of 1 000 steps; a small Decision Transformer, batches of 256
windows of 20 steps. Each side runs in a process of its own, which first trains on a thousandth of the data, so that
the network, its optimiser and the libraries are there; growth is the highest resident size from then on, less that,
as a share of the data. The peer holds the same arrays in memory, as CORL and the paper's code do. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import torch

from seqwm.core.types import Batch, Episode, Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.methods.decision_transformer import DecisionTransformer, Options, build

LENGTH, OBSERVATION, ACTION, STEPS, WINDOWS = 1000, 17, 6, 20, 256
SPACES = Spaces(
    gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32),
    gymnasium.spaces.Box(-1, 1, (ACTION,), np.float32),
)


def resident() -> int:
    """Bytes of this process in memory now, those of mapped files included."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def write_store(folder: Path, episodes: int) -> None:
    """Random episodes, the same for every `episodes`."""
    generator = np.random.default_rng(0)
    with contextlib.closing(TrajectoryStore.create(folder, SPACES)) as store:
        for _ in range(episodes):
            observations = generator.standard_normal((LENGTH + 1, OBSERVATION), np.float32)
            actions = generator.random((LENGTH, ACTION), np.float32) * 2 - 1
            rewards = generator.random(LENGTH, np.float32)
            store.append(Episode(observations, actions, rewards, terminated=False, truncated=True))


def from_store(folder: Path) -> Callable[[int], Batch]:
    """Batches of a store."""
    return TrajectoryStore.open(folder).windows(STEPS, WINDOWS, seed=0).batch


def from_arrays(folder: Path) -> Callable[[int], Batch]:
    """Batches of arrays that were read into memory."""
    store = TrajectoryStore.open(folder)
    rows = len(store) * LENGTH
    observations, actions = np.empty((rows, OBSERVATION), np.float32), np.empty((rows, ACTION), np.float32)
    rewards, returns = np.empty(rows, np.float32), np.empty(rows, np.float32)
    for number, episode in enumerate(store.episodes()):
        place = slice(number * LENGTH, (number + 1) * LENGTH)
        observations[place], actions[place] = episode.observations[:-1], episode.actions
        rewards[place] = episode.rewards
        returns[place] = rewards[place][::-1].cumsum(dtype=np.float32)[::-1]
    store.close()
    generator = np.random.default_rng(0)
    valid = torch.ones(WINDOWS, STEPS, dtype=torch.bool)

    def batch(_: int) -> Batch:
        steps = generator.integers(0, LENGTH - STEPS, WINDOWS)
        index = (generator.integers(0, rows // LENGTH, WINDOWS) * LENGTH + steps)[:, None] + np.arange(STEPS)
        take = lambda column: torch.from_numpy(column[index])  # noqa: E731
        return Batch(
            observations=take(observations), actions=take(actions), rewards=take(rewards), terminated=~valid,
            truncated=~valid, valid=valid, timesteps=torch.from_numpy(steps[:, None] + np.arange(STEPS)),
            returns_to_go=take(returns),
        )  # fmt: skip

    return batch


def growth(source: Callable[[Path], Callable[[int], Batch]], small: Path, large: Path, updates: int) -> int:
    """The most that this process grew by, in bytes, over training on `large`."""
    torch.manual_seed(0)
    model: DecisionTransformer = build(Options(layers=1, width=64), TrajectoryStore.open(small))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def train(batches: Callable[[int], Batch], steps: int) -> int:
        highest = 0
        for step in range(steps):
            model.loss(batches(step))[0].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            highest = max(highest, resident())
        return highest

    before = train(source(small), 20)
    return max(train(source(large), updates) - before, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000_000)
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--side", nargs=3, metavar=("KIND", "SMALL", "LARGE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        kind, small, large = given.side
        source = {"store": from_store, "arrays": from_arrays}[kind]
        return print(growth(source, Path(small), Path(large), given.updates))
    with tempfile.TemporaryDirectory() as temporary:
        small, large = Path(temporary) / "small", Path(temporary) / "large"
        episodes = given.steps // LENGTH
        write_store(small, max(episodes // 1000, 1))
        write_store(large, episodes)
        size = episodes * LENGTH * (OBSERVATION + ACTION + 1) * 4
        found = {}
        for kind in ("store", "arrays"):
            command = [
                sys.executable,
                __file__,
                "--updates",
                str(given.updates),
                "--side",
                kind,
                str(small),
                str(large),
            ]
            grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            found[kind] = 100 * grown / size
    line = {
        "name": "resident-growth-while-training",
        "ours": round(found["store"], 2),
        "peer": round(found["arrays"], 2),
        "ratio": round(found["store"] / found["arrays"], 4),
        "unit": "% of the data",
        "data_bytes": size,
    }
    return print(json.dumps(line))


if __name__ == "__main__":
    main()
