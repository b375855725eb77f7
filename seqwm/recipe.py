"""Recipes: one screen of YAML that says everything about a run, read strictly into frozen dataclasses.

    method: decision_transformer          # a file in seqwm/methods/
    data: {source: datasets/cartpole}
    model: {layers: 3, heads: 1}          # the Options of that method
    train: {steps: 1000, learning_rate: 1e-3}
    evaluate: {targets: [500], episodes: 20}
    seed: 0

In place of `data`, or beside it, `collect: {environment: CartPole-v1, updates_per_step: 0.5}` learns while it acts.

Unknown keys, wrong types and unknown methods are refused with file, line and the nearest known name. Changes from the
command line (`--set train.steps=1000`) go through the same check. There are no includes: a recipe is complete.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from seqwm.core import shipped, strict_yaml
from seqwm.core.errors import RecipeError
from seqwm.methods import method_module, methods
from seqwm.training.options import TrainOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What to learn from.

    Attributes:
        source: anything `seqwm.load` takes: 'minari:ID', 'hf:user/name', 'lerobot:...', 'd4rl:file.hdf5', or a path.
        streaming: begin before an 'hf:' source has been downloaded (`seqwm.run` says when how much of it is there).
    """

    source: str
    streaming: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Collect:
    """Environments in which the learner acts while it learns.

    Attributes:
        environment: a Gymnasium id.
        environment_options: its keyword arguments.
        lanes: environments side by side.
        prefill: transitions of random actions before learning begins.
        updates_per_step: updates for each transition; 0.25 is one after every four, 20 are twenty after each.
    """

    environment: str
    environment_options: dict[str, int | float | bool | str] = field(default_factory=dict)
    lanes: int = 1
    prefill: int = 1000
    updates_per_step: float = 1.0

    def __post_init__(self) -> None:
        if self.lanes < 1:
            raise ValueError(f"lanes: found {self.lanes}, expected at least 1")
        if self.prefill < 0:
            raise ValueError(f"prefill: found {self.prefill}, expected zero or more")
        if not 0 < self.updates_per_step < math.inf:
            raise ValueError(f"updates_per_step: found {self.updates_per_step}, expected a positive number")

    @property
    def provenance(self) -> dict[str, Any]:
        """What the data that is collected says of where it comes from."""
        options = {"environment_options": dict(self.environment_options)} if self.environment_options else {}
        return {"source": f"collect:{self.environment}", "environment": self.environment, **options}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """How the trained model is measured.

    Attributes:
        environment: a Gymnasium id; null takes the one that it acted in while learning, or that the data names.
        targets: target returns; null spreads five from the median to the best of the data's returns.
        episodes: episodes for each target.
        seed: the first of the seeds that the environments are reset with.
        reference: the pair of returns behind normalised scores; null takes the environment's own where it is known.
        environment_options: its keyword arguments, for example Atari's frame skip, beside those that it had when
            the data was collected.
        replay: film an episode at the highest target.
        every: updates between measurements while it learns, each a line of learning.jsonl; null measures at the end.
    """

    environment: str | None = None
    targets: tuple[float, ...] | None = None
    episodes: int = 20
    seed: int = 0
    reference: str | None = None
    environment_options: dict[str, int | float | bool | str] = field(default_factory=dict)
    replay: bool = True
    every: int | None = None

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes: found {self.episodes}, expected at least 1")
        if self.every is not None and self.every < 1:
            raise ValueError(f"every: found {self.every}, expected at least 1")
        if self.targets is not None and not self.targets:
            raise ValueError("targets: found an empty list, expected returns, or null to take them from the data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """Where `seqwm publish` sends the run when no other name is given.

    Attributes:
        repository: 'user/name' on the Hub.
        private: whether a repository that is made for it is private.
    """

    repository: str
    private: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A whole run; `model` is an instance of the method's own `Options`.

    With `data` alone it learns offline, with `collect` alone online, with both it begins with the data and goes on.
    """

    method: str
    data: Data | None = None
    collect: Collect | None = None
    model: Any
    train: TrainOptions
    evaluate: Evaluate = field(default_factory=Evaluate)
    publish: Publish | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: found {self.seed}, expected zero or a positive integer below 2**63")
        if self.data is None and self.collect is None:
            raise ValueError("data: missing; expected a source to learn from, or `collect` to act and learn")
        if self.data is None and self.collect is not None and self.collect.prefill < 1:
            raise ValueError("collect.prefill: found 0 and no data, expected transitions to begin with")
        if self.data is not None and self.data.streaming and self.collect is not None:
            raise ValueError("data.streaming: found together with `collect`, expected one of them; load the data whole")


def read_recipe(name: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe of a file, or of a shipped one by name ('quickstart', 'dt/hopper').

    Args:
        name: a path or a name.
        changes: 'train.steps=1000' and the like, as after `--set`.

    Raises:
        RecipeError: naming file and line (or the change), what was found, what was expected, and the nearest name.
    """
    path = find_recipe(name)
    return parse_recipe(path.read_text(), str(name if Path(name).is_file() else path), changes)


def parse_recipe(text: str, name: str, changes: Sequence[str] = ()) -> Recipe:
    """The recipe that a text spells; `name` stands in errors."""
    document = strict_yaml.compose(text, name, changes)
    node = strict_yaml.entry(document, "method")
    known = methods()
    if node is None:
        raise RecipeError(f"{name}: method: missing; known: {', '.join(known)}")
    method = strict_yaml.scalar(node)
    if method not in known:
        hint = strict_yaml.nearest(str(method), known)
        raise RecipeError(f"{strict_yaml.place(node)}: method: unknown method {method!r}; {hint}")
    return strict_yaml.build(Recipe, document, special={"model": method_module(method).Options})


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, or the name of one that is shipped, with or without 'recipes/' and '.yaml'."""
    for candidate in (str(name), f"recipes/{name}", f"recipes/{name}.yaml"):
        found = shipped.find(candidate)
        if found is not None and found.is_file():
            return found
    hint = strict_yaml.nearest(str(name).removeprefix("recipes/").removesuffix(".yaml"), shipped_recipes())
    raise RecipeError(f"{name}: no such recipe; {hint}")


def shipped_recipes() -> list[str]:
    """The names of the recipes that come with the package, studies left out."""
    folder = shipped.shipped_folder() / "recipes"
    names = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith("studies/"))


def measured_in(evaluate: Evaluate, provenance: Mapping[str, Any]) -> Evaluate:
    """How a model is measured that learned from data of this provenance.

    Where no other environment is named, it is the one that the data came from, built with the arguments that it had
    there; those of `evaluate` take precedence.
    """
    own = provenance.get("environment")
    if evaluate.environment not in (None, own):
        return evaluate
    options = {**provenance.get("environment_options", {}), **evaluate.environment_options}
    return dataclasses.replace(evaluate, environment=own, environment_options=options)


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out; `parse_recipe` reads an equal one back."""
    return yaml.safe_dump(_plain(dataclasses.asdict(recipe)), sort_keys=False, allow_unicode=True)


def differences(recipe: Recipe, other: Recipe) -> list[str]:
    """The dotted keys in which two recipes differ, with both values: 'train.steps: 100, was 200'."""
    new, old = (dict(_leaves(dataclasses.asdict(one))) for one in (recipe, other))
    keys = [*new, *(key for key in old if key not in new)]
    return [f"{key}: {new.get(key)!r}, was {old.get(key)!r}" for key in keys if new.get(key) != old.get(key)]


_SMOKE_SIZES = {
    "layers": 1,
    "width": 32,
    "heads": 1,
    "context_length": 8,
    "context": 2,
    "horizon": 2,
    "beams": 4,
    "plan_every": 2,
}


def smoke(recipe: Recipe) -> Recipe:
    """The same recipe shrunk until it trains and evaluates within a minute on a CPU: does it run, not is it good."""
    train = dataclasses.replace(
        recipe.train,
        steps=min(recipe.train.steps, 20),
        batch_size=min(recipe.train.batch_size, 8),
        warmup_steps=min(recipe.train.warmup_steps, 5),
        checkpoint_every=None,
        log_every=1,
    )
    evaluate = dataclasses.replace(
        recipe.evaluate,
        episodes=min(recipe.evaluate.episodes, 2),
        targets=recipe.evaluate.targets[:2] if recipe.evaluate.targets else None,
        every=None,
    )
    model = _shrunk(recipe.model)
    collect = recipe.collect
    if collect:
        fewer = min(collect.prefill, 200), max(collect.updates_per_step, 0.1)
        collect = dataclasses.replace(collect, prefill=fewer[0], updates_per_step=fewer[1])
    return dataclasses.replace(recipe, collect=collect, train=train, evaluate=evaluate, model=model)


def _shrunk(options: Any) -> Any:
    """A method's options, and those within them, with no size above that of `_SMOKE_SIZES`."""
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    smaller = {name: _shrunk(value) for name, value in values.items() if dataclasses.is_dataclass(value)}
    smaller |= {
        name: min(value, _SMOKE_SIZES[name])
        for name, value in values.items()
        if name in _SMOKE_SIZES and isinstance(value, int)
    }
    return dataclasses.replace(options, **smaller)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(inner) for inner in value]
    return value


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, value in tree.items():
        inner = isinstance(value, dict)
        leaves += _leaves(value, f"{prefix}{name}.") if inner else [(f"{prefix}{name}", value)]
    return leaves
