from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import seqwm.methods
from seqwm.core.errors import RecipeError
from seqwm.recipe import (
    Data,
    Evaluate,
    Publish,
    Recipe,
    differences,
    find_recipe,
    method_module,
    parse_recipe,
    read_recipe,
    resolved_yaml,
    smoke,
)
from seqwm.training.options import TrainOptions

FAKES = Path(__file__).parent / "fakes"
TEXT = """\
method: linear
data:
  source: datasets/cartpole
model:
  width: 32
train:
  steps: 100
  learning_rate: 1e-3
evaluate: {targets: [500, 250.5]}
seed: 7
"""


@pytest.fixture(autouse=True)
def _a_method_named_linear(monkeypatch):
    monkeypatch.setattr(seqwm.methods, "__path__", [*seqwm.methods.__path__, str(FAKES)])


def linear(**options):
    return method_module("linear").Options(**options)


def refusal(text, *changes):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "recipes/dt/hopper.yaml", changes)
    return str(caught.value)


def test_a_recipe_is_read_into_its_dataclasses_with_defaults_for_the_rest():
    assert parse_recipe(TEXT, "a.yaml") == Recipe(
        method="linear",
        data=Data(source="datasets/cartpole"),
        model=linear(width=32),
        train=TrainOptions(steps=100, learning_rate=1e-3),
        evaluate=Evaluate(targets=(500.0, 250.5)),
        publish=None,
        seed=7,
    )


def test_a_number_without_a_point_is_the_number_it_looks_like():
    train = parse_recipe(TEXT, "a.yaml", ["train.learning_rate=3e-4", "train.gradient_clip=1"]).train
    assert (train.learning_rate, train.gradient_clip) == (3e-4, 1.0)
    assert type(train.gradient_clip) is float


def test_an_unknown_key_is_refused_with_its_line_and_the_nearest_known_one():
    text = TEXT.replace("  steps: 100", "  stpes: 100")
    assert refusal(text) == "recipes/dt/hopper.yaml:7: train.stpes: unknown key; did you mean 'steps'?"


def test_an_unknown_key_that_resembles_none_is_refused_with_all_known_ones():
    assert refusal(TEXT + "zzz: 1\n") == (
        "recipes/dt/hopper.yaml:11: zzz: unknown key; "
        "known: collect, data, evaluate, method, model, publish, seed, train"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps: 100", "steps: many", ":7: train.steps: found 'many', expected an integer"),
        ("steps: 100", "steps: 1e2", ":7: train.steps: found '1e2', expected an integer; write 100"),
        ("steps: 100", "steps: 100.5", ":7: train.steps: found 100.5, expected an integer"),
        ("steps: 100", "steps: true", ":7: train.steps: found True, expected an integer"),
        ("steps: 100", "steps: [100]", ":7: train.steps: found a list, expected an integer"),
        ("steps: 100", "steps:", ":7: train.steps: found nothing, expected an integer"),
        ("steps: 100", "steps: 0", ":7: train.steps: found 0, expected at least 1"),
        ("learning_rate: 1e-3", "learning_rate: '1e-3'", ":8: train.learning_rate: found '1e-3', expected a number"),
        ("learning_rate: 1e-3", "learning_rate: fast", ":8: train.learning_rate: found 'fast', expected a number"),
        (
            "learning_rate: 1e-3",
            "learning_rate: .nan",
            ":8: train.learning_rate: found nan, expected a positive number",
        ),
        (
            "learning_rate: 1e-3",
            "betas: [0.9]",
            ":8: train.betas: found a list, expected a list of a number and a number",
        ),
        (
            "learning_rate: 1e-3",
            "gradient_clip: off",
            ":8: train.gradient_clip: found False, expected a number or null",
        ),
        (
            "learning_rate: 1e-3",
            "schedule: cosin",
            ":8: train.schedule: found 'cosin', expected 'constant' or 'cosine'; did you mean 'cosine'?",
        ),
        ("learning_rate: 1e-3", "track: [tensorbord]", ":8: train.track[0]: found 'tensorbord', expected"),
        ("source: datasets/cartpole", "source: 12", ":3: data.source: found 12, expected text; put it in quotes"),
        ("  source: datasets/cartpole", "  - a", ":3: data: found a list, expected a mapping of keys to values"),
        ("source: datasets/cartpole", "cache: true", ":3: data.cache: unknown key; known: source"),
        ("[500, 250.5]", "[500, high]", ":9: evaluate.targets[1]: found 'high', expected a number"),
        ("[500, 250.5]", "[]", ":9: evaluate.targets: found an empty list, expected returns"),
        ("width: 32", "widht: 32", ":5: model.widht: unknown key; did you mean 'width'?"),
        ("width: 32", "dropout: 2", ":5: model.dropout: found 2.0, expected a share in [0, 1)"),
        ("method: linear", "method: liner", ":1: method: unknown method 'liner'; did you mean 'linear'?"),
        ("method: linear", "method: os.path", ":1: method: unknown method 'os.path'; known: "),
        ("method: linear", "method: [linear]", ":1: method: unknown method None; known: "),
        ("seed: 7", "seed: 7\nseed: 8", ":11: seed: given twice, first at recipes/dt/hopper.yaml:10"),
        ("seed: 7", "seed: -1", ":10: seed: found -1, expected zero or a positive integer"),
        ("seed: 7", "seed: !!python/object/apply:os.system ['true']", ":10: seed: found a list, expected an integer"),
        (
            "seed: 7",
            "seed: !!python/name:os.system",
            ":10: tag:yaml.org,2002:python/name:os.system '': not a plain value",
        ),
        ("seed: 7", "seed: {", ":11: not YAML: "),
    ],
)
def test_a_wrong_value_is_refused_with_its_line_what_was_found_and_what_was_expected(old, new, message):
    assert old in TEXT
    assert refusal(TEXT.replace(old, new)).startswith(f"recipes/dt/hopper.yaml{message}")


