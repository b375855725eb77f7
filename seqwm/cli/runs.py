"""Verbs of runs and models; each is a thin reading of one Python function, imported when it is needed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from seqwm.cli.verb import add_verb


def add_train(verbs: Any) -> None:
    """`seqwm train`."""
    verb = add_verb(
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


def add_evaluate(verbs: Any) -> None:
    """`seqwm evaluate`."""
    verb = add_verb(
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


def add_dream(verbs: Any) -> None:
    """`seqwm dream`."""
    verb = add_verb(
        verbs, "dream", _dream, "put a world model beside reality: figures, film, the gap",
        "  seqwm dream runs/dreamer/cartpole\n"
        "  seqwm dream user/my-world --data minari:hopper/medium-v0 --env Hopper-v5 --policy random\n"
        "  seqwm dream runs/latent_actions/sprites-16 --actions 0,0,3,3,5 --labels 16",
    )  # fmt: skip
    verb.add_argument("model", help="a run folder or a Hub repository")
    verb.add_argument("--data", help="logs to predict; what the run collected or learned from by default")
    verb.add_argument("--env", help="a Gymnasium id; that of the run by default")
    verb.add_argument("--policy", help="'random', a run folder or a Hub repository; the model's own by default")
    verb.add_argument("--beside", help="another world, a run folder or a Hub repository, to draw in the same figures")
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
    verb.add_argument("--lpips", type=Path, metavar="FILE", help="AlexNet and LPIPS in safetensors: measure it, too")
    verb.add_argument("--videomae", type=Path, metavar="FOLDER", help="a VideoMAE: the Frechet distance of clips, too")
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
            beside=options.beside,
            horizon=options.horizon,
            contexts=options.contexts,
            episodes=options.episodes,
            seed=options.seed,
            out=options.out,
            revision=options.revision,
            actions=options.actions,
            real_actions=options.real_actions,
            labels=options.labels,
            lpips_weights=options.lpips,
            video_network=options.videomae,
        )
    )
    return 0


def add_study(verbs: Any) -> None:
    """`seqwm study`."""
    verb = add_verb(
        verbs, "study", _study, "train and compare many runs: one table, one figure with intervals",
        "  seqwm study recipes/studies/quickstart/study.yaml",
    )  # fmt: skip
    verb.add_argument("file", type=Path)


def _study(options: argparse.Namespace) -> int:
    from seqwm.study import run_study

    table = run_study(options.file)
    print(f"{table.read_text()}\n{table}")
    return 0


def add_publish(verbs: Any) -> None:
    """`seqwm publish`."""
    verb = add_verb(
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
