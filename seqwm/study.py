"""A study: many runs out of one file, one table and one figure with intervals.

    title: Return conditioning against plain imitation on Hopper
    methods:
      DT: {recipe: dt/hopper}
      BC: {recipe: bc/hopper}
    datasets:                                   # changes to the recipe, as after --set
      mixed: [data.source=minari:hopper/mixed-v0]
    seeds: [0, 1, 2]
    set: [train.steps=10000]                    # changes to every cell
    include: [peer.json]                        # records that other programs measured

Beside the file come results.json (a record for every cell and target: per-episode returns, seconds, command, commit),
results.md and results.png, rewritten after every cell. A cell whose record is there, made from the same recipe, is not
run again; one that was stopped goes on from its checkpoint.

With `dream_steps: 16` the policy of every run also plays so many steps in dreams of its own world, as `seqwm dream` has
it, and the column `dream` shows the return that they promise.

With `thresholds: [195, 475]`, and runs that are measured while they learn (`evaluate.every`), results.md also says how
many environment steps and seconds each method takes to them, and curves.png shows returns against steps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from seqwm import study_curves, study_report
from seqwm.core import strict_yaml
from seqwm.core.errors import RecipeError
from seqwm.core.files import write_atomically
from seqwm.dreaming import dream
from seqwm.evaluation.evaluate import Evaluation
from seqwm.recipe import Recipe, read_recipe, resolved_yaml
from seqwm.run import train_recipe
from seqwm.run_folder import read_run, say, write_json

Key: TypeAlias = tuple[str, str, int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One row of the table: a recipe, and what is changed in it."""

    recipe: str
    set: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Methods x datasets x seeds.

    Attributes:
        title: heads the table and the figure.
        methods: recipes by the name that stands in the table.
        datasets: changes by the dataset's name; without any, each recipe keeps its own data.
        seeds: each cell is trained once with each.
        set: changes to every cell.
        columns: what the table shows.
        include: files of records in the form of results.json, made by other programs or another study; relative to
            the study's file. Those of data sets that are none of this study's are left out.
        dream_steps: of an episode in dreams of the run's own world, as many episodes as it was evaluated with; none
            are dreamt when null.
        thresholds: returns, rising, to whose first sight steps and seconds are counted.
        threads: CPU threads of a run; null leaves them as they are. They change rates, and last bits of results.
    """

    title: str
    methods: dict[str, Method]
    datasets: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"": ()})
    seeds: tuple[int, ...] = (0,)
    set: tuple[str, ...] = ()
    columns: tuple[study_report.Column, ...] = ("return", "updates/s")
    include: tuple[str, ...] = ()
    dream_steps: int | None = None
    thresholds: tuple[float, ...] = ()
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a study; `digest` names its recipe, so that a record of an older one is not taken for its own."""

    method: str
    dataset: str
    seed: int
    recipe: Recipe

    @property
    def digest(self) -> str:
        """The first letters of the sha256 of the resolved recipe."""
        return hashlib.sha256(resolved_yaml(self.recipe).encode()).hexdigest()[:12]

    @property
    def key(self) -> Key:
        """What its records are found again by."""
        return self.method, self.dataset, self.seed, self.digest

    @property
    def folder(self) -> str:
        """A folder name of its own."""
        words = "-".join(word for word in (self.method, self.dataset, f"seed{self.seed}", self.digest) if word)
        return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in words)


def read_study(file: Path) -> Study:
    """The study that a file spells, checked as strictly as a recipe."""
    if not file.is_file():
        raise RecipeError(f"{file}: no such file; expected a study, as recipes/studies/quickstart/study.yaml is one")
    study = strict_yaml.build(Study, strict_yaml.compose(file.read_text(), str(file)))
    for name in ("methods", "datasets", "seeds"):
        if not getattr(study, name):
            raise RecipeError(f"{file}: {name}: found none, expected at least one")
    return study


def cells(study: Study) -> Iterator[Cell]:
    """The runs of a study, dataset by dataset."""
    for dataset, own in study.datasets.items():
        for name, method in study.methods.items():
            for seed in study.seeds:
                changes = [*study.set, *method.set, *own, f"seed={seed}"]
                yield Cell(name, dataset, seed, read_recipe(method.recipe, changes))


