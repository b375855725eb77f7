"""Update of Dreamer V3, in float32 and with products in bf16, at equal sizes and starts against NM512/r2dreamer and
sheeprl, turn about in one process.

    git clone https://github.com/NM512/r2dreamer && pip install tensordict omegaconf
    pip install --no-deps sheeprl lightning pytorch-lightning lightning-utilities torchmetrics hydra-core
    python tests/benchmarks/dreamer_step.py [--r2dreamer r2dreamer] [--sheeprl] [--rounds 6] [--threads 1]

Two sizes: what CartPole-v1 needs (4 numbers, 2 actions, 16 windows of 32 rows, 512 starts), and danijar/dreamerv3's
size1m on a walker (24 numbers, 6 actions, 16 windows of 64 rows, 1 024 starts). Parameters are counted and equal. Each
update is the whole of it: world, 15 imagined steps from every row, actor, critic on imagined and logged rows, slow
critic, LaProp with clipping; ours draws its windows from a store of short episodes, too. r2dreamer runs its 'dreamer'
loss, in float32, sheeprl its `dreamer_v3_5`, in float32 and in its own `bf16-mixed`, both as they come, uncompiled.
danijar/dreamerv3 computes in bf16, as ours does with `train.precision: bf16`. Times are those of the processor, so that
a busy machine is no argument; one JSON line a size. `ratio_float32` is how many updates ours in float32 makes in the
time of one of each other side, `ratio_bf16` the same of ours in bf16; both are medians over rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
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


def ours(size: dict[str, Any], precision: Any = "float32") -> tuple[Callable[[], float], int]:
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
    train = TrainOptions(steps=1, batch_size=LANES, gradient_clip=0.3, precision=precision)
    learner = dreamer.learner(options, store, train, seed=0)
    steps = iter(range(10**9))

    def step() -> float:
        began = time.process_time()
        learner.update(next(steps))
        return time.process_time() - began

    return step, sum(p.numel() for p in learner.model.parameters() if p.requires_grad)


def r2dreamer(size: dict[str, Any], folder: Path) -> tuple[Callable[[], float], int]:
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


def sheeprl(size: dict[str, Any], precision: Any = "32-true") -> tuple[Callable[[], float], int]:
    hydra: Any = importlib.import_module("hydra")
    configuration: Any = importlib.import_module("omegaconf").OmegaConf
    module: Any = importlib.import_module("sheeprl.algos.dreamer_v3_5.dreamer_v3_5")
    agent: Any = importlib.import_module("sheeprl.algos.dreamer_v3_5.agent")
    moments: Any = importlib.import_module("sheeprl.algos.dreamer_v3.utils").Moments(0.99, 1.0, 0.05, 0.95)
    importlib.import_module("sheeprl.utils.timer").timer.disabled = True
    importlib.import_module("sheeprl.utils.metric").MetricAggregator.disabled = True
    lanes, rows, action = LANES, size["rows"], size["action"]
    discrete = isinstance(action, spaces.Discrete)
    actions = (int(action.n),) if discrete else action.shape
    keys = [f"algo.{kind}_keys.{side}={names}" for kind, names in (("cnn", "[]"), ("mlp", "[state]"))
            for side in ("encoder", "decoder")]  # fmt: skip
    sizes = {
        "dense_units": size["width"], "world_model.discrete_size": size["classes"],
        "world_model.stochastic_size": size["stochastic"],
        "world_model.recurrent_model.recurrent_state_size": size["deterministic"],
        "world_model.recurrent_model.hidden_size": size["width"],
        "per_rank_batch_size": lanes, "per_rank_sequence_length": rows, "replay_context": 0,
    }  # fmt: skip
    changes = ["exp=dreamer_v3_5", "env=gym", *keys, *(f"algo.{name}={value}" for name, value in sizes.items())]
    with hydra.initialize_config_module("sheeprl.configs", version_base="1.3"):
        whole = configuration.to_container(hydra.compose("config", overrides=changes), resolve=True)
    whole = importlib.import_module("sheeprl.utils.utils").dotdict(whole)
    fabric = importlib.import_module("lightning.fabric").Fabric(accelerator="cpu", devices=1, precision=precision)
    seen = spaces.Dict({"state": spaces.Box(-np.inf, np.inf, (size["observation"],), np.float32)})
    world, actor, critic, slow, _ = agent.build_agent(fabric, actions, not discrete, whole, seen)
    parameters = [*world.parameters(), *actor.parameters(), *critic.parameters()]
    optimiser = hydra.utils.instantiate(whole.algo.optimizer, params=parameters, _convert_="all")
    optimiser = fabric.setup_optimizers(optimiser)
    generator = torch.Generator().manual_seed(0)
    row = torch.arange(rows)[:, None, None].expand(rows, lanes, 1)
    codes = torch.randint(actions[0], (rows, lanes), generator=generator)
    data = {
        "state": torch.randn(rows, lanes, size["observation"], generator=generator),
        "actions": torch.nn.functional.one_hot(codes, actions[0]).float(),
        "rewards": (row % 21 != 0).float(),
        "is_first": (row % 21 == 0).float(),
        "terminated": (row % 21 == 20).float(),
        "truncated": torch.zeros(rows, lanes, 1),
    }

    def step() -> float:
        batch = {name: tensor.clone() for name, tensor in data.items()}
        began = time.process_time()
        module.train(fabric, whole, world, actor, critic, slow, optimiser, moments, batch, None, actions)
        module.update_target_critic(critic, slow, 0.02)
        return time.process_time() - began

    return step, sum(p.numel() for p in parameters if p.requires_grad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--r2dreamer", type=Path, help="a checkout of NM512/r2dreamer")
    parser.add_argument("--sheeprl", action="store_true", help="against the package that is installed")
    parser.add_argument("--rounds", type=int, default=6, help="updates of each side")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peers: dict[str, Callable[[dict[str, Any]], tuple[Callable[[], float], int]]] = {}
    if options.r2dreamer is not None:
        peers["r2dreamer"] = functools.partial(r2dreamer, folder=options.r2dreamer.resolve())
    if options.sheeprl:
        peers |= {"sheeprl": sheeprl, "sheeprl bf16-mixed": functools.partial(sheeprl, precision="bf16-mixed")}
    for name, size in SIZES.items():
        torch.manual_seed(0)
        sides: dict[str, Callable[[], float]] = {}
        counted: dict[str, int] = {}
        for side, make in {"float32": ours, "bf16": functools.partial(ours, precision="bf16"), **peers}.items():
            sides[side], counted[side] = make(size)
        for side in sides.values():
            side(), side()
        rounds = [{side: job() for side, job in sides.items()} for _ in range(options.rounds)]
        rates = {side: round(1 / statistics.median(turn[side] for turn in rounds), 3) for side in sides}
        figures = {"name": f"dreamer-v3-{name}", "parameters": counted, "unit": "updates/cpu-s", "rates": rates}
        for side in ("float32", "bf16"):
            ratios = {p: round(statistics.median(turn[p] / turn[side] for turn in rounds), 2) for p in sides}
            figures[f"ratio_{side}"] = {p: ratio for p, ratio in ratios.items() if p != side}
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
