"""What each remedy against model error does to MBPO on Pendulum-v1: one factor at a time around a default.

    python tests/benchmarks/mbpo_ablation.py --seeds 0 1 2 >> tests/benchmarks/results/mbpo_ablation.jsonl
    python tests/benchmarks/mbpo_ablation.py --table

The default branches five steps with three members and five percent real rows, for 600 transitions behind 200 of random
actions, ten updates each: too few to be done, so that differences show. Rounds hold as many imagined rows at any
horizon. Each cell is a line: the mean return of 20 real episodes of 200 steps and of 20 dreams of the same length that
begin where logged episodes did. Where the dream promises more than reality gives, the model is exploited. The penalty
is MOPO's price on doubt (`seqwm.control.pessimism`). A world is only there to dream in where something is imagined.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from seqwm.control.branched_learner import BranchedLearner, BranchOptions
from seqwm.control.dream import make_dream
from seqwm.control.pessimism import priced
from seqwm.core.random import key
from seqwm.evaluation.dream_gap import dream_gap
from seqwm.evaluation.statistics import bootstrap_interval
from seqwm.methods import mbpo
from seqwm.nn.ensemble import EnsembleOptions
from seqwm.online import open_environments, open_replay
from seqwm.recipe import Recipe, read_recipe
from seqwm.training.collector import Collector
from seqwm.training.loop import train

RESULTS = Path(__file__).parent / "results" / "mbpo_ablation.jsonl"
FACTORS: dict[str, tuple[Any, tuple[Any, ...]]] = {  # name: default, and the others
    "horizon": (5, (1, 15, 50)),
    "members": (3, (1, 7)),
    "real_share": (0.05, (0.0, 0.5, 1.0)),
    "penalty": (0.0, (1.0,)),
}
UPDATES, IMAGINED, STEPS, EPISODES = 6000, 5000, 200, 20


def settings() -> Iterator[dict[str, Any]]:
    """The default, then every change to it alone."""
    default = {name: factor[0] for name, factor in FACTORS.items()}
    yield default
    for name, (_, others) in FACTORS.items():
        for value in others:
            yield default | {name: value}


def learner(recipe: Recipe, store: Any, cell: dict[str, Any], seed: int) -> BranchedLearner:
    members, horizon = cell["members"], cell["horizon"]
    ensemble = EnsembleOptions(members=members, elites=max(1, round(members * 5 / 7)), layers=2, width=64)
    branches = dataclasses.replace(
        recipe.model.branches, horizon=horizon, starts=IMAGINED // horizon, real_share=cell["real_share"]
    )
    assert isinstance(branches, BranchOptions)
    options = dataclasses.replace(recipe.model, ensemble=ensemble, branches=branches)
    torch.manual_seed(key(seed, 0) >> 1)
    model = mbpo.build(options, store)
    amend = priced(model.world, cell["penalty"]) if cell["penalty"] else None
    parts = model, model.world, model.agent, branches, options.fit, store, recipe.train, seed
    return BranchedLearner(*parts, amend=amend)


def measured(cell: dict[str, Any], seed: int) -> dict[str, Any]:
    recipe = read_recipe("mbpo/pendulum", [f"seed={seed}"])
    assert recipe.collect is not None
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(open_environments(recipe.collect, None)) as vector:
        store = open_replay(Path(folder) / "replay", vector, recipe.collect, None, seed, None)
        own = learner(recipe, store, cell, seed)
        collector = Collector(own, vector, store, recipe.collect.updates_per_step, seed)
        train(own, UPDATES, collect=collector)
        seconds = time.process_time() - began
        model = own.trained()
        dream = make_dream(EPISODES, model, store, STEPS)
        with contextlib.closing(
            open_environments(dataclasses.replace(recipe.collect, lanes=EPISODES), None)
        ) as reality:
            gap = dream_gap(dream, reality, model.policy(), STEPS, seed=1000)
        steps = int(collector.metrics()["environment_steps"])
    real, dreamt = (round(statistics.mean(side.returns), 1) for side in (gap.reality, gap.dream))
    dreams = dreamt if cell["real_share"] < 1 else None
    return {
        **cell,
        "seed": seed,
        "environment_steps": steps,
        "real": real,
        "dream": dreams,
        "seconds": round(seconds, 1),
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown; intervals are over seeds."""
    rows = ["| cell | real return | dream return | dream - real | seeds |", "|" + " --- |" * 5]
    default = next(settings())
    for cell in settings():
        own = [line for line in lines if all(line[name] == value for name, value in cell.items())]
        if not own:
            continue
        changed = [f"{name} {value:g}" for name, value in cell.items() if value != default[name]]
        name = changed[0] if changed else ", ".join(f"{name} {value:g}" for name, value in default.items())
        gaps = [line["dream"] - line["real"] for line in own if line["dream"] is not None]
        columns = [[line["real"] for line in own], [line["dream"] for line in own if line["dream"] is not None], gaps]
        rows.append(f"| {name} | {' | '.join(_shown(column) for column in columns)} | {len(own)} |")
    return "\n".join(rows)


def _shown(values: list[float]) -> str:
    if not values:
        return "-"
    interval = bootstrap_interval(values)
    spread = f" [{interval[0]:.0f}, {interval[1]:.0f}]" if interval else ""
    return f"{statistics.mean(values):.0f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--table", action="store_true", help="print the table of the results that are there")
    options = parser.parse_args()
    if options.table:
        print(table([json.loads(line) for line in RESULTS.read_text().splitlines()]))
        return
    torch.set_num_threads(1)
    for seed in options.seeds:
        for cell in settings():
            print(json.dumps(measured(cell, seed)), flush=True)
            print(cell, seed, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
