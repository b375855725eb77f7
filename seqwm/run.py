"""A run: a recipe trained and evaluated into one folder (`seqwm.run_folder` says what is in it).

Every process of a distributed run calls the same functions; the first one writes. What needs torch is imported where it
is used, so that a mistyped recipe is refused at once.

With `data.streaming` training begins when the first part of the data is there (`seqwm.data.load.FIRST_ROWS`), from
which the model takes its normalisation. Each update then waits for as many further transitions as it looks at, so on
average none is looked at twice before the last has come, and what an update can draw from depends on its number alone.
A resumed run fetches again what had come, from the same revision.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqwm.core import shipped
from seqwm.core.allocator import keep_freed_memory
from seqwm.core.errors import MissingPackageError, RecipeError, RolloutError, TrainingError, UnfitEnvironmentError
from seqwm.core.random import key
from seqwm.online import open_environments, open_replay
from seqwm.recipe import Evaluate, Recipe, differences, measured_in, method_module, parse_recipe, read_recipe, smoke
from seqwm.run_folder import content, is_first, open_run, read_run, say, write_folder, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from seqwm.control.dream import DreamEnv
    from seqwm.data.store import TrajectoryStore
    from seqwm.envs.make import FreezingVectorEnv
    from seqwm.evaluation.evaluate import Evaluation
    from seqwm.training.checkpoint import Checkpoint
    from seqwm.training.collector import Collector
    from seqwm.training.supervised import Batches


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
        say(f"reading recipe {recipe}, loading torch")
        out = out or Path("runs") / str(recipe).removeprefix("recipes/").removesuffix(".yaml").lstrip("./")
        recipe = read_recipe(recipe, changes)
    return train_recipe(smoke(recipe) if small else recipe, Path(out or Path("runs") / recipe.method), resume=resume)


def train_recipe(recipe: Recipe, out: Path, *, resume: bool = False) -> Path:
    """Train and evaluate `recipe` in the folder `out`, as `train` does."""
    import torch

    from seqwm.hub.card import write_card
    from seqwm.hub.load import quiet_transformers
    from seqwm.training import checkpoint

    keep_freed_memory()
    data = _load(recipe, out, resume) if recipe.data else None
    vector = open_environments(recipe.collect, data) if recipe.collect else None
    with contextlib.closing(vector) if vector else contextlib.nullcontext():
        record = open_run(out, recipe, data, resume=resume)
        if record.get("finished"):
            say(f"{out} is finished; nothing to do")
            return out
        saved, store = checkpoint.latest(out / "checkpoints"), data
        if recipe.collect and vector:
            collected = saved.state["collector"] if saved else None
            store = open_replay(out / "replay", vector, recipe.collect, data, recipe.seed, collected)
        assert store is not None
        evaluate = _arena(recipe.evaluate, store)
        torch.manual_seed(key(recipe.seed, 0) >> 1)
        learner = _learner(recipe, store)
        if evaluate and not hasattr(learner.trained(), "policy"):
            place = evaluate.environment
            say(f"{recipe.method} makes a world and no policy, so nothing plays in {place}; see `seqwm dream {out}`")
            evaluate = None
        try:
            seconds = _fit(learner, recipe, out, record, _collect(recipe, learner, store, vector), saved, evaluate)
        finally:
            # Also when asked to stop: its threads would abort a process that ends with them running.
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
    if not is_first():
        return out

    trained = learner.trained()
    with quiet_transformers():
        write_folder(out / "model", trained.save_pretrained)
    record |= {"updates": recipe.train.steps, "seconds": round(seconds, 3)}
    record["data"] |= content(store)  # of a stream what has come, of environments what was collected
    if recipe.collect:
        record["data"]["collected"] = store.fingerprint
    write_json(out / "run.json", record)
    say(f"trained {recipe.train.steps} updates in {seconds:.1f} s; the model is in {out / 'model'}")
    if evaluate:
        returns = store.returns if store.has_rewards else None
        print(_measure(trained, evaluate, returns, out), flush=True)
    write_card(out)
    write_json(out / "run.json", record | {"finished": True})
    return out


def _load(recipe: Recipe, out: Path, resume: bool) -> TrajectoryStore:
    """The recipe's data."""
    from seqwm.data.load import load

    assert recipe.data is not None
    say(f"loading data {recipe.data.source}")
    source = shipped.locate_source(recipe.data.source)
    if resume and recipe.data.streaming and (out / "run.json").is_file():  # the source may have gone on since
        source = f"{source.partition('@')[0]}@{read_run(out)['data']['provenance']['revision']}"
    return load(source, streaming=recipe.data.streaming, progress=is_first())


