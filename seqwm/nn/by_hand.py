"""What was written by hand for an environment, found by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from seqwm.core.errors import RecipeError
from seqwm.core.strict_yaml import nearest

Rule = TypeVar("Rule")


def written(rules: Mapping[str, Rule], environment: str | None, option: str, kind: str, instead: str) -> Rule:
    """The rule of an environment.

    Args:
        rules: by Gymnasium id.
        environment: a Gymnasium id; None has no rule.
        option: of a recipe, that asks for one.
        kind: what the rule tells.
        instead: what the option may say without one.

    Raises:
        RecipeError: there is none.
    """
    if environment is not None and environment in rules:
        return rules[environment]
    hint = nearest(str(environment), rules)
    raise RecipeError(f"{option}: no {kind} of {environment!r} was written by hand, {hint}; use '{instead}'")
