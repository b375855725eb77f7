"""`seqwm data`: each verb is a thin reading of one Python function; heavy imports wait until they are needed."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from seqwm.cli.verb import add_verb
from seqwm.core.errors import RecipeError

SOURCES = """sources:
  minari:hopper/medium-v0      a Minari id, local (MINARI_DATASETS_PATH) or downloaded
  hf:user/name[@revision]      a Hugging Face dataset of Parquet files or of videos
  lerobot:user/name            LeRobot v3, a folder or a Hub repository
  d4rl:hopper.hdf5             D4RL's flat HDF5
  video:clips                  a folder of video files, each an episode without actions
  a path                       a store, a Minari or LeRobot folder, Parquet or Arrow files
"""


def add_data(verbs: Any) -> None:
    """The verbs of data sets."""
    data = verbs.add_parser(
        "data",
        help="inspect, validate, convert, collect, label and publish datasets",
        epilog=SOURCES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data.set_defaults(help_of=data)
    kinds = data.add_subparsers(metavar="VERB")

    verb = add_verb(
        kinds, "inspect", _inspect, "show what a dataset holds",
        f"  seqwm data inspect datasets/cartpole\n  seqwm data inspect hf:user/name --json\n\n{SOURCES}",
    )  # fmt: skip
    verb.add_argument("source")
    verb.add_argument("--json", action="store_true", help="figures for a program")

    verb = add_verb(
        kinds, "validate", _validate, "check a dataset for everything that could spoil training",
        f"  seqwm data validate minari:hopper/medium-v0\n  seqwm data validate logs/ --json\n\n{SOURCES}",
    )  # fmt: skip
    verb.add_argument("source")
    verb.add_argument("--json", action="store_true", help="one JSON object with every problem")

    verb = add_verb(
        kinds, "convert", _convert, "write a dataset as a store, or as Parquet for others to read",
        f"  seqwm data convert d4rl:hopper.hdf5 --out hopper\n"
        f"  seqwm data convert hopper --out hopper-parquet --to parquet\n"
        f"  seqwm data convert video:clips --out clips-store --skip-broken\n\n{SOURCES}",
    )  # fmt: skip
    verb.add_argument("source")
    verb.add_argument("--out", type=Path, required=True, help="the folder to make")
    verb.add_argument("--to", choices=["store", "parquet"], default="store")
    verb.add_argument(
        "--skip-broken", action="store_true",
        help="leave out episodes that are wrong and name each; all is refused otherwise",
    )  # fmt: skip

    verb = add_verb(
        kinds, "collect", _collect, "log a policy in an environment",
        "  seqwm data collect CartPole-v1 --policy random --steps 10000 --out logs/random\n"
        "  seqwm data collect Hopper-v5 --policy runs/hopper --target 3000 --steps 50000 --out logs/dt\n"
        "  seqwm data collect FrozenLake-v1 --option is_slippery=false --steps 10000 --out logs/dry\n"
        "  seqwm data collect seqwm/Catch-v0 --policy scripted --random 0.2 --steps 5000 --out logs/catch",
    )  # fmt: skip
    verb.add_argument("environment", help="a registered Gymnasium id")
    verb.add_argument(
        "--policy", default="random", help="'random', 'scripted' (a built-in world's), a run folder or a Hub repository"
    )
    verb.add_argument("--random", type=float, default=0.0, help="share of actions drawn at random (%(default)s)")
    verb.add_argument("--target", type=float, help="return to ask a return-conditioned policy for")
    verb.add_argument("--steps", type=int, required=True, help="transitions to log")
    verb.add_argument("--out", type=Path, required=True, help="the store to make")
    verb.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE",
        help="keyword argument of the environment; repeatable",
    )  # fmt: skip
    verb.add_argument("--lanes", type=int, default=16, help="environments that run side by side (%(default)s)")
    verb.add_argument("--seed", type=int, default=0)

    verb = add_verb(
        kinds, "label", _label, "write a dataset anew with latent actions in place of its own, or of none",
        "  seqwm data label runs/latent_actions/sprites-16 video:clips --out labelled\n"
        "  seqwm train recipes/behavior_cloning/hopper.yaml --set data.source=labelled",
    )  # fmt: skip
    verb.add_argument("model", help="a run folder or a Hub repository of a world of latent actions")
    verb.add_argument("source")
    verb.add_argument("--out", type=Path, required=True, help="the store to make")
    verb.add_argument("--revision", help="of a Hub repository")

    verb = add_verb(
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
    from seqwm.core import shipped
    from seqwm.data.export import write_parquet
    from seqwm.data.load import convert
    from seqwm.data.problems import Findings
    from seqwm.data.sources import open_source

    findings = Findings(strict=not options.skip_broken)
    with tempfile.TemporaryDirectory() as aside:
        as_parquet = options.to == "parquet"
        if as_parquet and not options.skip_broken:
            store = _load(options.source)
        else:
            source = open_source(shipped.locate_source(options.source), findings)
            store = convert(
                source, Path(aside) / "store" if as_parquet else options.out, findings=findings, progress=True
            )
        if as_parquet:
            write_parquet(store.episodes(), store.spaces, options.out, provenance=store.provenance)
    for problem in findings.errors:
        print(f"left out: {problem}", file=sys.stderr)
    form = ", as Parquet" if as_parquet else ""
    print(f"{options.out}: {store.rows:,} transitions in {len(store):,} episodes{form}")
    return 0


def _collect(options: argparse.Namespace) -> int:
    from seqwm.control.collect import collect

    policy = spaces = None
    if options.policy == "scripted":
        from seqwm.control.policies import ScriptedPolicy
        from seqwm.envs.scripted import scripted_player

        policy = ScriptedPolicy(scripted_player(options.environment))
    elif options.policy != "random":
        from seqwm.evaluation.evaluate import model_spaces
        from seqwm.hub.load import load_model

        model = load_model(options.policy)
        spaces = model_spaces(model)
        targets = [options.target] * options.lanes if options.target is not None else None
        policy = model.policy(targets)
    store = collect(
        options.environment, policy, options.steps, options.out,
        lanes=options.lanes, seed=options.seed, spaces=spaces, name=options.policy, random=options.random,
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


def _load(source: str) -> Any:
    from seqwm.core import shipped
    from seqwm.data.load import load

    return load(shipped.locate_source(source), progress=True)
