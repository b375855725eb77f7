"""How true does a world of frames become of logged games? One episode in ten is kept apart, and dreamt of afterwards.

    python tests/benchmarks/logged_video.py video_diffusion/pong >> tests/benchmarks/results/logged_video.jsonl

The recipe learns from the other episodes. Clips of 15 steps of those kept apart are then drawn under the logged
actions: PSNR on all pixels and on those that move, beside copying the last frame (one step) or the first one (drift),
and what the true actions are worth beside those of other clips. A JSON line a training; `--strip FILE` draws a picture.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqwm.core.shipped import locate_source
from seqwm.data.load import load
from seqwm.data.store import TrajectoryStore
from seqwm.evaluation.video_metrics import clips, delta_psnr, dreamt, drift, moving, one_step, psnr
from seqwm.methods import method_module
from seqwm.recipe import read_recipe
from seqwm.training.supervised import SupervisedLearner

HORIZON, CLIPS, APART = 15, 64, 10


def parts(store: TrajectoryStore) -> tuple[TrajectoryStore, TrajectoryStore]:
    """Nine episodes of ten, and the others."""
    found = [TrajectoryStore.create(None, store.spaces, rewards=store.has_rewards) for _ in range(2)]
    for number, episode in enumerate(store.episodes()):
        found[number % APART == 0].append(episode)
    return found[0], found[1]


def figures(model: Any, unseen: TrajectoryStore, seed: int = 0) -> tuple[dict[str, Any], Any]:
    """Of dreams beside logs, and frames to look at, uint8 [rows, columns, height, width, C]: reality above the dream.

    Episodes are drawn from in turn until there are enough clips, at other places each time.
    """
    given, dreams, turn = [], [], 0
    while sum(len(one.frames) for one in given) < CLIPS:
        given.append(clips(unseen, model.window_length, HORIZON, CLIPS, seed + turn))
        dreams.append(dreamt(model, given[-1].context, given[-1].actions))
        turn += 1
    frames, dream = (np.concatenate(part) for part in ([one.frames for one in given], dreams))
    along, copied = drift(frames, dream)
    steps = range(1, HORIZON + 1)
    moved = [moving(frames[:, h - 1], frames[:, h]) for h in steps]
    found = dataclasses.asdict(one_step(frames, dream)) | {
        "clips": len(frames), "delta_psnr": delta_psnr(model, given[0]), "drift": along, "copied_first": copied,
        "moving_drift": [psnr(dream[:, h], frames[:, h], moved[h - 1]) for h in steps],
        "moving_copied_first": [psnr(frames[:, 0], frames[:, h], moved[h - 1]) for h in steps],
    }  # fmt: skip
    shown = [0, 1, 2, 4, 6, 8, 10, 12, 15]
    strip = np.concatenate([part[clip][None, shown] for clip in range(4) for part in (frames, dream)])
    return {key: np.round(value, 3).tolist() for key, value in found.items()}, strip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="of a world of frames that learns from logs")
    parser.add_argument("--strip", type=Path, help="a picture of four dreams, reality above each")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one key of the recipe")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = read_recipe(options.recipe, options.set)
    method = method_module(recipe.method)
    store, unseen = parts(load(locate_source(recipe.data.source)))
    torch.manual_seed(recipe.seed)
    model = method.build(recipe.model, store)
    windows = store.windows(
        model.window_length, recipe.train.batch_size, recipe.seed, **method.window_options(recipe.model)
    )
    learner, began = SupervisedLearner(model, windows, recipe.train, recipe.seed), time.process_time()
    for step in range(recipe.train.steps):
        metrics = learner.update(step)
        if step % 50 == 0:
            print(step, {name: round(value, 3) for name, value in metrics.items()}, file=sys.stderr, flush=True)
    spent = time.process_time() - began
    found, strip = figures(learner.trained().eval(), unseen)
    if options.strip:
        from PIL import Image

        rows = [np.concatenate(list(row), 1) for row in strip]
        Image.fromarray(np.concatenate(rows).repeat(2, 0).repeat(2, 1)).save(options.strip)
    line = {
        "recipe": options.recipe, "changes": options.set, "updates": recipe.train.steps, "cpu_s": round(spent),
        "parameters": sum(p.numel() for p in model.parameters()), "episodes": len(store), "unseen": len(unseen),
    }  # fmt: skip
    print(json.dumps(line | found), flush=True)


if __name__ == "__main__":
    main()
