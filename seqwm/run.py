"""A run: a recipe trained and evaluated into one folder.

    RUN/recipe.yaml        the recipe with every default written out
        run.json           command, commit, versions, machine, dataset and its fingerprint, updates, seconds
        metrics.jsonl      losses; tensorboard/ has the same as curves
        checkpoints/       the last two, for --resume
        model/             configuration and weights, as `from_pretrained` reads them
        evaluation.json    every episode; curve.png and replay.mp4 show them
        README.md          the model card

Every process of a distributed run calls the same functions; the first one writes. What needs torch is imported where it
is used, so that a mistyped recipe is refused at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqwm.core import shipped
from seqwm.core.errors import CheckpointError, TrainingError
from seqwm.core.random import key
from seqwm.recipe import Recipe, differences, method_module, parse_recipe, read_recipe, resolved_yaml, smoke

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore
    from seqwm.training.supervised import Batches, SupervisedLearner

_HARMLESS = ("evaluate.", "publish", "train.checkpoint_every", "train.log_every", "train.track")


def train(
    recipe: str | Path | Recipe,
    out: str | Path | None = None,
    *,
    changes: Sequence[str] = (),
    small: bool = False,
    resume: bool = False,
) -> Path:
    """Train and evaluate a recipe; the folder of the run is returned.

    Args:
        recipe: a file, the name of a shipped one ('quickstart'), or a recipe made in Python.
        out: the folder to make; `runs/` and the recipe's name when None.
        changes: 'train.steps=1000' and the like, to a recipe that is read.
        small: shrink it to a minute on a CPU, to see whether it runs.
        resume: go on with the run in `out` from its last checkpoint; a run that has none yet begins.

    Raises:
        RecipeError, DataError, CheckpointError, TrainingError: each says where, what was expected and the mend.
        SystemExit: SIGTERM or SIGINT came; a checkpoint was made and the status is 128 + signal.
    """
    if not isinstance(recipe, Recipe):
        say(f"reading recipe {recipe}")
        out = out or Path("runs") / str(recipe).removeprefix("recipes/").removesuffix(".yaml").lstrip("./")
        recipe = read_recipe(recipe, changes)
    return train_recipe(smoke(recipe) if small else recipe, Path(out or Path("runs") / recipe.method), resume=resume)


def train_recipe(recipe: Recipe, out: Path, *, resume: bool = False) -> Path:
    """Train and evaluate `recipe` in the folder `out`, as `train` does."""
    say("loading torch")
    import torch

    from seqwm.data.load import load
    from seqwm.training.supervised import SupervisedLearner

    say(f"loading data {recipe.data.source}")
    store = load(shipped.locate_source(recipe.data.source), progress=is_first())
    record = _open_run(recipe, out, store, resume)
    if record.get("finished"):
        say(f"{out} is finished; nothing to do")
        return out

    method = method_module(recipe.method)
    torch.manual_seed(key(recipe.seed, 0) >> 1)
    model = method.build(recipe.model, store)
    choose = getattr(method, "episodes", None)  # %BC trains on the best episodes only
    special = getattr(method, "window_options", None)  # the Trajectory Transformer's windows run over ends
    windows = store.windows(
        model.window_length,
        recipe.train.batch_size,
        recipe.seed,
        episodes=choose(recipe.model, store) if choose else None,
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        **(special(recipe.model) if special else {}),
    )
    learner = SupervisedLearner(model, windows, recipe.train, recipe.seed)
    seconds = _fit(learner, recipe, out, record)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if not is_first():
        return out

    trained = learner.averaged().to("cpu")
    _write_folder(out / "model", trained.save_pretrained)
    record |= {"updates": recipe.train.steps, "seconds": round(seconds, 3)}
    _write_json(out / "run.json", record)
    say(f"trained {recipe.train.steps} updates in {seconds:.1f} s; the model is in {out / 'model'}")
    _write_json(out / "run.json", record | {"finished": True})
    return out


def _fit(learner: SupervisedLearner, recipe: Recipe, out: Path, record: dict[str, Any]) -> float:
    """Run the loop from the last checkpoint to the end; the seconds of training, those of earlier processes counted."""
    from seqwm.training import checkpoint, loop
    from seqwm.training.tracking import Tracking

    saved = checkpoint.latest(out / "checkpoints")
    if saved:
        learner.load_state_dict(saved.state["learner"])
        say(f"going on from update {saved.step}")
    start, earlier = (saved.step, float(saved.state["seconds"])) if saved else (0, 0.0)
    began = time.monotonic()

    def state() -> dict[str, Any]:
        return {"learner": learner.state_dict(), "seconds": earlier + time.monotonic() - began}

    steps = recipe.train.steps
    try:
        if not is_first():
            loop.train(learner, steps, start=start)
            return 0.0
        tracking = Tracking(
            out,
            recipe.train.track,
            start=start,
            seconds=earlier,
            every=recipe.train.log_every or max(1, steps // 1000),
            steps=steps,
            identity=record["id"],
            config=dataclasses.asdict(recipe),
        )
        checkpoints = checkpoint.Checkpoints(out / "checkpoints", state, recipe.train.checkpoint_every)
        with tracking:
            loop.train(learner, steps, start=start, hooks=(tracking, checkpoints))
    except TrainingError as error:
        if error.step is None:
            raise
        batch = _keep_batch(out / f"not-finite-{error.step:08d}.safetensors", learner.windows, error.step)
        raise TrainingError(f"{error}. The batch is in {batch}, the last good state in {out}", error.step) from None
    return earlier + time.monotonic() - began


def _open_run(recipe: Recipe, out: Path, store: TrajectoryStore, resume: bool) -> dict[str, Any]:
    """The record of the run in `out`, begun or resumed; refuses to mix two runs."""
    content: dict[str, Any] = {"fingerprint": store.fingerprint, "episodes": len(store), "transitions": store.rows}
    data = {"source": recipe.data.source, **content}
    known = json.loads((out / "run.json").read_text()) if (out / "run.json").is_file() else {}
    if not is_first():
        return known
    old = out / "recipe.yaml"
    if not old.is_file() and out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out}: found files that are no run, expected a new or empty folder; give another --out")
    if old.is_file() and not resume:
        raise CheckpointError(f"{out}: holds a run already; go on with it by --resume, or give another --out")
    record: dict[str, Any] = known or {"id": secrets.token_hex(4), "data": data}
    if old.is_file():
        changed = [
            line
            for line in differences(recipe, parse_recipe(old.read_text(), str(old)))
            if not line.startswith(_HARMLESS)
        ]
        if changed:
            raise CheckpointError(
                f"{out}: cannot resume with another recipe ({'; '.join(changed)}); give another --out"
            )
        if record["data"]["fingerprint"] != data["fingerprint"]:
            found, was = (f"{d['transitions']} transitions, {d['fingerprint'][:12]}" for d in (data, record["data"]))
            raise CheckpointError(f"{out}: cannot resume, the data changed ({found}; was {was}); give another --out")
    from seqwm.core.provenance import provenance
    from seqwm.data.segment import write_atomically

    out.mkdir(parents=True, exist_ok=True)
    record |= {**provenance(), "method": recipe.method, "seed": recipe.seed}
    _write_json(out / "run.json", record)
    write_atomically(old, resolved_yaml(recipe).encode())
    return record


def say(text: str) -> None:
    """A line for the person who waits, from the first process only."""
    if is_first():
        print(text, file=sys.stderr, flush=True)


def is_first() -> bool:
    """Whether this is the process that writes, the only one or number 0 of several."""
    return os.environ.get("RANK", "0") == "0"


def _keep_batch(path: Path, windows: Batches, step: int) -> Path:
    """Write a batch, which is a pure function of its step, for a look at what made training fail."""
    from safetensors.torch import save_file

    from seqwm.core.tree import flatten

    batch = windows.batch(step)
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    leaves = {name.rstrip("/"): leaf.contiguous() for name, leaf in flatten(fields).items() if leaf is not None}
    save_file(leaves, path)
    return path


def _write_json(path: Path, value: Any) -> None:
    from seqwm.data.segment import write_atomically

    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def _write_folder(path: Path, write: Callable[[Path], Any]) -> None:
    """A folder that is there whole or not at all."""
    partial = path.with_name(f".{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    shutil.rmtree(path, ignore_errors=True)
    os.rename(partial, path)
