"""How much of the true actions latent actions recover from frames alone, seed by seed.

    python tests/benchmarks/action_recovery.py sprites-16 >> tests/benchmarks/results/action_recovery.jsonl
    MINARI_DATASETS_PATH=../shared/data python tests/benchmarks/action_recovery.py minigrid --seeds 0 1 2
    python tests/benchmarks/action_recovery.py --table

Each line is the action report (`seqwm.evaluation.action_report`) of one run of a recipe of latent_actions: of sprites
on logs of random play that it was not trained on, of MiniGrid and Pong on the fifth of the logs that no label was taken
from, whose frames, but no action, were in the video that it was trained on. `chance` is naming the commonest action,
and what a collapsed model reaches. The ceiling's inverse models make 400 updates on sprites and 600 on the others, and
may fall a little short of what can be told: then purity is above it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from seqwm.control.collect import collect
from seqwm.data.load import load
from seqwm.evaluation.action_report import action_report
from seqwm.hub.load import load_model
from seqwm.recipe import read_recipe
from seqwm.run import train_recipe

RESULTS = Path(__file__).parent / "results" / "action_recovery.jsonl"
_HELD_OUT, _SEED = 6000, 1000


def measured(name: str, seed: int) -> dict[str, object]:
    recipe = read_recipe(f"latent_actions/{name}", [f"seed={seed}", "train.track=[]"])
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        run = train_recipe(recipe, Path(folder) / "run")
        seconds = time.process_time() - began
        if recipe.data:
            store, ceiling = load(recipe.data.source, progress=False), 600
        else:
            assert recipe.collect is not None
            options = recipe.collect.environment_options
            store = collect(recipe.collect.environment, None, _HELD_OUT, None, seed=_SEED, options=options)
            ceiling = 400
        report = action_report(load_model(run), store, labels=16, updates=ceiling)
    table = np.array(report.table)
    return {
        "recipe": name, "seed": seed, "cpu_seconds": round(seconds),
        "chance": round(table.sum(0).max() / table.sum(), 4), **dataclasses.asdict(report),
    }  # fmt: skip


def show() -> None:
    """The committed lines as a table."""
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    print(
        "| recipe | seeds | chance | ceiling | purity / ceiling | 16 labels / ceiling | Delta-PSNR, dB | CPU seconds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in sorted({line["recipe"] for line in lines}):
        mine = [line for line in lines if line["recipe"] == name]
        ratios = [[line["purity"] / line["ceiling"] for line in mine]]
        ratios += [[line["mapped"]["16"] / line["ceiling"] for line in mine]]
        cells = [f"{min(each):.2f} to {max(each):.2f}, median {statistics.median(each):.2f}" for each in ratios]
        shown = {key: statistics.mean(line[key] for line in mine) for key in ("chance", "ceiling", "delta_psnr")}
        seconds = statistics.mean(line["cpu_seconds"] for line in mine)
        print(
            f"| {name} | {len(mine)} | {shown['chance']:.2f} | {shown['ceiling']:.2f} | {cells[0]} | {cells[1]} "
            f"| {shown['delta_psnr']:.1f} | {seconds:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", choices=["sprites-16", "sprites-32", "minigrid", "pong"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table or options.recipe is None:
        show()
        return
    for seed in options.seeds:
        print(json.dumps(measured(options.recipe, seed)), flush=True)


if __name__ == "__main__":
    main()