def run_study(file: str | Path, *, runs: str | Path = "runs/studies", out: str | Path | None = None) -> Path:
    """Run what is not there yet, write results, table and figure; the table's path is returned.

    Args:
        file: the study.
        runs: where the run folders go.
        out: where results.json, results.md and results.png go; beside the file when None.

    Raises:
        RecipeError: an unknown key, wrong type or unknown recipe, in the study or in any of its cells, before any run.
    """
    file = Path(file)
    study = read_study(file)
    planned = list(cells(study))
    included = [
        record
        for name in study.include
        for record in _included(file.parent / name)
        if record["dataset"] in study.datasets
    ]
    out = Path(out) if out else file.parent
    if study.threads:
        import torch

        torch.set_num_threads(study.threads)
    results = _kept(out / "results.json", file)
    for number, cell in enumerate(planned, 1):
        if cell.key in results:
            continue
        say(f"cell {number} of {len(planned)}: {cell.method} {cell.dataset} seed {cell.seed}")
        run = train_recipe(cell.recipe, Path(runs) / file.resolve().parent.name / cell.folder, resume=True)
        results[cell.key] = list(_records(cell, run, study.dream_steps))
        _write(study, file, planned, results, included, out)
    return _write(study, file, planned, results, included, out)


def _records(cell: Cell, run: Path, dream_steps: int | None) -> Iterator[dict[str, Any]]:
    """A record for each target that the run was evaluated at."""
    record = read_run(run)
    if not (run / "evaluation.json").is_file():
        mend = "name one by evaluate.environment"
        raise RecipeError(
            f"{cell.method} {cell.dataset}: the run was not evaluated, for its data names no environment; {mend}"
        )
    evaluation = Evaluation.from_json(json.loads((run / "evaluation.json").read_text()))
    curve = _curve(run / "learning.jsonl")
    dreamt = _dreamt(run, dream_steps, cell.recipe.evaluate.episodes) if dream_steps else None
    for target in evaluation.targets:
        yield {
            "method": cell.method,
            "dataset": cell.dataset,
            "seed": cell.seed,
            "target": target,
            "environment": evaluation.environment,
            "returns": evaluation.returns(target).tolist(),
            "updates": record["updates"],
            "seconds": record["seconds"],
            "recipe": cell.digest,
            "fingerprint": record["data"]["fingerprint"],
            **{name: record[name] for name in ("command", "commit", "versions", "machine")},
            **({"curve": curve} if curve else {}),
            **({"dream_returns": dreamt} if dreamt else {}),
        }


def _dreamt(run: Path, steps: int, episodes: int) -> list[float]:
    """Returns of a run's policy in dreams of its own world."""
    gap = dream(run, horizon=steps, episodes=episodes).gap
    assert gap is not None  # the run was evaluated, so there is an environment
    return gap.dream.returns


def _curve(path: Path) -> list[list[float]]:
    """[environment steps, seconds, mean return] of every measurement while a run collected and learned."""
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        [line["environment_steps"], line["seconds"], round(sum(line["returns"]) / len(line["returns"]), 4)]
        for line in lines
        if line["environment_steps"] is not None
    ]


def _kept(path: Path, file: Path) -> dict[Key, list[dict[str, Any]]]:
    """The records of earlier runs of this study, by cell."""
    if not path.is_file():
        return {}
    results = json.loads(path.read_text())
    if results["study"] != file.name:
        mend = "give each study a folder of its own"
        raise RecipeError(f"{path}: found results of {results['study']}, expected those of {file.name}; {mend}")
    kept: dict[Key, list[dict[str, Any]]] = {}
    for record in results["records"]:
        key = record["method"], record["dataset"], record["seed"], record["recipe"]
        kept.setdefault(key, []).append(record)
    return kept


def _included(path: Path) -> list[dict[str, Any]]:
    """Records that another program wrote."""
    try:
        records: list[dict[str, Any]] = json.loads(path.read_text())["records"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error!r}); expected {{'records': [...]}}") from None
    for number, record in enumerate(records):
        missing = [name for name in study_report.REQUIRED if name not in record]
        if missing:
            raise RecipeError(f"{path}: record {number}: {', '.join(missing)}: missing")
    return records


def _write(
    study: Study,
    file: Path,
    planned: list[Cell],
    results: dict[Key, list[dict[str, Any]]],
    included: list[dict[str, Any]],
    out: Path,
) -> Path:
    """results.json with the records of this study's cells in their order, then the table and the figure of all."""
    records = [record for cell in planned for record in results.get(cell.key, ())]
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", {"study": file.name, "title": study.title, "records": records})
    rows = study_report.rows(records + included)
    command = f"seqwm study {file.name}"
    text = study_report.table(study.title, rows, study.columns, command)
    learned = [record for record in records + included if record.get("curve")]
    if study.thresholds and learned:
        text += f"\n{study_curves.curves_table(learned, study.thresholds)}"
        study_curves.draw_curves(study.title, learned, study.thresholds, out / "curves.png")
    write_atomically(out / "results.md", text.encode())
    study_report.draw(study.title, rows, out / "results.png")
    return out / "results.md"
