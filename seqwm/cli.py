"""The command line: each verb is a thin reading of one Python function; heavy imports wait until they are needed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seqwm.core.errors import RecipeError, SeqwmError

SOURCES = """sources:
  minari:hopper/medium-v0      a Minari id, local (MINARI_DATASETS_PATH) or downloaded
  hf:user/name[@revision]      a Hugging Face dataset of Parquet files or of videos
  lerobot:user/name            LeRobot v3, a folder or a Hub repository
  d4rl:hopper.hdf5             D4RL's flat HDF5
  a path                       a store, a Minari or LeRobot folder, Parquet or Arrow files
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 refused, 2 bad usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "run"):
        options.help_of.print_help()
        return 2
    try:
        status: int = options.run(options)
    except SeqwmError as error:
        print(f"seqwm: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `seqwm ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="seqwm",
        description="Logged trajectories in, evaluated and published sequence and world models out.",
        epilog="""examples:
  seqwm train quickstart                            train, evaluate and draw, in about a minute on a CPU
  seqwm data inspect minari:mujoco/hopper/medium-v0 look at a dataset
  seqwm evaluate runs/quickstart --targets 100 300 500
  seqwm publish runs/quickstart user/my-first-dt

`seqwm VERB --help` tells more of each.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"seqwm {_version()}")
    parser.set_defaults(help_of=parser)
    verbs = parser.add_subparsers(metavar="VERB")
    _add_data(verbs)
    _add_train(verbs)
    _add_evaluate(verbs)
    _add_dream(verbs)
    _add_study(verbs)
    _add_publish(verbs)
    return parser


def _verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], int], help: str, examples: str) -> Any:
    verb = verbs.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(run=run, help_of=verb)
    return verb


# -- data ------------------------------------------------------------------------------------------------------------


def _add_data(verbs: Any) -> None:
    data = verbs.add_parser(
        "data",
        help="inspect, validate, convert, collect, label and publish datasets",
        epilog=SOURCES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data.set_defaults(help_of=data)
    kinds = data.add_subparsers(metavar="VERB")

    verb = _verb(
        kinds, "inspect", _inspect, "show what a dataset holds",
        f"  seqwm data inspect datasets/cartpole\n  seqwm data inspect hf:user/name --json\n\n{SOURCES}",
    )  # fmt: skip
    verb.add_argument("source")
    verb.add_argument("--json", action="store_true", help="figures for a program")

    verb = _verb(
        kinds, "validate", _validate, "check a dataset for everything that could spoil training",
        f"  seqwm data validate minari:hopper/medium-v0\n  seqwm data validate logs/ --json\n\n{SOURCES}",
    )  # fmt: skip
    verb.add_argument("source")
    verb.add_argument("--json", action="store_true", help="one JSON object with every problem")

    verb = _verb(
        kinds, "convert", _convert, "write a dataset as a store, or as Parquet for others to read",
        f"  seqwm data convert d4rl:hopper.hdf5 --out hopper\n"
        f"  seqwm data convert hopper --out hopper-parquet --to parquet\n\n{SOURCES}",
    )  # fmt: skip
    verb.add_argument("source")
    verb.add_argument("--out", type=Path, required=True, help="the folder to make")
    verb.add_argument("--to", choices=["store", "parquet"], default="store")

    verb = _verb(
        kinds, "collect", _collect, "log a policy in an environment",
        "  seqwm data collect CartPole-v1 --policy random --steps 10000 --out logs/random\n"
        "  seqwm data collect Hopper-v5 --policy runs/hopper --target 3000 --steps 50000 --out logs/dt\n"
        "  seqwm data collect FrozenLake-v1 --option is_slippery=false --steps 10000 --out logs/dry",
    )  # fmt: skip
    verb.add_argument("environment", help="a registered Gymnasium id")
    verb.add_argument("--policy", default="random", help="'random', a run folder or a Hub repository")
    verb.add_argument("--target", type=float, help="return to ask a return-conditioned policy for")
    verb.add_argument("--steps", type=int, required=True, help="transitions to log")
    verb.add_argument("--out", type=Path, required=True, help="the store to make")
    verb.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE",
        help="keyword argument of the environment; repeatable",
    )  # fmt: skip
    verb.add_argument("--lanes", type=int, default=16, help="environments that run side by side (%(default)s)")
    verb.add_argument("--seed", type=int, default=0)

    verb = _verb(
        kinds, "label", _label, "write a dataset anew with latent actions in place of its own, or of none",
        "  seqwm data label runs/latent_actions/sprites-16 video:clips --out labelled\n"
        "  seqwm train recipes/behavior_cloning/hopper.yaml --set data.source=labelled",
    )  # fmt: skip
    verb.add_argument("model", help="a run folder or a Hub repository of a world of latent actions")
    verb.add_argument("source")
    verb.add_argument("--out", type=Path, required=True, help="the store to make")
    verb.add_argument("--revision", help="of a Hub repository")

    verb = _verb(
        kinds, "publish", _publish_data, "publish a dataset on the Hub as Parquet that others can read",
        "  seqwm data publish logs/random user/cartpole-random\n"
        "  seqwm data publish logs/random user/cartpole-random --dry-run folder",
    )  # fmt: skip
    verb.add_argument("source")
    verb.add_argument("repository", help="user/name on the Hub")
    verb.add_argument("--private", action="store_true")
    verb.add_argument("--revision", help="branch to publish on")
    verb.add_argument("--dry-run", type=Path, metavar="DIR", help="write the exact folder and send nothing")


def _inspect(options: argparse.Namespace) -> int:
    from seqwm.data.inspect import as_text, inspect

    report = inspect(_load(options.source))
    print(json.dumps(report, indent=1) if options.json else as_text(report))
    return 0


def _validate(options: argparse.Namespace) -> int:
    from seqwm.core import shipped
    from seqwm.data.validate import summarise, validate

    findings = validate(shipped.locate_source(options.source))
    if options.json:
        problems = [problem.to_json() for problem in findings.problems]
        print(json.dumps({"source": options.source, "valid": not findings.errors, "problems": problems}, indent=1))
    else:
        for summary in summarise(findings.problems):
            print(summary)
        print(f"{options.source}: {len(findings.errors)} errors, {len(findings.warnings)} warnings")
    return 1 if findings.errors else 0


def _convert(options: argparse.Namespace) -> int:
    if options.to == "parquet":
        from seqwm.data.export import write_parquet

        store = _load(options.source)
        write_parquet(store.episodes(), store.spaces, options.out, provenance=store.provenance)
        print(f"{options.out}: {store.rows:,} transitions in {len(store):,} episodes, as Parquet")
        return 0
    from seqwm.core import shipped
    from seqwm.data.load import convert
    from seqwm.data.problems import Findings
    from seqwm.data.sources import open_source

    source = open_source(shipped.locate_source(options.source), Findings(strict=True))
    store = convert(source, options.out, progress=True)
    print(f"{options.out}: {store.rows:,} transitions in {len(store):,} episodes")
    return 0


def _collect(options: argparse.Namespace) -> int:
    from seqwm.control.collect import collect

    policy = spaces = None
    if options.policy != "random":
        from seqwm.evaluation.evaluate import model_spaces
        from seqwm.hub.load import load_model

        model = load_model(options.policy)
        spaces = model_spaces(model)
        targets = [options.target] * options.lanes if options.target is not None else None
        policy = model.policy(targets)
    store = collect(
        options.environment, policy, options.steps, options.out,
        lanes=options.lanes, seed=options.seed, spaces=spaces, name=options.policy,
        options=dict(_named(text) for text in options.option),
    )  # fmt: skip
    returns = store.returns
    print(f"{options.out}: {store.rows:,} transitions in {len(store):,} episodes, mean return {returns.mean():.4g}")
    return 0


def _named(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value read as YAML reads it."""
    import yaml

    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise RecipeError(f"--option {text}: expected NAME=VALUE, for example --option is_slippery=false")
    return name, yaml.safe_load(value)


def _label(options: argparse.Namespace) -> int:
    from seqwm.control.labels import labelled
    from seqwm.core.errors import CheckpointError
    from seqwm.hub.load import load_model

    model = load_model(options.model, revision=options.revision)
    if not hasattr(model, "latent"):
        raise CheckpointError(f"{options.model}: {type(model).__name__} infers no latent actions; give such a model")
    store = labelled(model, _load(options.source), options.out)
    last = model.latent.codes - 1
    print(f"{options.out}: {store.rows:,} transitions in {len(store):,} episodes, actions 0 to {last}")
    return 0


def _publish_data(options: argparse.Namespace) -> int:
    from seqwm.hub.publish_data import publish_data

    where = publish_data(
        _load(options.source),
        options.repository,
        private=options.private,
        revision=options.revision,
        dry_run=options.dry_run,
    )
    print(where)
    return 0


# -- train, evaluate, study, publish ----------------------------------------------------------------------------------


def _add_train(verbs: Any) -> None:
    verb = _verb(
        verbs, "train", _train, "train and evaluate a recipe",
        "  seqwm train quickstart\n"
        "  seqwm train recipes/decision_transformer/hopper-mixed.yaml --set train.steps=2000 --set seed=1\n"
        "  seqwm train my.yaml --out runs/mine --resume",
    )  # fmt: skip
    verb.add_argument("recipe", help="a file, or the name of a shipped recipe")
    verb.add_argument("--out", type=Path, help="the folder of the run (runs/NAME)")
    verb.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes", help="change one key; repeatable"
    )
    verb.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    verb.add_argument("--smoke", action="store_true", help="shrink the recipe to a minute on a CPU")


