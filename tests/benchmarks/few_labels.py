"""What is video without actions worth to a world that has few labels? Diffusion forcing on sprites of 32 pixels.

    python tests/benchmarks/few_labels.py --seeds 0 >> tests/benchmarks/results/few_labels.jsonl

Trainings of `recipes/diffusion_forcing/sprites-32.yaml` on the same random play: `--video` updates on its frames alone,
and `--labelled` updates from there on the few steps that keep their actions (`begin_from`); beside it those few steps
alone, for as many updates as both together. Episodes that nobody was trained on are then dreamt: PSNR one to 15 steps
ahead, and the share of moves that nothing blocks and nobody logged that are obeyed. A JSON line a model.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from typing import Any

import torch
from drift import ENVIRONMENT, HELD_OUT, figures

from seqwm.control.collect import collect
from seqwm.core.types import Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.methods import diffusion_forcing
from seqwm.recipe import read_recipe
from seqwm.training.supervised import SupervisedLearner


def part(store: TrajectoryStore, steps: int, *, actions: bool) -> TrajectoryStore:
    """The first episodes of a store, of at least so many steps together, with or without their actions."""
    spaces = Spaces(store.spaces.observation, store.spaces.action if actions else None)
    chosen = TrajectoryStore.create(None, spaces, rewards=False)
    for episode in store.episodes():
        if chosen.rows >= steps:
            break
        chosen.append(dataclasses.replace(episode, actions=episode.actions if actions else None, rewards=None))
    return chosen


def trained(store: TrajectoryStore, updates: int, seed: int, begin_from: str | None = None) -> Any:
    """The recipe on a store."""
    recipe = read_recipe("diffusion_forcing/sprites-32", [f"train.steps={updates}"])
    torch.manual_seed(seed)
    model = diffusion_forcing.build(dataclasses.replace(recipe.model, begin_from=begin_from), store)
    windows = store.windows(model.window_length, recipe.train.batch_size, seed, following=True)
    learner = SupervisedLearner(model, windows, recipe.train, seed)
    for step in range(updates):
        learner.update(step)
    return learner.trained().eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=24000, help="of random play, seen without their actions")
    parser.add_argument("--labels", type=int, default=500, help="of them, at least, that keep them")
    parser.add_argument("--video", type=int, default=300, help="updates on frames alone")
    parser.add_argument("--labelled", type=int, default=350, help="updates on the labelled part behind them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    unseen = collect(ENVIRONMENT, None, HELD_OUT, None, seed=1000, progress=False)
    for seed in options.seeds:
        play = collect(ENVIRONMENT, None, options.steps, None, seed=seed, progress=False)
        few = part(play, options.labels, actions=True)
        both = options.video + options.labelled
        with tempfile.TemporaryDirectory() as folder:
            trained(part(play, play.rows, actions=False), options.video, seed).save_pretrained(folder)
            models = {
                "video, then labels": lambda: trained(few, options.labelled, seed, folder),  # noqa: B023 - called at once
                "labels alone": lambda: trained(few, both, seed),  # noqa: B023
            }
            for name, train in models.items():
                print(name, seed, file=sys.stderr, flush=True)
                found = figures(train(), unseen)
                line = {
                    "cell": name, "seed": seed, "video_steps": play.rows, "labelled_steps": few.rows,
                    "labelled_episodes": len(few), "updates": [options.video, options.labelled],
                }  # fmt: skip
                print(json.dumps(line | found), flush=True)


if __name__ == "__main__":
    main()
