"""What each remedy against drift is worth: worlds of sprites of 32 pixels, trained for equal seconds of a CPU.

    python tests/benchmarks/drift.py --cell "context noise" --seeds 0 1 2 >> tests/benchmarks/results/drift.jsonl
    python tests/benchmarks/drift.py --costs
    python tests/benchmarks/drift.py --table > tests/benchmarks/results/drift.md

Every cell is trained for about as many seconds of a CPU: `--costs` measures what an update costs beside one of the
first cell, turn about in one process. Each line is one training, and a dream for every `play_noise` that its training
allows: 64 clips of episodes that it was not trained on, 15 steps under the logged actions; and without that noise once
for each number of sampling steps. Steps of obedience are
taken under actions that nobody took, where nothing blocks them; `placed` is the share of sprites that stand exactly
where they do in reality.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqwm.control.collect import collect
from seqwm.data.store import TrajectoryStore
from seqwm.envs.sprites import blocked_places, moved, sprite_places, wall_tiles
from seqwm.evaluation.video_metrics import clips, delta_psnr, dreamt, drift, obedience, one_step
from seqwm.hub.load import load_model
from seqwm.methods import method_module
from seqwm.recipe import Recipe, read_recipe
from seqwm.run import train_recipe
from seqwm.training.supervised import SupervisedLearner

RESULTS = Path(__file__).parent / "results" / "drift.jsonl"
ENVIRONMENT, HELD_OUT, HORIZON, CLIPS = "seqwm/Sprite-v0", 8000, 15, 64
STEPS = (1, 2, 3)


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """A recipe and its changes, what an update costs beside one of the first cell, and noise at play."""

    recipe: str
    changes: tuple[str, ...]
    cost: float
    play: tuple[float, ...] = (0.0,)


_VIDEO, _FORCING = "video_diffusion/sprites-32", "diffusion_forcing/sprites-32"
CELLS = {
    "none": Cell(_VIDEO, ("model.context_noise=0",), 1.0),
    "context noise": Cell(_VIDEO, (), 1.0, (0.0, 0.1)),
    "self-rollout": Cell(_VIDEO, ("model.context_noise=0", "model.rollout=2"), 2.2),
    "diffusion forcing": Cell(_FORCING, (), 1.8, (0.0, 0.1)),
    "diffusion forcing, latents": Cell(f"{_FORCING}-latents", (), 2.0),
}


def recipe_of(cell: Cell, seed: int, updates: int) -> Recipe:
    """The recipe of a training that costs as much as so many updates of the first cell."""
    fixed = [f"seed={seed}", f"train.steps={round(updates / cell.cost)}", "train.track=[]"]
    return read_recipe(cell.recipe, [*cell.changes, *fixed])


def measured(name: str, seed: int, updates: int, runs: Path) -> dict[str, Any]:
    """One training, or what is left of it, and its dreams."""
    cell = CELLS[name]
    recipe = recipe_of(cell, seed, updates)
    run = train_recipe(recipe, runs / f"{name.replace(' ', '-')}-{recipe.train.steps}-{seed}", resume=True)
    model = load_model(run)
    unseen = collect(ENVIRONMENT, None, HELD_OUT, None, seed=1000, progress=False)
    dreams = {}
    for noise in cell.play:
        model.register_to_config(play_noise=noise)
        dreams[f"{noise:g}"] = figures(model, unseen)
    model.register_to_config(play_noise=0.0)
    steps = {str(steps): of_steps(model, unseen, steps) for steps in STEPS}
    return {"cell": name, "seed": seed, "updates": recipe.train.steps, "play_noise": dreams, "sampling_steps": steps}


def of_steps(model: Any, unseen: TrajectoryStore, steps: int) -> dict[str, list[float]]:
    """PSNR along dreams that are sampled with so many network calls a frame."""
    model.register_to_config(steps=steps)
    given = clips(unseen, model.window_length, HORIZON, CLIPS)
    along, _ = drift(given.frames, dreamt(model, given.context, given.actions))
    return {"drift": np.round(along, 3).tolist()}


def figures(model: Any, unseen: TrajectoryStore) -> dict[str, Any]:
    """Of dreams beside logs."""
    given = clips(unseen, model.window_length, HORIZON, CLIPS)
    dream = dreamt(model, given.context, given.actions)
    first = one_step(given.frames, dream)
    along, copied = drift(given.frames, dream)
    placed = (sprite_places(dream) == sprite_places(given.frames)).all(-1).mean(0)
    found = dataclasses.asdict(first) | {
        "obedience": obedience(model, given, 5, lambda before, after: sprite_places(after), expected_places),
        "delta_psnr": delta_psnr(model, given),
        "drift": along, "copied_first": copied, "placed": placed[1:].tolist(),
    }  # fmt: skip
    return {key: np.round(value, 3).tolist() for key, value in found.items()}


def expected_places(frames: NDArray[np.uint8], actions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where actions lead the sprite; negative where something blocks them."""
    before = sprite_places(frames)
    after = moved(before, actions, blocked_places(wall_tiles(frames)))
    return np.where(((after == before).all(-1) & (actions != 0))[:, None], -1, after)