def _train(options: argparse.Namespace) -> int:
    from seqwm.run import train

    out = train(options.recipe, options.out, changes=options.changes, small=options.smoke, resume=options.resume)
    print(out)
    return 0


def _add_evaluate(verbs: Any) -> None:
    verb = _verb(
        verbs, "evaluate", _evaluate, "play episodes with a trained model and say what it reached",
        "  seqwm evaluate runs/quickstart\n"
        "  seqwm evaluate user/my-first-dt --targets 100 300 500 --episodes 50\n"
        "  seqwm evaluate runs/tt --set model.planner.beams=64 --set model.objective=likelihood",
    )  # fmt: skip
    verb.add_argument("model", help="a run folder or a Hub repository")
    verb.add_argument("--env", help="a Gymnasium id; the one it was trained for by default")
    verb.add_argument("--targets", type=float, nargs="+", help="returns to ask for")
    verb.add_argument("--episodes", type=int, default=20, help="episodes for each target (%(default)s)")
    verb.add_argument("--seed", type=int, default=0, help="first seed of the environments (%(default)s)")
    verb.add_argument("--reference", help="named pair of returns for normalised scores, for example seqwm/Hopper-v5")
    verb.add_argument("--revision", help="of a Hub repository")
    verb.add_argument("--out", type=Path, help="folder for evaluation.json, curve.png and replay.mp4")
    verb.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
        help="change how the run's recipe acts or is evaluated; repeatable",
    )  # fmt: skip


