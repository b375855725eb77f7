"""Pairs of returns that a score is measured between: 0 at the low one, 100 at the high one.

A normalised score means nothing without the name of its pair, so there is no default: 'seqwm/Hopper-v5' and its like
were measured in the very environments that are named; 'd4rl/hopper' and its like are D4RL's constants, for comparison
with its literature. references.json says of each where it comes from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from seqwm.core.errors import RecipeError
from seqwm.core.strict_yaml import nearest


@dataclass(frozen=True, slots=True)
class Reference:
    """Two returns by name.

    Attributes:
        name: 'seqwm/...' or 'd4rl/...'.
        environment: what they were measured in.
        low, high: undiscounted returns that score 0 and 100.
        source: whose they are.
    """

    name: str
    environment: str
    low: float
    high: float
    source: str

    def score(self, achieved: float) -> float:
        """100 (R - low) / (high - low), Fu et al., "D4RL" (2020)."""
        return 100.0 * (achieved - self.low) / (self.high - self.low)


def reference(name: str) -> Reference:
    """The reference of a name; RecipeError with the nearest name where there is none."""
    known = _references()
    if name not in known:
        raise RecipeError(f"reference '{name}': unknown; {nearest(name, known)}")
    return known[name]


def own_reference(environment: str) -> Reference | None:
    """The reference that was measured in this very environment, if it was."""
    return _references().get(f"seqwm/{environment}")


@cache
def _references() -> dict[str, Reference]:
    text = resources.files("seqwm.evaluation").joinpath("references.json").read_text()
    return {name: Reference(name, **fields) for name, fields in json.loads(text).items()}
