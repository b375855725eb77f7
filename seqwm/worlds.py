"""Worlds that were trained, by the name of their run or repository: to be measured, and to be acted in as environments.

    collect:
      environment: seqwm/Dream-v0
      environment_options: {world: runs/video_diffusion/catch, horizon: 15, begin: anywhere}

makes the learner act in dreams of that world, which begin from the logs that the world learned from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqwm.core import shipped
from seqwm.core.errors import CheckpointError, RecipeError
from seqwm.core.protocols import WorldModel
from seqwm.core.strict_yaml import nearest
from seqwm.recipe import parse_recipe

if TYPE_CHECKING:
    from seqwm.control.dream import DreamEnv
    from seqwm.data.store import TrajectoryStore

DREAM = "seqwm/Dream-v0"
"""The environment that is a dream."""

_OPTIONS = ("world", "horizon", "begin", "sample", "exact")


def world_of(name: str | Path, revision: str | None = None) -> tuple[Any, Path]:
    """The model and the folder that it was loaded from.

    Raises:
        CheckpointError: it is no world model.
    """
    from seqwm.hub.load import find_model, load_model

    model = load_model(name, revision=revision)
    if not isinstance(model, WorldModel):
        raise CheckpointError(
            f"{name}: {type(model).__name__} is no world model; expected one with encode, step and decode"
        )
    return model, find_model(name, revision=revision)


def logs_of(name: str | Path, home: Path, data: str | None = None) -> tuple[str, TrajectoryStore]:
    """The logs to begin dreams from: those that are named, that the run collected, or that it learned from.

    Args:
        name: stands in errors.
        home: the folder with recipe.yaml.
        data: a source; the run's own when None.

    Raises:
        CheckpointError: the run names none.
    """
    from seqwm.data.load import load
    from seqwm.data.store import TrajectoryStore

    if data is None and TrajectoryStore.is_store(home / "replay"):
        return str(home / "replay"), TrajectoryStore.open(home / "replay")
    if data is None and (home / "recipe.yaml").is_file():
        recipe = parse_recipe((home / "recipe.yaml").read_text(), str(home / "recipe.yaml"))
        data = recipe.data.source if recipe.data else None
    if data is None:
        raise CheckpointError(f"{name}: names no data; give logs of its environment, for example --data logs/random")
    return data, load(shipped.locate_source(data))


def open_dream(options: Mapping[str, Any], lanes: int) -> DreamEnv:
    """Dreams side by side, of the world that a recipe's `environment_options` name.

    Args:
        options: `world`, a run or a repository; `horizon`, the steps of a dream; `begin`, `sample` and `exact` of
            `DreamEnv`.
        lanes: how many.

    Raises:
        RecipeError: other options, or one of the first two missing.
        CheckpointError: no such world, or no logs to begin from.
    """
    from seqwm.control.dream import make_dream

    where = "collect.environment_options"
    for name in options:
        if name not in _OPTIONS:
            raise RecipeError(f"{where}.{name}: unknown; {nearest(name, list(_OPTIONS))}")
    for name, example in (("world", "runs/video_diffusion/catch"), ("horizon", "15")):
        if name not in options:
            raise RecipeError(f"{where}: {name} is missing, expected one for a dream; for example {name}: {example}")
    given = dict(options)
    world = given.pop("world")
    model, folder = world_of(world)
    home = folder if (folder / "recipe.yaml").is_file() else folder.parent
    _, store = logs_of(world, home)
    return make_dream(lanes, model, store, **given)