def _evaluate(options: argparse.Namespace) -> int:
    from seqwm.run import evaluate_run

    evaluation = evaluate_run(
        options.model,
        environment=options.env,
        targets=options.targets,
        episodes=options.episodes,
        seed=options.seed,
        reference=options.reference,
        revision=options.revision,
        out=options.out,
        changes=options.changes,
    )
    print(evaluation)
    return 0


def _add_dream(verbs: Any) -> None:
    verb = _verb(
        verbs, "dream", _dream, "put a world model beside reality: figures, film, the gap",
        "  seqwm dream runs/dreamer/cartpole\n"
        "  seqwm dream user/my-world --data minari:hopper/medium-v0 --env Hopper-v5 --policy random\n"
        "  seqwm dream runs/latent_actions/sprites-16 --actions 0,0,3,3,5 --labels 16",
    )  # fmt: skip
    verb.add_argument("model", help="a run folder or a Hub repository")
    verb.add_argument("--data", help="logs to predict; what the run collected or learned from by default")
    verb.add_argument("--env", help="a Gymnasium id; that of the run by default")
    verb.add_argument("--policy", help="'random', a run folder or a Hub repository; the model's own by default")
    verb.add_argument("--horizon", type=int, default=50, help="steps (%(default)s)")
    verb.add_argument("--contexts", type=int, default=256, help="logged moments to predict from (%(default)s)")
    verb.add_argument("--episodes", type=int, default=32, help="in dream and in reality (%(default)s)")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--revision", help="of a Hub repository")
    verb.add_argument(
        "--actions",
        type=_numbers,
        metavar="N,N,...",
        help="film a dream under these: codes of a world of latent actions",
    )
    verb.add_argument(
        "--real-actions", action="store_true", help="--actions are the logs', turned into codes by the map"
    )
    verb.add_argument("--labels", type=int, default=16, help="true actions to fit that map with (%(default)s)")
    verb.add_argument("--out", type=Path, help="folder to write (RUN/dream)")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _dream(options: argparse.Namespace) -> int:
    from seqwm.dreaming import dream

    print(
        dream(
            options.model,
            data=options.data,
            environment=options.env,
            policy=options.policy,
            horizon=options.horizon,
            contexts=options.contexts,
            episodes=options.episodes,
            seed=options.seed,
            out=options.out,
            revision=options.revision,
            actions=options.actions,
            real_actions=options.real_actions,
            labels=options.labels,
        )
    )
    return 0


def _add_study(verbs: Any) -> None:
    verb = _verb(
        verbs, "study", _study, "train and compare many runs: one table, one figure with intervals",
        "  seqwm study recipes/studies/quickstart/study.yaml",
    )  # fmt: skip
    verb.add_argument("file", type=Path)


def _study(options: argparse.Namespace) -> int:
    from seqwm.study import run_study

    table = run_study(options.file)
    print(f"{table.read_text()}\n{table}")
    return 0


def _add_publish(verbs: Any) -> None:
    verb = _verb(
        verbs, "publish", _publish, "publish a run on the Hub: weights, recipe, results and card, in one commit",
        "  seqwm publish runs/quickstart user/my-first-dt\n"
        "  seqwm publish runs/quickstart user/my-first-dt --dry-run folder",
    )  # fmt: skip
    verb.add_argument("run_folder", type=Path, metavar="RUN")
    verb.add_argument("repository", help="user/name on the Hub")
    verb.add_argument("--private", action="store_true")
    verb.add_argument("--revision", help="branch to publish on")
    verb.add_argument("--dry-run", type=Path, metavar="DIR", help="write the exact folder and send nothing")


def _publish(options: argparse.Namespace) -> int:
    from seqwm.hub.publish import publish

    where = publish(
        options.run_folder,
        options.repository,
        private=options.private,
        revision=options.revision,
        dry_run=options.dry_run,
    )
    print(where)
    return 0


def _load(source: str) -> Any:
    from seqwm.core import shipped
    from seqwm.data.load import load

    return load(shipped.locate_source(source), progress=True)


def _version() -> str:
    from seqwm import __version__

    return __version__
