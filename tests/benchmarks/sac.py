"""Updates a second of our soft actor-critic and of Stable-Baselines3's, at the same sizes.

    python tests/benchmarks/sac.py

Two hidden layers of 256 in the actor and in each critic, batches of 256 rows drawn from 10 000, a learned temperature,
slow critics moved after every update. One thread, turn about in one process, CPU seconds since machines are shared; the
ratio is the median over paired turns. `without_onednn` is the same with torch's own products: what the choice of the
library for products has of the gain. `bf16` is ours with the products between hidden layers in bf16; the peer has no
such setting. A line of JSON each for the sizes of Pendulum-v1 and of Hopper-v5.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from seqwm.control.experience import ExperienceTable, draw_mixed
from seqwm.control.soft_actor_critic import SoftActorCritic, SoftActorCriticOptions, SoftActorCriticUpdates
from seqwm.core.types import Episode, Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.methods import stable_baselines
from seqwm.nn import perceptron
from seqwm.training.options import TrainOptions

ROWS, BATCH, TURNS, UPDATES = 10_000, 256, 8, 40
SIZES = {"pendulum": (3, 1), "hopper": (11, 3)}


def ours(features: int, entries: int, precision: Any = "float32") -> Callable[[], object]:
    options, action = SoftActorCriticOptions(precision=precision), spaces.Box(-1.0, 1.0, (entries,), np.float32)
    networks = SoftActorCritic(options, features, action)
    updates, generator = SoftActorCriticUpdates(networks, 3e-4), torch.Generator().manual_seed(0)
    real, imagined = (ExperienceTable(features, entries) for _ in range(2))
    real.append(torch.randn(ROWS, 2 * features + entries + 2, generator=generator))
    return lambda: updates.update(draw_mixed(real, imagined, BATCH, 1.0, generator), generator)


def theirs(features: int, entries: int) -> Callable[[], object]:
    generator = np.random.default_rng(0)
    seen, action = spaces.Box(-np.inf, np.inf, (features,), np.float32), spaces.Box(-1.0, 1.0, (entries,), np.float32)
    store = TrajectoryStore.create(None, Spaces(seen, action))
    for _ in range(ROWS // 200):
        observations = generator.standard_normal((201, features)).astype(np.float32)
        actions = generator.uniform(-1, 1, (200, entries)).astype(np.float32)
        store.append(Episode(observations, actions, generator.standard_normal(200).astype(np.float32), False, True))
    options = stable_baselines.Options(algorithm="sac", settings={"buffer_size": ROWS})
    train = TrainOptions(steps=10**6, batch_size=BATCH, learning_rate=3e-4)
    algorithm = stable_baselines.learner(options, store, train, 0).algorithm
    return lambda: algorithm.train(1, BATCH)


def rate(update: Callable[[], object]) -> float:
    """Updates in a CPU second."""
    begin = time.process_time()
    for _ in range(UPDATES):
        update()
    return UPDATES / (time.process_time() - begin)


def main() -> None:
    torch.set_num_threads(1)
    for name, sizes in SIZES.items():
        torch.manual_seed(0)
        own, half, peer = ours(*sizes), ours(*sizes, "bf16"), theirs(*sizes)
        available = perceptron._ONEDNN
        turns = []
        for _ in range(TURNS + 1):
            mine, other, low = rate(own), rate(peer), rate(half)
            perceptron._ONEDNN = False
            plain = rate(own)
            perceptron._ONEDNN = available
            turns.append((mine, other, plain, low))
        mine, other, plain, low = (statistics.median(side) for side in zip(*turns[1:], strict=True))
        figures = {"name": f"sac-{name}", "unit": "updates/cpu-s", "ours": round(mine, 1), "peer": round(other, 1)}
        figures |= {"without_onednn": round(plain, 1), "bf16": round(low, 1)}
        figures["ratio"] = round(statistics.median(a / b for a, b, *_ in turns[1:]), 2)
        figures["ratio_without_onednn"] = round(statistics.median(c / b for _, b, c, _ in turns[1:]), 2)
        figures["ratio_bf16"] = round(statistics.median(d / b for _, b, _, d in turns[1:]), 2)
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
