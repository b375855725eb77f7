from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from seqwm.core.errors import RecipeError
from seqwm.core.strict_yaml import build, compose


@dataclass(frozen=True)
class Train:
    steps: int
    rate: float = 0.1
    schedule: Literal["constant", "cosine"] = "constant"
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: found {self.steps}, expected at least 1")


@dataclass(frozen=True)
class Recipe:
    name: str
    train: Train
    targets: tuple[int, ...] | None = None
    notes: dict[str, str] = field(default_factory=dict)
    model: Any = None


def read(text, *changes):
    return build(Recipe, compose(text, "my.yaml", changes))


def refused(text, *changes):
    with pytest.raises(RecipeError) as caught:
        read(text, *changes)
    return str(caught.value)


GOOD = "name: a\ntrain:\n  steps: 10\n"


def test_a_document_becomes_its_dataclass():
    text = GOOD + "  rate: 1e-4\n  schedule: cosine\n  betas: [0.5, 1]\ntargets: [1, 2]\nnotes: {x: y}\n"
    train = Train(10, 1e-4, "cosine", (0.5, 1.0))
    assert read(text) == Recipe("a", train, (1, 2), {"x": "y"})


def test_what_is_left_out_takes_its_default_and_null_is_none():
    assert read(GOOD) == Recipe("a", Train(10))
    assert read(GOOD + "targets:\n") == Recipe("a", Train(10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\ntrain:\n  stpes: 1\n", "my.yaml:3: train.stpes: unknown key; did you mean 'steps'?"),
        ("name: a\ntrain: {rate: 1}\n", "my.yaml:2: train.steps: missing; expected an integer"),
        ("name: a\ntrain:\n  steps: 1\n  steps: 2\n", "my.yaml:4: train.steps: given twice, first at my.yaml:3"),
        ("name: a\ntrain:\n  steps: many\n", "my.yaml:3: train.steps: found 'many', expected an integer"),
        ("name: a\ntrain:\n  steps: 1e3\n", "expected an integer; write 1000"),
        ("name: a\ntrain:\n  steps: 0\n", "my.yaml:3: train.steps: found 0, expected at least 1"),
        ("name: 1\ntrain: {steps: 1}\n", "my.yaml:1: name: found 1, expected text; put it in quotes"),
        (GOOD + "  schedule: cosin\n", "expected 'constant' or 'cosine'; did you mean 'cosine'?"),
        (GOOD + "  betas: [1]\n", "train.betas: found a list, expected a list of a number and a number"),
        (GOOD + "targets: [1, x]\n", "my.yaml:4: targets[1]: found 'x', expected an integer"),
        (GOOD + "targets: {a: 1}\n", "found a mapping, expected a list of items that are an integer"),
        ("- a\n", "my.yaml: found a list, expected a mapping"),
        ("name: [\n", "my.yaml:2: not YAML"),
        ("name: a\n---\nname: b\n", "not YAML"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_the_mend(text, message):
    assert message in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system ['exit 1']\ntrain: {steps: 1}\n",
        "name: !!python/name:os.system ''\ntrain: {steps: 1}\n",
        "name: a\ntrain: !!python/object:builtins.dict {steps: 1}\n",
    ],
)
def test_tags_make_nothing(text):
    with pytest.raises(RecipeError):
        read(text + "notes: !!python/tuple [a]\n")


def test_changes_go_in_by_their_dotted_keys():
    assert read(GOOD, "train.steps=5", "train.rate=2", "notes.x=y") == Recipe("a", Train(5, 2.0), None, {"x": "y"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.stpes=5", "--set train.stpes=5: train.stpes: unknown key; did you mean 'steps'?"),
        ("train.steps", "--set train.steps: expected key=value"),
        ("train..steps=1", "expected key=value"),
        ("name.first=1", "'name' is 'a', so it has no key 'first'"),
        ("train.steps=[", "--set train.steps=[: not YAML"),
    ],
)
def test_a_change_that_is_wrong_is_named_itself(change, message):
    assert message in refused(GOOD, change)
