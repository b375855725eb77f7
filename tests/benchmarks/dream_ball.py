"""Where do a world's dreams of Catch lose the ball, and do they know what a game is worth?

    seqwm train recipes/world_models/catch.yaml && python tests/benchmarks/dream_ball.py runs/world_models/catch

Unseen random play is shown to a world for some frames and dreamt on under the logged actions. Printed as JSON:

- seen: the share of frames in which the ball stands where it was once the world has encoded and decoded it;
- kept: after so many frames shown and so many dreamt, the share of dreams whose ball is at most one column off;
- return: the policy's, of the run's own evaluation, where it has one;
- reward_r2: how much of the variance of the last step's reward is told before it, all frames shown: 1 is all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seqwm.control.collect import collect
from seqwm.envs.catch import SIDE
from seqwm.hub.load import load_model

SHOWN, DREAMT = (1, 3), (1, 5, 11)
_STEPS = SIDE - 1  # of a game


def ball(frames: Tensor) -> Tensor:
    """Rows and columns [N, 2] of the brightest three by three pixels of frames uint8 [N, H, W, 1]."""
    bright = (frames[..., 0] > 0.75 * 255).float()[:, None]
    place = torch.nn.functional.avg_pool2d(bright, 3, 1, padding=1)[:, 0].flatten(1).argmax(-1)
    return torch.stack([place // SIDE, place % SIDE], -1)


@torch.no_grad()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder or a Hub repository")
    arguments = parser.parse_args()
    model = load_model(arguments.run).eval()
    logs = collect("seqwm/Catch-v0", None, 3000, None, lanes=8, seed=99, progress=False)
    games = np.arange(len(logs))
    batch = logs.windows(_STEPS, 1).gather(games, np.full_like(games, _STEPS - 1))
    frames = batch.observations

    def shown(rows: int) -> dict[str, Tensor]:
        valid = batch.valid.clone()
        valid[:, rows:] = False
        return model.encode(dataclasses.replace(batch, valid=valid))

    seen = [(ball(model.decode(shown(t + 1))) == ball(frames[:, t])).all(-1).float().mean() for t in range(1, 14)]
    kept = {}
    for rows in SHOWN:
        state, generator = shown(rows), torch.Generator().manual_seed(0)
        for t in range(rows, rows + max(DREAMT)):
            state = model.step(state, batch.actions[:, t - 1], generator).state
            if t - rows + 1 in DREAMT:
                off = (ball(model.decode(state)) - ball(frames[:, t]))[:, 1].abs()
                kept[f"{rows} shown, {t - rows + 1} dreamt"] = round(float((off <= 1).float().mean()), 3)
    reward = model.step(shown(_STEPS), batch.actions[:, -1], None).reward
    told = batch.rewards[:, -1]
    evaluation = Path(arguments.run) / "evaluation.json"
    returns = [one["return"] for one in json.loads(evaluation.read_text())["episodes"]] if evaluation.is_file() else []
    found = {
        "run": arguments.run,
        "return": round(float(np.mean(returns)), 3) if returns else None,
        "games": len(games),
        "seen": round(float(torch.stack(seen).mean()), 3),
        "kept": kept,
        "reward_r2": round(float(1 - (reward - told).square().mean() / told.var(unbiased=False)), 3),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
