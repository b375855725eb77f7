"""Training from a stream: it begins before the data set has come, and the network's speed cannot change a number."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces
from safetensors.torch import load_file

import seqwm
from seqwm.core.errors import DataError, RecipeError
from seqwm.core.types import Spaces
from seqwm.data.export import write_parquet
from seqwm.recipe import parse_recipe
from seqwm.run import train_recipe
from seqwm.training.supervised import SupervisedLearner
from tests.strategies import assert_same_episode, random_episode

SPACES = Spaces(gym_spaces.Box(-np.inf, np.inf, (3,), np.float32), gym_spaces.Box(-1, 1, (2,), np.float32))
LENGTHS = (30, 50, 20, 40, 60, 25)
FIRST_ROWS = 60
LAST_FILE = ".*train-00005-of-00006.parquet"


@pytest.fixture
def log(hub, tmp_path, monkeypatch):
    """Episodes that stand on the Hub, one a file, of which a stream reads two at once."""
    monkeypatch.setattr("seqwm.data.export.FILE_BYTES", 1)
    monkeypatch.setattr("seqwm.data.load.FIRST_ROWS", FIRST_ROWS)
    rng = np.random.default_rng(0)
    episodes = [random_episode(SPACES, length, rng) for length in LENGTHS]
    write_parquet(episodes, SPACES, tmp_path / "log")
    hub.plant("user/log", {f"data/{file.name}": file.read_bytes() for file in (tmp_path / "log" / "data").iterdir()},
              kind="dataset")  # fmt: skip
    return episodes


def recipe(steps=12, source="hf:user/log", **model):
    train = {"steps": steps, "batch_size": 4, "checkpoint_every": 5, "log_every": 1, "track": []}
    return parse_recipe(
        json.dumps(
            {
                "method": "behavior_cloning",
                "data": {"source": source, "streaming": True},
                "model": {"layers": 1, "width": 16, **model},
                "train": train,
            }
        ),
        "test",
    )


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def test_a_stream_grows_by_whole_episodes_as_far_as_it_is_asked_to(hub, log):
    store = seqwm.load("hf:user/log", streaming=True)
    assert (len(store), store.rows) == (2, 80)  # the first 60 transitions, and what remains of the episode
    assert not store.provenance["source"].endswith(".parquet")
    read = len(hub.asked(f"GET {LAST_FILE}"))
    store.grow(81)
    assert (len(store), store.rows) == (3, 100)
    store.grow(50)
    assert len(store) == 3
    assert len(hub.asked(f"GET {LAST_FILE}")) == read
    store.grow(10**9)
    assert len(hub.asked(f"GET {LAST_FILE}")) > read
    for one, other in zip(log, store.episodes(), strict=True):
        assert_same_episode(one, other)


def test_what_is_converted_and_what_was_streamed_are_equal(hub, log):
    streamed, downloaded = seqwm.load("hf:user/log", streaming=True), seqwm.load("hf:user/log")
    streamed.grow(10**9)
    for one, other in zip(downloaded.episodes(), streamed.episodes(), strict=True):
        assert_same_episode(one, other)
    assert streamed.provenance == downloaded.provenance


def test_training_begins_before_the_last_file_is_read_and_ends_with_all_of_it(hub, log, tmp_path, monkeypatch):
    read, update = [], SupervisedLearner.update

    def noted(learner, step):
        read.append((learner.windows.rows, len(hub.asked(f"GET {LAST_FILE}"))))
        return update(learner, step)

    monkeypatch.setattr(SupervisedLearner, "update", noted)
    run = train_recipe(recipe(steps=45), tmp_path / "run")
    rows = [count for count, _ in read]
    ends, an_update = np.cumsum(LENGTHS), 4  # behaviour cloning looks at windows of one row
    assert rows == [ends[min(np.searchsorted(ends, 80 + step * an_update), 5)] for step in range(45)]
    asked = [count for _, count in read]
    footers = asked[0]  # of every file, read when the stream was opened
    assert asked[5] == footers < asked[-1]
    record = json.loads((run / "run.json").read_text())
    assert record["data"]["transitions"] == sum(LENGTHS)
    assert record["data"]["returns"][2] == pytest.approx(max(episode.rewards.sum() for episode in log))
    assert "read as a stream as far as training came" in (run / "README.md").read_text()


def test_a_run_that_was_cut_goes_on_with_the_same_numbers_though_the_source_went_on(hub, log, tmp_path, monkeypatch):
    whole = train_recipe(recipe(), tmp_path / "whole")
    update = SupervisedLearner.update

    def cut(learner, step):
        if step == 8:
            raise KeyboardInterrupt
        return update(learner, step)

    monkeypatch.setattr(SupervisedLearner, "update", cut)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe(), tmp_path / "run")
    monkeypatch.setattr(SupervisedLearner, "update", update)
    hub.plant("user/log", {"README.md": b"moved"}, kind="dataset")
    hub.fail("GET .*parquet", pause=0.001)  # and the network is slower
    run = train_recipe(recipe(), tmp_path / "run", resume=True)
    for name, weight in weights(whole).items():
        assert torch.equal(weights(run)[name], weight), name
    lines = [(each / "metrics.jsonl").read_text().splitlines() for each in (run, whole)]
    losses = [[json.loads(line)["loss"] for line in each] for each in lines]
    assert losses[0] == losses[1]


def test_a_stream_that_breaks_off_stops_training_and_is_gone_on_with(hub, log, tmp_path, monkeypatch):
    whole = train_recipe(recipe(steps=45), tmp_path / "whole")
    reached, update = [], SupervisedLearner.update

    def break_off(learner, step):
        if step == 2:
            hub.fail("GET .*parquet", status=403)
        reached.append(step)
        return update(learner, step)

    monkeypatch.setattr(SupervisedLearner, "update", break_off)
    with pytest.raises(DataError, match=r"train-0000.*--resume"):
        train_recipe(recipe(steps=45), tmp_path / "run")
    assert 2 <= reached[-1] < 44
    hub.mend()
    monkeypatch.setattr(SupervisedLearner, "update", update)
    run = train_recipe(recipe(steps=45), tmp_path / "run", resume=True)
    for name, weight in weights(whole).items():
        assert torch.equal(weights(run)[name], weight), name


def test_a_stream_that_broke_off_is_never_taken_for_one_that_ended(hub, log):
    store = seqwm.load("hf:user/log", streaming=True)
    hub.fail("GET .*parquet", status=403)
    for _ in range(2):
        with pytest.raises(DataError):
            store.grow(10**9)
    assert len(store) < len(LENGTHS)


def test_only_what_the_hub_holds_is_streamed():
    with pytest.raises(DataError, match=r"hf:user/name.*leave streaming out"):
        seqwm.load("datasets/cartpole", streaming=True)


def test_a_method_that_compares_all_episodes_does_not_take_them_as_they_come(hub, log, tmp_path):
    with pytest.raises(RecipeError, match=r"data\.streaming.*leave streaming out"):
        train_recipe(recipe(top_fraction=0.1), tmp_path / "run")
