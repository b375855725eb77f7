"""A stranger's repository never runs anything here: what would leave a mark if it ran leaves none."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from gymnasium import spaces as gym_spaces

import seqwm
from seqwm.cli import main
from seqwm.core.errors import CheckpointError, DataError, RecipeError, UnfitEnvironmentError
from seqwm.core.types import Spaces
from seqwm.data.export import write_parquet
from seqwm.hub.load import load_model
from seqwm.hub.publish import publish
from seqwm.recipe import parse_recipe
from seqwm.run import evaluate_run, train_recipe
from tests.hub.conftest import actions_of
from tests.strategies import random_episode


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """The file that appears where a stranger's code runs; the test ends with a look for it."""
    path = tmp_path / "mark"
    yield path
    assert not path.exists()


@pytest.fixture
def code(mark):
    """A module that leaves the mark when it is imported, as a repository would hold it."""
    return f"from pathlib import Path\nPath({str(mark)!r}).touch()\n".encode()


@pytest.fixture
def files(run, tmp_path):
    """What a good repository holds."""
    folder = tmp_path / "good"
    publish(run, "them/model", dry_run=folder)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def changed(content, **values):
    return json.dumps(json.loads(content) | values).encode()


def test_the_bomb_would_leave_its_mark(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_a_pickle_in_place_of_weights_is_refused_unopened_and_unfetched(hub, files, mark, name):
    del files["model.safetensors"]
    hub.plant("them/model", files | {name: pickle.dumps(Bomb(mark))})
    with pytest.raises(CheckpointError, match=r"them/model: found no model\.safetensors"):
        load_model("them/model")
    assert hub.asked(f"GET .*{name}") == []


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_in_a_folder_is_refused_unopened(files, mark, tmp_path, name):
    for file, content in ({"config.json": files["config.json"]} | {name: pickle.dumps(Bomb(mark))}).items():
        (tmp_path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match="a pickle can run code and is never opened"):
        load_model(tmp_path)


def test_weights_that_are_a_pickle_under_another_name_are_refused(hub, files, mark):
    hub.plant("them/model", files | {"model.safetensors": pickle.dumps(Bomb(mark)) * 9})
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model("them/model")


@pytest.mark.usefixtures("mark")
def test_code_beside_the_weights_is_neither_fetched_nor_run(hub, files, run, code):
    files = {name: code if name.endswith(".py") else content for name, content in files.items()}
    hub.plant("them/model", files)
    assert torch.equal(actions_of(load_model("them/model")), actions_of(load_model(run)))
    assert hub.asked(r"GET .*\.py") == []


@pytest.mark.usefixtures("mark")
@pytest.mark.parametrize("kind", ["stranger", "llama", "seqwm_stranger", "seqwm_../x", None])
def test_a_class_that_is_not_ours_is_not_looked_for(hub, files, code, kind):
    config = {"model_type": kind, "auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}}
    hub.plant("them/model", files | {"config.json": changed(files["config.json"], **config), "evil.py": code})
    with pytest.raises(CheckpointError, match=r"them/model: config\.json names model_type"):
        load_model("them/model")


@pytest.mark.usefixtures("mark")
def test_fields_that_would_fetch_other_things_are_not_read(hub, files, run, code):
    other = {
        "_attn_implementation": "them/kernel",
        "attn_implementation": "them/kernel",
        "quantization_config": {"quant_method": "them/quantizer"},
        "auto_map": {"AutoModel": "them/other--evil.Model"},
        "base_model_name_or_path": "them/base",
        "generation_config": {"custom_generate": "them/other"},
    }
    files = files | {
        "config.json": changed(files["config.json"], **other),
        "evil.py": code,
        "custom_generate/generate.py": code,
    }
    hub.plant("them/model", files)
    assert torch.equal(actions_of(load_model("them/model")), actions_of(load_model(run)))
    assert {request.split("/them/")[1].split("/")[0] for request in hub.requests} == {"model"}


def test_an_adapter_that_names_other_weights_is_refused(files, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(files[name])
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "them/base"}')
    with pytest.raises(CheckpointError, match="holds an adapter"):
        load_model(tmp_path)


def test_a_shard_in_another_folder_is_not_opened(hub, files, tmp_path):
    index = {"metadata": {}, "weight_map": {"embed_norm.bias": "../../model.safetensors"}}
    weights = files.pop("model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(weights)
    hub.plant("them/model", files | {"model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises(CheckpointError, match=r"names \.\./\.\./model\.safetensors, which is not there"):
        load_model("them/model")


@pytest.mark.usefixtures("mark")
@pytest.mark.parametrize("place", ["config.json", "recipe.yaml"])
def test_an_environment_that_names_a_module_is_not_imported(hub, files, code, place, tmp_path, monkeypatch):
    (tmp_path / "evil_world.py").write_bytes(code)
    monkeypatch.syspath_prepend(tmp_path)
    name = "evil_world:World-v0"
    recipe = yaml.safe_load(files["recipe.yaml"])
    recipe["evaluate"]["environment"] = name if place == "recipe.yaml" else None
    hub.plant(
        "them/model",
        files
        | {"config.json": changed(files["config.json"], environment=name)}
        | {"recipe.yaml": yaml.safe_dump(recipe).encode()},
    )
    with pytest.raises(UnfitEnvironmentError, match="not a registered environment"):
        evaluate_run("them/model", episodes=1)
    assert main(["evaluate", "them/model", "--episodes", "1"]) == 1
    assert "evil_world" not in sys.modules


def test_a_recipe_that_asks_yaml_for_objects_is_refused(hub, files, mark):
    text = files["recipe.yaml"] + f"\nseed: !!python/object/apply:pathlib.Path.touch ['{mark}']\n".encode()
    hub.plant("them/model", files | {"recipe.yaml": text})
    with pytest.raises(RecipeError):
        evaluate_run("them/model", episodes=1)


def dataset(folder, environment="CartPole-v1"):
    spaces = Spaces(gym_spaces.Box(-np.inf, np.inf, (3,), np.float32), gym_spaces.Discrete(2))
    write_parquet(
        [random_episode(spaces, 8, np.random.default_rng(0))], spaces, folder, provenance={"environment": environment}
    )
    (file,) = (folder / "data").iterdir()
    return {f"data/{file.name}": file.read_bytes()}


@pytest.mark.usefixtures("mark")
@pytest.mark.parametrize("streaming", [False, True])
def test_a_loading_script_is_neither_fetched_nor_run(hub, code, tmp_path, streaming):
    files = dataset(tmp_path) | {"log.py": code, "dataset.py": code, "dataset_infos.json": b"{}"}
    hub.plant("them/log", files, kind="dataset")
    assert seqwm.load("hf:them/log", streaming=streaming).rows == 8
    assert hub.asked(r"(GET|HEAD) .*\.py") == []


def test_a_data_set_of_scripts_and_pickles_alone_is_refused(hub, mark, code):
    hub.plant("them/log", {"log.py": code, "data/train.pkl": pickle.dumps(Bomb(mark))}, kind="dataset")
    with pytest.raises(DataError, match="scripts and pickles are never run"):
        seqwm.load("hf:them/log")
    assert hub.asked("(GET|HEAD) .*(py|pkl)") == []


def test_a_pickle_under_the_name_of_parquet_is_refused(hub, mark):
    hub.plant("them/log", {"train.parquet": pickle.dumps(Bomb(mark))}, kind="dataset")
    with pytest.raises(DataError, match="corrupt-file"):
        seqwm.load("hf:them/log")


def test_a_column_type_that_arrow_once_unpickled_is_not(hub, mark):
    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Bomb(mark)),
    }
    lists = {"observations": [[[0.5]] * 3], "actions": [[[1.0]] * 3], "rewards": [[1.0] * 3]}
    table = pa.table(lists)
    fields = [field.with_metadata(metadata) for field in table.schema]
    out = io.BytesIO()
    pq.write_table(table.cast(pa.schema(fields)), out)
    hub.plant("them/log", {"train.parquet": out.getvalue()}, kind="dataset")
    with contextlib.suppress(DataError, RuntimeWarning):  # refused or read as plain numbers, in neither case run
        seqwm.load("hf:them/log")


@pytest.mark.usefixtures("mark")
def test_a_data_set_whose_environment_needs_its_code_trains_without_being_played(
    hub, code, tmp_path, monkeypatch, capsys
):
    (tmp_path / "evil_world.py").write_bytes(code)
    monkeypatch.syspath_prepend(tmp_path)
    hub.plant("them/log", dataset(tmp_path, "evil_world:World-v0"), kind="dataset")
    recipe = {
        "method": "behavior_cloning", "data": {"source": "hf:them/log"}, "model": {"layers": 1, "width": 16},
        "train": {"steps": 2, "batch_size": 4, "track": []},
    }  # fmt: skip
    run = train_recipe(parse_recipe(json.dumps(recipe), "test"), tmp_path / "run")
    assert "there will be no evaluation" in capsys.readouterr().err
    assert not (run / "evaluation.json").exists()
    assert "evil_world" not in sys.modules
