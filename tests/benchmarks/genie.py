"""What Genie learns of the sprites from frames alone, seed by seed.

    python tests/benchmarks/genie.py --seeds 0 1 >> tests/benchmarks/results/genie.jsonl
    python tests/benchmarks/genie.py --recipe genie/sprites-32-transformer --seeds 0
    python tests/benchmarks/genie.py --run RUN      (a run of such a recipe that is there already)
    python tests/benchmarks/genie.py --table

Each line is one run of a recipe, genie/sprites-32 unless another is named, measured on logs of random play that it was
not trained on, under the codes that it infers from them:

    tokenizer, moving      PSNR of true frames through their tokens and back; the latter on pixels that move
    one_step, copied       PSNR of the next frame as the dynamics draw it, and of copying the last one
    drift, copied_first    PSNR at each of 15 steps of a dream, and of the frame that it began from
    delta_psnr             what codes drawn at random cost at the first step
    purity, table          of all logged steps: the share of each code's commonest action, and codes beside actions
    report                 that of `seqwm.evaluation.action_report`; null `--without-report`

`cpu_seconds` are those of training.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqwm.control.collect import collect
from seqwm.control.labels import labelled
from seqwm.evaluation.action_report import action_report
from seqwm.evaluation.video_metrics import clips, dreamt, drift, moving, one_step, psnr
from seqwm.hub.load import load_model
from seqwm.nn.frames import from_bytes, to_bytes
from seqwm.recipe import parse_recipe, read_recipe
from seqwm.run import train_recipe

RESULTS = Path(__file__).parent / "results" / "genie.jsonl"
_HELD_OUT, _SEED, _CEILING, _CLIPS, _HORIZON = 6000, 1000, 800, 64, 15


def trained(recipe: str, seed: int, folder: Path) -> tuple[Path, float]:
    began = time.process_time()
    run = train_recipe(read_recipe(recipe, [f"seed={seed}", "train.track=[]"]), folder / "run")
    return run, time.process_time() - began


@torch.no_grad()
def measured(run: Path, with_report: bool) -> dict[str, Any]:
    recipe = parse_recipe((run / "recipe.yaml").read_text(), str(run))
    assert recipe.collect is not None
    options = recipe.collect.environment_options
    store = collect(recipe.collect.environment, None, _HELD_OUT, None, seed=_SEED, options=options, progress=False)
    model = load_model(run)
    report = action_report(model, store, labels=16, updates=_CEILING) if with_report else None
    told = labelled(model, store, progress=False)
    table = np.zeros((model.latent.codes, 5), np.int64)
    for number in range(len(told)):
        codes = np.asarray(told.episode(number).actions)
        np.add.at(table, (codes, np.asarray(store.episode(number).actions)[: len(codes)]), 1)
    given = clips(told, model.window_length, _HORIZON, _CLIPS)
    true = given.frames[:, 1]
    tokens = model.tokenizer.encode(from_bytes(torch.from_numpy(true))[:, None])  # as of an episode's first frame
    back = to_bytes(model.tokenizer.decode(tokens)[:, 0]).numpy()
    dream = dreamt(model, given.context, given.actions, None)
    drawn = torch.randint(model.latent.codes, (len(true), 1), generator=torch.Generator().manual_seed(0))
    random = psnr(dreamt(model, given.context, drawn, None)[:, 1], true)
    step, (far, first) = one_step(given.frames, dream), drift(given.frames, dream)
    return {
        "tokens": "transformer" if recipe.model.tokens.levels else "squares", "seed": recipe.seed,
        "updates": recipe.train.steps, "clips": len(true),
        "tokenizer": psnr(back, true), "tokenizer_moving": psnr(back, true, moving(given.frames[:, 0], true)),
        **{name: getattr(step, field) for name, field in (("one_step", "psnr"), ("copied", "copied"),
           ("one_step_moving", "moving_psnr"), ("copied_moving", "moving_copied"))},
        "drift": [round(each, 2) for each in far], "copied_first": [round(each, 2) for each in first],
        "delta_psnr": step.psnr - random, "purity": float(table.max(1).sum() / table.sum()), "table": table.tolist(),
        "report": dataclasses.asdict(report) if report else None,
    }  # fmt: skip


def show() -> None:
    """The committed lines as a table."""
    heads = ["tokens", "seed", "updates", "tokenizer, dB", "one step (copied), dB", "Delta-PSNR, dB"]
    heads += ["15 steps (first), dB", "purity"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for line in map(json.loads, RESULTS.read_text().splitlines()):
        shown = [line["tokens"], str(line["seed"]), str(line["updates"]), f"{line['tokenizer']:.1f}"]
        shown += [f"{line['one_step']:.1f} ({line['copied']:.1f})", f"{line['delta_psnr']:.1f}"]
        shown += [f"{line['drift'][-1]:.1f} ({line['copied_first'][-1]:.1f})", f"{line['purity']:.2f}"]
        print(f"| {' | '.join(shown)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="genie/sprites-32")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--without-report", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        show()
    elif options.run:
        seconds = json.loads((options.run / "run.json").read_text())["seconds"]
        print(json.dumps(measured(options.run, not options.without_report) | {"seconds": round(seconds)}), flush=True)
    else:
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as folder:
                run, seconds = trained(options.recipe, seed, Path(folder))
                print(
                    json.dumps(measured(run, not options.without_report) | {"cpu_seconds": round(seconds)}), flush=True
                )


if __name__ == "__main__":
    main()
