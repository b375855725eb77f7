"""Update of Dreamer V3 at equal sizes and starts against NM512/r2dreamer, turn about in one process.

    git clone https://github.com/NM512/r2dreamer && pip install tensordict omegaconf
    python tests/benchmarks/dreamer_step.py [--peer r2dreamer] [--pairs 6] [--threads 1]

Two sizes: what CartPole-v1 needs (4 numbers, 2 actions, 16 windows of 32 rows, 512 starts), and danijar/dreamerv3's
size1m on a walker (24 numbers, 6 actions, 16 windows of 64 rows, 1 024 starts; both count 640 867 parameters). Each
update is the whole of it: world, 15 imagined steps from every row, actor, critic on imagined and logged rows, slow
critic, LaProp with clipping; ours draws its windows from a store of short episodes, too. The peer runs its 'dreamer'
loss in float32, uncompiled. Times are those of the processor, so that a busy machine is no argument; one JSON line a
size, the ratio is the median over pairs. Without --peer, ours alone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from seqwm.core.types import Episode, Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.methods import dreamer
from seqwm.training.options import TrainOptions

LANES = 16
SIZES: dict[str, dict[str, Any]] = {
    "cartpole": {
        "observation": 4, "action": spaces.Discrete(2), "rows": 32,
        "deterministic": 256, "classes": 16, "stochastic": 16, "width": 128,
    },
    "size1m-walker": {
        "observation": 24, "action": spaces.Box(-1.0, 1.0, (6,), np.float32), "rows": 64,
        "deterministic": 512, "classes": 4, "stochastic": 32, "width": 64,
    },
}  # fmt: skip


def ours(size: dict[str, Any]) -> tuple[Callable[[], float], int]:
    generator = np.random.default_rng(0)
    both = Spaces(spaces.Box(-np.inf, np.inf, (size["observation"],), np.float32), size["action"])
    store = TrajectoryStore.create(None, both)
    size["action"].seed(0)
    for _ in range(200):
        seen = generator.standard_normal((21, size["observation"])).astype(np.float32)
        actions = np.stack([size["action"].sample() for _ in range(20)])
        store.append(Episode(seen, actions, np.ones(20, np.float32), True, False))
    options = dreamer.Options(
        sequence_length=size["rows"],
        hidden=size["width"],
        imagined_rows=size["rows"],
        **{name: size[name] for name in ("deterministic", "classes", "stochastic", "width")},
    )
    learner = dreamer.learner(options, store, TrainOptions(steps=1, batch_size=LANES, gradient_clip=0.3), seed=0)
    steps = iter(range(10**9))

    def step() -> float:
        began = time.process_time()
        learner.update(next(steps))
        return time.process_time() - began

    return step, sum(p.numel() for p in learner.model.parameters() if p.requires_grad)


def peer(size: dict[str, Any], folder: Path) -> tuple[Callable[[], float], int]:
    sys.path.insert(0, str(folder))
    module: Any = importlib.import_module("dreamer")
    configuration: Any = importlib.import_module("omegaconf").OmegaConf
    tensordict: Any = importlib.import_module("tensordict")
    module.autocast = lambda **_: contextlib.nullcontext()
    model = configuration.load(folder / "configs/model/_base_.yaml")
    model |= {"deter": size["deterministic"], "hidden": size["width"], "discrete": size["classes"]}
    model |= {"units": size["width"], "depth": 4, "act": "SiLU", "norm": True, "compile": False, "rep_loss": "dreamer"}
    model.rssm.stoch = size["stochastic"]
    keys = {"mlp_keys": "state", "cnn_keys": "$^"}
    whole = configuration.create({"device": "cpu", "model": model, "env": {"encoder": keys, "decoder": keys}})
    seen = spaces.Dict({"state": spaces.Box(-np.inf, np.inf, (size["observation"],), np.float32)})
    action = size["action"]
    discrete = isinstance(action, spaces.Discrete)
    known = SimpleNamespace(n=int(action.n), discrete=True) if discrete else action
    with contextlib.redirect_stdout(io.StringIO()):
        learner = module.Dreamer(whole.model, seen, known)
    lanes, rows, width = LANES, size["rows"], int(action.n) if discrete else action.shape[0]
    generator = torch.Generator().manual_seed(0)
    first = (torch.arange(rows) % 21 == 0).expand(lanes, rows)
    last = (torch.arange(rows) % 21 == 20).expand(lanes, rows)
    codes = torch.randint(width, (lanes, rows), generator=generator)
    data = tensordict.TensorDict(
        {
            "state": torch.randn(lanes, rows, size["observation"], generator=generator),
            "action": torch.nn.functional.one_hot(codes, width).float(),
            "reward": (~first).float()[..., None],
            "is_first": first.clone(),
            "is_last": last.clone()[..., None],
            "is_terminal": last.clone()[..., None],
        },
        batch_size=(lanes, rows),
    )
    start = (
        torch.zeros(lanes, size["stochastic"], size["classes"]),
        torch.zeros(lanes, size["deterministic"]),
    )

    class Replay:
        def sample(self) -> Any:
            return data.clone(), None, start

        def update(self, index: None, stoch: torch.Tensor, deter: torch.Tensor) -> None:
            pass

    def step() -> float:
        began = time.process_time()
        learner.update(Replay())
        return time.process_time() - began

    return step, sum(p.numel() for p in learner._named_params.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a checkout of NM512/r2dreamer")
    parser.add_argument("--pairs", type=int, default=6, help="paired updates of each comparison")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, size in SIZES.items():
        torch.manual_seed(0)
        mine, parameters = ours(size)
        figures: dict[str, Any] = {"name": f"dreamer-v3-{name}", "parameters": parameters, "unit": "updates/cpu-s"}
        if options.peer is None:
            mine(), mine()
            figures["ours"] = round(1 / statistics.median(mine() for _ in range(options.pairs)), 3)
        else:
            theirs, figures["peer_parameters"] = peer(size, options.peer.resolve())
            for _ in range(2):
                mine(), theirs()
            pairs = [(mine(), theirs()) for _ in range(options.pairs)]
            own, other = (statistics.median(side) for side in zip(*pairs, strict=True))
            figures |= {"ours": round(1 / own, 3), "peer": round(1 / other, 3)}
            figures["ratio"] = round(statistics.median(b / a for a, b in pairs), 2)
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