def _learner(recipe: Recipe, store: TrajectoryStore) -> Any:
    """The method's own learner, or that of all methods which minimise a loss over windows."""
    from seqwm.training.supervised import SupervisedLearner

    method = method_module(recipe.method)
    if hasattr(method, "learner"):
        return method.learner(recipe.model, store, recipe.train, recipe.seed)
    model = method.build(recipe.model, store)
    if recipe.collect and hasattr(model, "policy"):  # a world without one learns from random play
        raise RecipeError(
            f"collect: found the method {recipe.method}, which learns from logs alone; expected one that acts while it "
            "learns, or `data` in place of `collect`"
        )
    choose = getattr(method, "episodes", None)  # %BC trains on the best episodes only
    special = getattr(method, "window_options", None)  # the Trajectory Transformer's windows run over ends
    chosen = choose(recipe.model, store) if choose else None
    if chosen is not None and recipe.data and recipe.data.streaming:
        raise RecipeError(
            "data.streaming: found a method that chooses episodes by comparing all of them, expected one that takes "
            "them as they come; leave streaming out"
        )
    windows = store.windows(
        model.window_length,
        recipe.train.batch_size,
        recipe.seed,
        episodes=chosen,
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        **(special(recipe.model) if special else {}),
    )
    return SupervisedLearner(model, windows, recipe.train, recipe.seed)


def _collect(
    recipe: Recipe, learner: Any, store: TrajectoryStore, vector: FreezingVectorEnv | DreamEnv | None
) -> Collector | Callable[[int], None] | None:
    """What fetches experience before an update: from environments, from a stream, or nothing."""
    from seqwm.data.load import StreamedStore
    from seqwm.training.collector import Collector

    if recipe.collect and vector:
        return Collector(learner, vector, store, recipe.collect.updates_per_step, recipe.seed)
    if not isinstance(store, StreamedStore):
        return None
    first, an_update = store.rows, learner.windows.batch_size * learner.windows.length
    return lambda step: store.grow(first + step * an_update)


def _fit(
    learner: Any,
    recipe: Recipe,
    out: Path,
    record: dict[str, Any],
    collect: Collector | Callable[[int], None] | None,
    saved: Checkpoint | None,
    evaluate: Evaluate | None,
) -> float:
    """Run the loop from the last checkpoint to the end; the seconds of training, those of earlier processes counted."""
    from seqwm.learning_curve import LearningCurve
    from seqwm.training import checkpoint, loop
    from seqwm.training.collector import Collector
    from seqwm.training.tracking import Tracking

    collector = collect if isinstance(collect, Collector) else None
    if saved:
        learner.load_state_dict(saved.state["learner"])
        say(f"going on from update {saved.step}")
    if saved and collector:
        strayed = collector.load_state_dict(saved.state["collector"])
        if strayed:
            say(
                f"lanes {strayed} did not do again what they had done with the same seeds and actions: their episodes "
                "were cut, and this run ends in other numbers than one that was not stopped"
            )
    start, earlier = (saved.step, float(saved.state["seconds"])) if saved else (0, 0.0)

    def state() -> dict[str, Any]:
        known = {"learner": learner.state_dict(), "seconds": earlier + time.monotonic() - began}
        return known | ({"collector": collector.state_dict()} if collector else {})

    steps, began = recipe.train.steps, time.monotonic()
    try:
        if not is_first():
            loop.train(learner, steps, start=start, collect=collect)
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
        hooks: list[loop.Hook] = [tracking, checkpoints]
        if evaluate and evaluate.every:
            hooks.insert(1, LearningCurve(out / "learning.jsonl", learner, evaluate, start, earlier))
        began = time.monotonic()
        with tracking:
            loop.train(learner, steps, start=start, collect=collect, hooks=hooks)
    except RolloutError as error:
        if collector is None or error.lane is None:
            raise
        checkpoint.save(out / "checkpoints", collector.step, state())
        kept = "its episode was kept up to there, and --resume goes on with the next"
        raise RolloutError(f"before update {collector.step}: {error}; {kept}", error.lane) from error
    except TrainingError as error:
        if error.step is None or not hasattr(learner, "windows"):
            raise
        batch = _keep_batch(out / f"not-finite-{error.step:08d}.safetensors", learner.windows, error.step)
        raise TrainingError(f"{error}. The batch is in {batch}, the last good state in {out}", error.step) from None
    return earlier + time.monotonic() - began


def _arena(evaluate: Evaluate, store: TrajectoryStore) -> Evaluate | None:
    """How to measure, the environment built once before hours of training; None where the data's own cannot be."""
    from seqwm.envs.make import make_vector

    options = measured_in(evaluate, store.provenance)
    if options.environment is None:
        say("the data names no environment and evaluate.environment is null, so there will be no evaluation")
        return None
    try:
        make_vector(options.environment, 1, spaces=store.spaces, options=options.environment_options).close()
    except (UnfitEnvironmentError, MissingPackageError) as error:
        if evaluate.environment:
            raise
        say(f"there will be no evaluation: {error}")
        return None
    return options


