"""The figures of Sutton and Barto 2018, chapter 8, drawn again: how much planning, curiosity and sweeping are worth.

    python tests/benchmarks/dyna.py [--seeds 30] [--out tests/benchmarks/results]

Figure 8.2: steps an episode in the maze, for 0, 5 and 50 planning steps. Figures 8.4 and 8.5: reward gathered in the
mazes that change, for Dyna-Q and Dyna-Q+. The algorithm is `seqwm.methods.dyna_q.Table`, the mazes are stepped one by
one; means and 95 % intervals over seeds. Also the microseconds of processor time a step takes, the maze included.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from seqwm.core.provenance import provenance
from seqwm.envs.maze import Kind, Maze
from seqwm.evaluation.statistics import bootstrap_interval
from seqwm.methods.dyna_q import Options, Table


def play(
    options: Options, kind: Kind, seed: int, *, episodes: int = 10**9, steps: int = 10**9
) -> tuple[list[int], list[float]]:
    """Lengths of the episodes and reward gathered after every step."""
    maze, table, chance = Maze(kind), Table(54, 4, options), random.Random(seed)
    lengths: list[int] = []
    gathered: list[float] = []
    while len(lengths) < episodes and len(gathered) < steps:
        state, ended, length = int(maze.reset()[0]), False, 0
        while not ended and len(gathered) < steps:
            action = table.act(state, chance)
            following, reward, ended, _, _ = maze.step(action)
            table.learn(state, action, reward, int(following), ended)
            table.plan(options.planning, chance)
            state, length = int(following), length + 1
            gathered.append(reward + (gathered[-1] if gathered else 0.0))
        lengths.append(length)
    return lengths, gathered


def curve(runs: list[list[float]]) -> dict[str, list[float]]:
    values = np.array(runs)
    intervals = [bootstrap_interval(column) or (float(column.mean()),) * 2 for column in values.T]
    return {
        "mean": values.mean(0).tolist(),
        "low": [low for low, _ in intervals],
        "high": [high for _, high in intervals],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    results: dict[str, dict[str, dict[str, list[float]]]] = {"maze": {}, "blocking": {}, "shortcut": {}}
    microseconds = {}
    for planning in (0, 5, 50):
        began, runs = (
            time.process_time(),
            [play(Options(planning=planning), "dyna", s, episodes=50)[0] for s in range(given.seeds)],
        )
        microseconds[planning] = 1e6 * (time.process_time() - began) / sum(map(sum, runs))
        results["maze"][f"{planning} planning steps"] = curve([list(map(float, run)) for run in runs])
    for kind, steps in (("blocking", 3000), ("shortcut", 6000)):
        for name, bonus in (("Dyna-Q", 0.0), ("Dyna-Q+", 1e-3)):
            options = Options(planning=10, step_size=1.0, bonus=bonus)
            runs = [play(options, kind, seed, steps=steps)[1][::50] for seed in range(given.seeds)]  # type: ignore[arg-type]
            results[kind][name] = curve(runs)
    given.out.mkdir(exist_ok=True)
    text = {"seeds": given.seeds, "microseconds_a_step": microseconds, **provenance(), "curves": results}
    (given.out / "dyna.json").write_text(json.dumps(text, indent=1) + "\n")
    draw(results, given.out / "dyna.png")
    for name, found in results["maze"].items():
        shown = ", ".join(f"{found['mean'][episode - 1]:.1f}" for episode in (1, 2, 3, 5, 10, 25, 50))
        print(f"{name}: {shown} steps in episodes 1, 2, 3, 5, 10, 25, 50")
    for kind in ("blocking", "shortcut"):
        print(
            kind,
            {
                name: [f"{found[part][-1]:.1f}" for part in ("mean", "low", "high")]
                for name, found in results[kind].items()
            },
        )
    print({planning: f"{cost:.1f} us" for planning, cost in microseconds.items()})


def draw(results: dict[str, dict[str, dict[str, list[float]]]], path: Path) -> None:
    figure = Figure(figsize=(13, 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (kind, curves) in zip(figure.subplots(1, 3), results.items(), strict=True):
        for name, found in curves.items():
            x = np.arange(1, len(found["mean"]) + 1) if kind == "maze" else 50 * np.arange(len(found["mean"]))
            axes.plot(x, found["mean"], label=name)
            axes.fill_between(x, found["low"], found["high"], alpha=0.2, linewidth=0)
        axes.set_title(
            {"maze": "steps an episode", "blocking": "blocking maze", "shortcut": "shortcut maze"}[kind],
            fontsize="medium",
        )
        axes.set_xlabel("episode" if kind == "maze" else "steps")
        axes.set_ylabel("steps" if kind == "maze" else "reward gathered")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize="small")
        if kind == "maze":
            axes.set_ylim(0, 800)
            axes.axhline(14, color="black", linewidth=0.8, linestyle=":")
    figure.savefig(path, format="png", metadata={"Software": None})


if __name__ == "__main__":
    main()
