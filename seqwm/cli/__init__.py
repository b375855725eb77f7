"""The command line: `seqwm data` (`seqwm.cli.data`) and the verbs of runs and models (`seqwm.cli.runs`)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from seqwm.cli.data import add_data
from seqwm.cli.runs import add_dream, add_evaluate, add_publish, add_study, add_train
from seqwm.core.allocator import keep_freed_memory
from seqwm.core.errors import SeqwmError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 refused, 2 bad usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "run"):
        options.help_of.print_help()
        return 2
    keep_freed_memory()
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
    add_data(verbs)
    add_train(verbs)
    add_evaluate(verbs)
    add_dream(verbs)
    add_study(verbs)
    add_publish(verbs)
    return parser


def _version() -> str:
    from seqwm import __version__

    return __version__
