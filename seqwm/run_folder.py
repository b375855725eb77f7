"""The folder of a run: begun once, resumed by the same recipe on the same data only, written so that nothing is half.

RUN/recipe.yaml        the recipe with every default written out
    run.json           command, commit, versions, machine, dataset and its fingerprint, updates, seconds
    metrics.jsonl      losses; tensorboard/ has the same as curves
    learning.jsonl     returns measured while learning, where the recipe asks for them
    replay/            the store of what was collected, where the learner acted
    checkpoints/       the last two, for --resume
    model/             configuration and weights, as `from_pretrained` reads them
    evaluation.json    every episode; curve.png and replay.mp4 show them
    README.md          the model card
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqwm.core.errors import CheckpointError
from seqwm.recipe import Recipe, differences, parse_recipe, resolved_yaml

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore

_HARMLESS = ("evaluate.", "publish", "train.checkpoint_every", "train.log_every", "train.track")


def open_run(out: Path, recipe: Recipe, store: TrajectoryStore | None, *, resume: bool) -> dict[str, Any]:
    """The content of run.json of the run in `out`, begun or resumed; `store` is its data, if it has any.

    Raises:
        CheckpointError: `out` holds other files, a run that was not asked to go on, or one of another recipe or data;
            what could not change a result (evaluation, tracking, checkpoints) may differ.
    """
    data: dict[str, Any]
    if recipe.data is not None and store is not None:
        data = {"source": recipe.data.source, "fingerprint": store.fingerprint, **content(store)}
        data["provenance"] = dict(store.provenance)
    else:
        assert recipe.collect is not None
        known_of = recipe.collect.provenance
        data = {"source": known_of["source"], "fingerprint": None, "provenance": known_of}
    known = read_run(out) if (out / "run.json").is_file() else {}
    if not is_first():
        return known
    old = out / "recipe.yaml"
    if not old.is_file() and out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out}: found files that are no run, expected a new or empty folder; give another --out")
    if old.is_file() and not resume:
        raise CheckpointError(f"{out}: holds a run already; go on with it by --resume, or give another --out")
    record: dict[str, Any] = known or {"id": secrets.token_hex(4), "data": data}
    if old.is_file():
        lines = differences(recipe, parse_recipe(old.read_text(), str(old)))
        changed = [line for line in lines if not line.startswith(_HARMLESS)]
        if changed:
            raise CheckpointError(f"{out}: cannot resume another recipe ({'; '.join(changed)}); give another --out")
        if record["data"]["fingerprint"] != data["fingerprint"]:
            found, was = (f"{d['transitions']} transitions, {d['fingerprint'][:12]}" for d in (data, record["data"]))
            raise CheckpointError(f"{out}: cannot resume, the data changed ({found}; was {was}); give another --out")
    from seqwm.core.files import write_atomically
    from seqwm.core.provenance import provenance

    out.mkdir(parents=True, exist_ok=True)
    record |= {**provenance(), "method": recipe.method, "seed": recipe.seed}
    write_json(out / "run.json", record)
    write_atomically(old, resolved_yaml(recipe).encode())
    return record


def content(store: TrajectoryStore) -> dict[str, Any]:
    """How much a store holds, and least, median and greatest of its returns."""
    size: dict[str, Any] = {"episodes": len(store), "transitions": store.rows}
    if store.has_rewards and len(store):
        size["returns"] = [float(pick(store.returns)) for pick in (np.min, np.median, np.max)]
    return size


def read_run(out: Path) -> dict[str, Any]:
    """The content of run.json; CheckpointError where `out` is no run."""
    try:
        record: dict[str, Any] = json.loads((out / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{out}: found no readable run.json ({error}), expected the folder of a run") from None
    return record


def write_json(path: Path, value: Any) -> None:
    """A JSON file that is there whole or as it was."""
    from seqwm.core.files import write_atomically

    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def write_folder(path: Path, write: Callable[[Path], Any]) -> None:
    """A folder that is there whole or not at all."""
    partial = path.with_name(f".{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    shutil.rmtree(path, ignore_errors=True)
    os.rename(partial, path)


def is_first() -> bool:
    """Whether this is the process that writes, the only one or number 0 of several."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """A line for the person who waits, from the first process only."""
    if is_first():
        print(text, file=sys.stderr, flush=True)
