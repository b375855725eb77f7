"""How a verb of the command line is declared."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], int], help: str, examples: str) -> Any:
    """A parser for a verb among `verbs`, which `run` answers with an exit status."""
    verb = verbs.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(run=run, help_of=verb)
    return verb