def test_what_is_missing_is_named():
    assert refusal("method: linear\ntrain:\n  batch_size: 8\ndata: {source: x}\n") == (
        "recipes/dt/hopper.yaml:3: train.steps: missing; expected an integer"
    )
    assert refusal("method: linear\ntrain: {steps: 1}\n") == (
        "recipes/dt/hopper.yaml:1: data: missing; expected a source to learn from, or `collect` to act and learn"
    )
    assert refusal("seed: 1\n").startswith("recipes/dt/hopper.yaml: method: missing; known: ")


def test_a_file_that_is_no_mapping_is_refused():
    assert refusal("") == "recipes/dt/hopper.yaml: found nothing, expected a mapping of keys to values"
    assert refusal("[1]") == "recipes/dt/hopper.yaml: found a list, expected a mapping of keys to values"


def test_changes_replace_values_and_make_sections():
    changes = ["train.steps=5", "publish.repository=a/b", "evaluate.targets=[1, 2]", "evaluate.environment=CartPole-v1"]
    recipe = parse_recipe(TEXT, "a.yaml", changes)
    assert recipe.train.steps == 5
    assert recipe.publish == Publish(repository="a/b")
    assert recipe.evaluate == Evaluate(environment="CartPole-v1", targets=(1.0, 2.0))
    assert parse_recipe(TEXT, "a.yaml", ["evaluate.targets="]).evaluate == Evaluate()
    assert parse_recipe(TEXT.replace("  width: 32\n", ""), "a.yaml", ["model.layers=1"]).model == linear(layers=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.stpes=5", "--set train.stpes=5: train.stpes: unknown key; did you mean 'steps'?"),
        ("train.steps=x", "--set train.steps=x: train.steps: found 'x', expected an integer"),
        ("train.steps=0", "--set train.steps=0: train.steps: found 0, expected at least 1"),
        ("train.steps", "--set train.steps: expected key=value, for example train.steps=1000"),
        ("seed.x=1", "--set seed.x=1: 'seed' is 7, so it has no key 'x'"),
        ("method=liner", "--set method=liner: method: unknown method 'liner'; did you mean 'linear'?"),
        ("seed={", "--set seed={: not YAML"),
    ],
)
def test_a_wrong_change_is_refused_and_named(change, message):
    assert refusal(TEXT, change).startswith(message)


positive = st.floats(1e-12, 1e12)
recipes = st.builds(
    Recipe,
    method=st.just("linear"),
    data=st.builds(Data, source=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)),
    model=st.deferred(lambda: st.builds(linear, width=st.integers(), dropout=st.floats(0, 0.99))),
    train=st.builds(
        TrainOptions,
        steps=st.integers(1),
        learning_rate=positive,
        weight_decay=st.floats(0, 1e9),
        gradient_clip=st.none() | positive,
        ema=st.none() | st.floats(1e-9, 1 - 1e-9),
        schedule=st.sampled_from(["constant", "cosine"]),
        track=st.lists(st.sampled_from(["tensorboard", "wandb"])).map(tuple),
    ),
    evaluate=st.builds(
        Evaluate,
        environment=st.none() | st.sampled_from(["CartPole-v1", "1e3", "null", "yes", "12:30", "~", ""]),
        targets=st.none() | st.lists(st.floats(allow_nan=False), min_size=1).map(tuple),
    ),
    publish=st.none() | st.builds(Publish, repository=st.sampled_from(["a/b", "c"]), private=st.booleans()),
    seed=st.integers(0, 2**63 - 1),
)


@given(recipes)
def test_a_resolved_recipe_reads_back_as_the_same_recipe(recipe):
    assert parse_recipe(resolved_yaml(recipe), "resolved.yaml") == recipe


def test_differences_name_the_keys_and_both_values():
    old = parse_recipe(TEXT, "a.yaml")
    new = parse_recipe(TEXT, "a.yaml", ["train.steps=5", "model.width=8"])
    assert differences(new, old) == ["model.width: 8, was 32", "train.steps: 5, was 100"]
    assert differences(old, old) == []


def test_a_smoke_recipe_is_small_and_still_a_recipe():
    small = smoke(parse_recipe(TEXT, "a.yaml"))
    assert small.train.steps == 20
    assert small.train.batch_size == 8
    assert small.evaluate.episodes == 2
    assert small.model == linear(width=32, layers=1, context_length=8)
    assert parse_recipe(resolved_yaml(small), "a.yaml") == small


def test_a_recipe_is_found_by_path_and_the_missing_one_by_its_nearest_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(TEXT)
    assert find_recipe("mine.yaml") == Path("mine.yaml")
    assert read_recipe("mine.yaml", ["seed=9"]).seed == 9
    (tmp_path / "recipes" / "dt").mkdir(parents=True)
    (tmp_path / "recipes" / "dt" / "mine.yaml").write_text(TEXT)
    assert find_recipe("dt/mine") == Path("recipes/dt/mine.yaml")
    with pytest.raises(RecipeError, match=r"^quikstart: no such recipe; "):
        find_recipe("quikstart")