def costs() -> dict[str, Any]:
    """Milliseconds of CPU for an update of each cell, the least of several, turn about."""
    learners = {}
    for name, cell in CELLS.items():
        recipe = recipe_of(cell, 0, 100)
        store = collect(ENVIRONMENT, None, 2000, None, progress=False)
        method = method_module(recipe.method)
        model = method.build(recipe.model, store)
        windows = store.windows(model.window_length, recipe.train.batch_size, 0, **method.window_options(recipe.model))
        learners[name] = SupervisedLearner(model, windows, recipe.train, 0)
    best = dict.fromkeys(learners, float("inf"))
    for turn in range(6):
        for name, own in learners.items():
            began = time.process_time()
            own.update(turn)
            best[name] = min(best[name], time.process_time() - began)
    return {
        "update_ms": {name: round(1000 * each, 1) for name, each in best.items()},
        "cost": {name: round(each / best["none"], 2) for name, each in best.items()},
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown; means over seeds, and the range of what drifts. Cost is in updates of the first cell."""
    heads = ["remedy", "noise at play", "updates", "cost", "seeds", "one step", "moving pixels", "5 ahead", "15 ahead"]
    heads += ["placed at 15", "obedience"]
    rows = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    trained = [(name, updates) for name in CELLS for updates in sorted({line["updates"] for line in lines})]
    for name, updates in trained:
        own = [line for line in lines if (line["cell"], line["updates"]) == (name, updates)]
        for noise in CELLS[name].play if own else ():
            dreams = [line["play_noise"][f"{noise:g}"] for line in own]
            shown = [name, f"{noise:g}", str(updates), f"{updates * CELLS[name].cost:.0f}", str(len(own))]
            shown += [_mean(dream[key] for dream in dreams) for key in ("psnr", "moving_psnr")]
            shown += [_mean(dream["drift"][4] for dream in dreams)]
            last = [dream["drift"][-1] for dream in dreams]
            shown += [f"{_mean(last)} ({min(last):.1f} to {max(last):.1f})"]
            shown += [_mean((dream["placed"][-1] for dream in dreams), 2)]
            shown += [_mean((dream["obedience"] for dream in dreams), 3)]
            rows.append(f"| {' | '.join(shown)} |")
    copied = lines[0]["play_noise"]["0"]
    figures = [copied["copied"], copied["moving_copied"], copied["copied_first"][4], copied["copied_first"][-1]]
    rows.append(f"| copying | | | | | {' | '.join(f'{figure:.1f}' for figure in figures)} | | |")
    heads = ["remedy", "updates", *(f"{where}, steps {steps}" for where in ("one", "15 ahead") for steps in STEPS)]
    rows += ["", f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for name, updates in trained:
        own = [line["sampling_steps"] for line in lines if (line["cell"], line["updates"]) == (name, updates)]
        if own:
            shown = [_mean(one[str(steps)]["drift"][place] for one in own) for place in (0, -1) for steps in STEPS]
            rows.append(f"| {' | '.join([name, str(updates), *shown])} |")
    return "\n".join(rows)


def _mean(values: Iterable[float], digits: int = 1) -> str:
    return f"{statistics.mean(values):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=list(CELLS), action="append")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--updates", type=int, default=1600, help="of the first cell; others get as many as cost the same"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/drift"), help="where runs go, and are gone on with")
    parser.add_argument("--costs", action="store_true", help="measure what an update of each cell costs")
    parser.add_argument("--table", action="store_true", help="print the table of the results that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.table:
        print(table([json.loads(line) for line in RESULTS.read_text().splitlines()]))
    elif options.costs:
        print(json.dumps(costs()))
    else:
        for seed in options.seeds:
            for name in options.cell or CELLS:
                print(json.dumps(measured(name, seed, options.updates, options.runs)), flush=True)
                print(name, seed, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