def evaluate_run(
    run_or_repository: str | Path,
    *,
    environment: str | None = None,
    targets: Sequence[float] | None = None,
    episodes: int | None = None,
    seed: int | None = None,
    reference: str | None = None,
    revision: str | None = None,
    out: str | Path | None = None,
    changes: Sequence[str] = (),
) -> Evaluation:
    """Evaluate a trained model; what is None is taken from the run's recipe.

    Args:
        run_or_repository: the folder of a run, or a Hub repository.
        environment: a Gymnasium id.
        targets: target returns; where the recipe has none either, those that the run was evaluated at.
        episodes: for each target.
        seed: the first of the environments' seeds.
        reference: name of the pair of returns behind scores.
        revision: of a Hub repository.
        out: folder for evaluation.json, curve.png and replay.mp4; nothing is written when None.
        changes: to the run's recipe, as after `--set`: of `evaluate`, and of what only says how the model acts, for
            example 'model.planner.beams=64'.

    Raises:
        RecipeError: a change of anything else.
    """
    from seqwm.hub.load import find_model, load_model

    model = load_model(run_or_repository, revision=revision)
    folder = find_model(run_or_repository, revision=revision)
    home = folder if (folder / "recipe.yaml").is_file() else folder.parent  # a repository is flat, a run is not
    options, file = Evaluate(), home / "recipe.yaml"
    if file.is_file():
        recipe = parse_recipe(file.read_text(), str(file), changes)
        if changes:
            _act_otherwise(model, recipe, parse_recipe(file.read_text(), str(file)))
        options = recipe.evaluate
    elif changes:
        raise RecipeError(f"{run_or_repository}: holds no recipe.yaml, expected one to change; leave --set out")
    if targets is None and options.targets is None and (home / "evaluation.json").is_file():
        asked = [one["target"] for one in json.loads((home / "evaluation.json").read_text())["summaries"]]
        targets = [target for target in asked if target is not None] or None
    given: dict[str, Any] = {
        "environment": environment or options.environment or model.config.environment,
        "targets": tuple(targets) if targets is not None else None,
        "episodes": episodes,
        "seed": seed,
        "reference": reference,
    }
    options = dataclasses.replace(options, **{name: value for name, value in given.items() if value is not None})
    if (home / "run.json").is_file():
        options = measured_in(options, read_run(home)["data"].get("provenance", {}))
    if options.environment is None:
        raise UnfitEnvironmentError(
            f"{run_or_repository}: names no environment; give one, for example --env CartPole-v1"
        )
    return _measure(model, options, None, Path(out) if out else None)


def _act_otherwise(model: Any, recipe: Recipe, trained: Recipe) -> None:
    """Give a model what its method lists as ACTING, and refuse all other changes to what it was trained with."""
    acting: tuple[str, ...] = getattr(method_module(recipe.method), "ACTING", ())
    for difference in differences(recipe, trained):
        key = difference.partition(":")[0]
        if not key.startswith(("evaluate.", *(f"model.{name}" for name in acting))):
            known = ", ".join(("evaluate", *(f"model.{name}" for name in acting)))
            raise RecipeError(f"--set {difference}: belongs to training; can be changed now: {known}")
    for name in acting:
        setattr(model.config, name, dataclasses.asdict(recipe.model)[name])


def _measure(model: Any, options: Evaluate, returns: NDArray[np.float64] | None, out: Path | None) -> Evaluation:
    """Play the episodes; leave them, and what shows them, in `out`. `returns` are those of the data, where known."""
    from seqwm.evaluation.evaluate import evaluate, spread_targets
    from seqwm.evaluation.figures import draw_curve
    from seqwm.evaluation.references import own_reference, reference
    from seqwm.evaluation.replay import write_replay

    environment, targets = options.environment, options.targets
    assert environment is not None
    if targets is None and returns is not None and model.return_conditioned:
        targets = spread_targets(returns)
    evaluation = evaluate(
        model,
        environment,
        targets=targets,
        episodes=options.episodes,
        seed=options.seed,
        options=options.environment_options,
        reference=reference(options.reference) if options.reference else own_reference(environment),
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        evaluation.save(out / "evaluation.json")
        draw_curve(evaluation, out / "curve.png", returns)
        if options.replay:
            asked = [target for target in evaluation.targets if target is not None]
            best = max(asked, default=None)
            write_replay(
                model, environment, best, options.seed, out / "replay.mp4", options=options.environment_options
            )
    return evaluation


def _keep_batch(path: Path, windows: Batches, step: int) -> Path:
    """Write a batch, which is a pure function of its step, for a look at what made training fail."""
    from safetensors.torch import save_file

    from seqwm.core.tree import flatten

    batch = windows.batch(step)
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    leaves = {name: leaf.contiguous() for name, leaf in flatten(fields).items() if leaf is not None}
    save_file(leaves, path)
    return path
