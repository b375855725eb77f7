"""The records of a study as a Markdown table and a figure, both with intervals.

A record is one run at one target: method, dataset, seed, target, environment, per-episode returns, updates and seconds
of training; where the policy also played in dreams of its world, their returns. Programs that measure something else
for comparison write the same.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from seqwm.core.random import numpy_generator
from seqwm.evaluation.references import own_reference
from seqwm.evaluation.statistics import iqm

Column: TypeAlias = Literal["return", "dream", "iqm", "score", "updates/s", "seconds"]

REQUIRED = ("method", "dataset", "seed", "target", "environment", "returns", "updates", "seconds")
"""What every record has."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the records of all seeds of a method on a dataset at a target."""

    dataset: str
    method: str
    target: float | None
    seeds: int
    episodes: int
    mean: float
    interval: tuple[float, float]
    dream: tuple[float, float, float] | None
    iqm: float
    score: float | None
    rate: float
    seconds: float

    @classmethod
    def of(cls, records: list[dict[str, Any]]) -> Row:
        """The figures of records that differ in their seed only; rates and seconds are medians."""
        runs = [np.asarray(record["returns"], np.float64) for record in records]
        episodes = np.concatenate(runs)
        named = own_reference(records[0]["environment"])
        mean = _mean(runs)
        dreams = [np.asarray(record["dream_returns"], np.float64) for record in records if "dream_returns" in record]
        return cls(
            dataset=records[0]["dataset"],
            method=records[0]["method"],
            target=records[0]["target"],
            seeds=len(runs),
            episodes=len(episodes),
            mean=mean,
            interval=interval_over_seeds(runs),
            dream=(_mean(dreams), *interval_over_seeds(dreams)) if dreams else None,
            iqm=float(iqm(episodes)),
            score=named.score(mean) if named else None,
            rate=float(np.median([record["updates"] / record["seconds"] for record in records])),
            seconds=float(np.median([record["seconds"] for record in records])),
        )


def _mean(runs: Sequence[NDArray[np.float64]]) -> float:
    return float(np.mean([run.mean() for run in runs]))


def interval_over_seeds(runs: Sequence[NDArray[np.float64]], resamples: int = 5000) -> tuple[float, float]:
    """95 % of the mean over runs, by a bootstrap of two levels: seeds are drawn, and then episodes within each.

    Episodes of one seed share a network, so drawing from all of them as if they were independent would be too sure.
    """
    generator = numpy_generator(0)
    means = np.stack([run[generator.integers(len(run), size=(resamples, len(run)))].mean(1) for run in runs])
    drawn = generator.integers(len(runs), size=(len(runs), resamples))
    low, high = np.quantile(means[drawn, generator.integers(resamples, size=drawn.shape)].mean(0), [0.025, 0.975])
    return float(low), float(high)


def rows(records: Sequence[dict[str, Any]]) -> list[Row]:
    """One row for each dataset, method and target, datasets together, otherwise in the order of the records."""
    groups: dict[tuple[str, str, float | None], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["dataset"], record["method"], record["target"]), []).append(record)
    order = list(dict.fromkeys(dataset for dataset, _, _ in groups))
    return [Row.of(groups[key]) for key in sorted(groups, key=lambda key: order.index(key[0]))]


def table(title: str, rows: Sequence[Row], columns: Sequence[Column], command: str) -> str:
    """The Markdown of the table; `command` is what made it."""
    places = 1 if max((abs(row.mean) for row in rows), default=0.0) > 10 else 2  # shares need more than returns do

    def shown(value: float) -> str:
        return f"{value:.{places}f}"

    cells: dict[str, Callable[[Row], str]] = {
        "dataset": lambda row: row.dataset,
        "method": lambda row: row.method,
        "target": lambda row: "-" if row.target is None else f"{row.target:g}",
        "return": lambda row: f"{shown(row.mean)} [{shown(row.interval[0])}, {shown(row.interval[1])}]",
        "dream": lambda row: "-" if row.dream is None else "{} [{}, {}]".format(*map(shown, row.dream)),
        "iqm": lambda row: shown(row.iqm),
        "score": lambda row: "-" if row.score is None else f"{row.score:.1f}",
        "seeds x episodes": lambda row: f"{row.seeds} x {row.episodes // row.seeds}",
        "updates/s": lambda row: f"{row.rate:.1f}",
        "seconds": lambda row: f"{row.seconds:.0f}",
    }
    names = ["dataset"] * any(row.dataset for row in rows) + ["method"]
    names += ["target"] * any(row.target is not None for row in rows) + [*columns, "seeds x episodes"]
    lines = [f"# {title}", "", f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(cells[name](row) for name in names) + " |" for row in rows]
    notes = "Means over seeds with 95 % intervals (bootstrap of seeds and, within them, episodes); medians of rates."
    return "\n".join([*lines, "", f"{notes} Made by `{command}`; every episode is in results.json.", ""])


def draw(title: str, rows: Sequence[Row], path: Path) -> None:
    """A PNG of means and intervals, one panel a dataset."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    datasets = list(dict.fromkeys(row.dataset for row in rows))
    height = 1.2 + 0.35 * max((sum(row.dataset == dataset for row in rows) for dataset in datasets), default=1)
    width = 1.5 + 3.5 * max(len(datasets), 1)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    for number, dataset in enumerate(datasets, 1):
        axes = figure.add_subplot(1, len(datasets), number)
        own = [row for row in rows if row.dataset == dataset][::-1]
        labels = [row.method + (f" @ {row.target:g}" if row.target is not None else "") for row in own]
        for place, row in enumerate(own):
            axes.plot(row.interval, [place, place], color="0.55", linewidth=3, solid_capstyle="butt")
            axes.plot([row.mean], [place], "o", color="black")
            if row.dream is not None:
                axes.plot([row.dream[0]], [place], "o", color="black", fillstyle="none")
        axes.set_yticks(range(len(own)), labels)
        axes.set_ylim(-0.6, len(own) - 0.4)
        axes.set_xlabel("return (hollow: in dreams)" if any(row.dream for row in own) else "return")
        axes.set_title(dataset)
    figure.suptitle(textwrap.fill(title, int(10 * width)))  # about ten letters an inch
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="png", dpi=150)
    os.replace(partial, path)
