"""How far does an agent get that has only met a dream? The same agent learns in a world of video and in reality.

    python tests/benchmarks/dream_agent.py [--seeds 0 1 2] [--world 0] [--runs runs/dream_agent]

For each seed: a world learns from random play (`recipes/video_diffusion/catch.yaml`); an agent learns in its dreams
(`stable_baselines/catch-dream`), and the same one in the game (`stable_baselines/catch`), for as many steps. Both play
200 episodes of the game; the first also as many dreams, each from the first frame of a logged episode: what the dream
promises beside what reality gives shows how far the agent exploits the model. A JSON line a seed, and at the end one of
means with 95 % intervals (bootstrap of seeds and, within them, episodes). With `--world` all agents dream in the world
of that seed. Runs that are there are taken as they are, and those that were stopped go on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqwm.control.policies import RandomPolicy
from seqwm.control.rollout import play
from seqwm.envs.make import make_vector
from seqwm.hub.load import load_model
from seqwm.run import train
from seqwm.worlds import open_dream

EPISODES, FIRST = 200, 1000


def made(recipe: str, run: Path, changes: list[str]) -> Path:
    """A run of a recipe, which may be there."""
    record = run / "run.json"
    if record.is_file() and json.loads(record.read_text()).get("finished"):
        return run
    return train(recipe, run, changes=changes, resume=True)


def returns_of(run: Path) -> list[float]:
    """What the agent of a run got in the game."""
    episodes = json.loads((run / "evaluation.json").read_text())["episodes"]
    return [episode["return"] for episode in episodes]


def promised(world: Path, agent: Path, horizon: int) -> list[float]:
    """What it gets in dreams that begin as the game does."""
    dream = open_dream({"world": str(world), "horizon": horizon, "begin": "first"}, EPISODES)
    outcomes = play(dream, load_model(agent).policy(), list(range(FIRST, FIRST + EPISODES)))
    return [outcome.achieved for outcome in outcomes]


def chance(environment: str) -> list[float]:
    """What random play gets."""
    with contextlib.closing(make_vector(environment, EPISODES)) as vector:
        outcomes = play(vector, RandomPolicy(vector.single_action_space, 0), list(range(FIRST, FIRST + EPISODES)))
    return [outcome.achieved for outcome in outcomes]


def interval(seeds: list[list[float]]) -> list[float]:
    """95 % of the mean, of seeds drawn with replacement and of episodes within them."""
    draw, table = np.random.default_rng(0), np.array(seeds)
    rows = draw.integers(len(table), size=(2000, len(table)))
    columns = draw.integers(table.shape[1], size=(2000, len(table), table.shape[1]))
    means = table[rows[..., None], columns].mean((1, 2))
    return [round(float(edge), 3) for edge in np.quantile(means, (0.025, 0.975))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--world", type=int, help="the seed of the one world that all agents dream in")
    parser.add_argument("--game", default="catch", help="the recipes' name")
    parser.add_argument("--environment", default="seqwm/Catch-v0")
    parser.add_argument("--horizon", type=int, default=15, help="steps of the dreams that are measured")
    parser.add_argument("--runs", type=Path, default=Path("runs/dream_agent"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    got: dict[str, list[list[float]]] = {"dream": [], "dream_trained": [], "reality_trained": []}
    for seed in options.seeds:
        folder, game = options.runs / f"{options.game}-{seed}", options.game
        changes = [f"seed={seed}", "train.track=[]"]
        own = seed if options.world is None else options.world
        learned = [f"seed={own}", "train.track=[]"]
        world = made(f"video_diffusion/{game}", options.runs / f"{game}-{own}" / "world", learned)
        dreaming = [*changes, f"collect.environment_options.world={world}"]
        asleep = made(f"stable_baselines/{game}-dream", folder / "dream", dreaming)
        awake = made(f"stable_baselines/{game}", folder / "reality", changes)
        returns = promised(world, asleep, options.horizon), returns_of(asleep), returns_of(awake)
        line: dict[str, Any] = {"name": f"dream-agent-{game}", "seed": seed, "world": own}
        for name, values in zip(got, returns, strict=True):
            got[name].append(values)
            line[name] = round(float(np.mean(values)), 3)
        print(json.dumps(line), flush=True)
    random = float(np.mean(chance(options.environment)))
    means = {name: float(np.mean(values)) for name, values in got.items()}
    total: dict[str, Any] = {"name": f"dream-agent-{options.game}", "seeds": len(options.seeds), "episodes": EPISODES}
    total |= {name: round(mean, 3) for name, mean in means.items()} | {"random": round(random, 3)}
    total |= {f"{name}_interval": interval(values) for name, values in got.items()}
    total["ratio"] = round(means["dream_trained"] / means["reality_trained"], 3)
    total["ratio_above_random"] = round((means["dream_trained"] - random) / (means["reality_trained"] - random), 3)
    print(json.dumps(total), flush=True)


if __name__ == "__main__":
    main()
