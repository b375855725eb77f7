from __future__ import annotations

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gymnasium.spaces as gym_spaces
import numpy as np
import pytest

import seqwm
from seqwm.core.errors import DataError
from seqwm.core.types import Episode, Spaces
from seqwm.data.export import write_parquet
from seqwm.data.load import convert
from seqwm.data.problems import Findings
from seqwm.data.sources import Source, open_source
from seqwm.data.store import TrajectoryStore
from tests.strategies import assert_same_episode, random_episode

SPACES = Spaces(gym_spaces.Box(-np.inf, np.inf, (3,), np.float32), gym_spaces.Discrete(4))
SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQWM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def log(tmp_path):
    return write_log(tmp_path / "log", seed=0)


def write_log(folder, seed, episodes=4):
    rng = np.random.default_rng(seed)
    write_parquet([random_episode(SPACES, 5, rng) for _ in range(episodes)], SPACES, folder)
    return folder


def stores(cache):
    return sorted((cache / "stores").iterdir())


def test_a_source_is_converted_once_and_found_by_content(cache, log, tmp_path, monkeypatch):
    first = seqwm.load(log)
    monkeypatch.setattr("seqwm.data.load._fill", lambda *_: pytest.fail("converted again"))
    again = seqwm.load(log)
    assert again.path == first.path
    assert again.fingerprint == first.fingerprint
    for number in range(4):
        assert_same_episode(first.episode(number), again.episode(number))
    os.utime(next(log.rglob("*.parquet")))  # touched, not changed
    assert seqwm.load(log).path == first.path


def test_changed_files_are_another_content(cache, log):
    first = seqwm.load(log)
    shutil.rmtree(log)
    write_log(log, seed=1)
    second = seqwm.load(log)
    assert second.path != first.path
    assert second.fingerprint != first.fingerprint
    assert len(stores(cache)) == 2


def test_a_store_that_was_converted_opens_in_milliseconds(cache, log):
    seqwm.load(log)
    began = time.perf_counter()
    for _ in range(10):
        seqwm.load(log)
    assert (time.perf_counter() - began) / 10 < 0.1  # 2 ms here; a busy machine is given time


def test_what_is_refused_leaves_nothing(cache, log):
    file = next(log.rglob("*.parquet"))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError):
        seqwm.load(log)
    assert not (cache / "stores").exists() or stores(cache) == []


def test_a_conversion_that_was_killed_is_begun_again(cache, log, monkeypatch):
    def half(store, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrajectoryStore, "close", half)
        with pytest.raises(KeyboardInterrupt):
            seqwm.load(log)
    assert stores(cache) == []
    assert len(seqwm.load(log)) == 4


def test_processes_that_convert_the_same_at_once_share_one_store(cache, log):
    begin = threading.Barrier(4)

    def work(_):
        begin.wait()
        return seqwm.load(log)

    with ThreadPoolExecutor(4) as workers:
        found = list(workers.map(work, range(4)))
    assert len({store.fingerprint for store in found}) == 1
    assert len(stores(cache)) == 1
    assert [entry.name[0] != "." for entry in stores(cache)] == [True]


def test_a_store_that_another_put_there_meanwhile_is_used(cache, log, monkeypatch):
    first = seqwm.load(log)
    with monkeypatch.context() as patch:  # it was not there yet when this one looked
        answers = iter([False, False])
        patch.setattr(TrajectoryStore, "is_store", staticmethod(lambda _: next(answers, True)))
        assert seqwm.load(log).path == first.path
    assert [entry.name[0] != "." for entry in stores(cache)] == [True]


def test_without_the_cache_nothing_is_kept_there(cache, log):
    assert len(seqwm.load(log, cache=False)) == 4
    assert not (cache / "stores").exists()


def test_a_store_is_opened_as_it_is(cache, log, tmp_path):
    convert(open_source(str(log), Findings(strict=True)), tmp_path / "mine")
    assert seqwm.load(tmp_path / "mine").path == tmp_path / "mine"


def test_a_folder_with_files_in_it_is_not_converted_into(log, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="store-exists"):
        convert(open_source(str(log), Findings(strict=True)), tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_provenance_says_where_it_came_from(cache, log):
    assert seqwm.load(log).provenance["source"] == str(next(log.rglob("*.parquet")))


@pytest.mark.parametrize("source", ["nowhere/at/all", "minari:no/such-v0", "d4rl:none.hdf5", "lerobot:none/such"])
def test_what_is_not_there_is_an_error_that_names_it(cache, source, monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError) as caught:
        seqwm.load(source)
    assert source.partition(":")[2].split("/")[-1] in str(caught.value)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared logs are not beside this checkout")
def test_a_minari_id_and_the_folder_it_stands_for_hold_the_same(cache, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(SHARED))
    by_name = seqwm.load("minari:cartpole/mixed-v0")
    by_path = seqwm.load(SHARED / "cartpole" / "mixed-v0")
    assert len(by_name) == len(by_path)
    np.testing.assert_array_equal(by_name.returns, by_path.returns)


def test_episodes_that_a_store_refuses_are_left_out_where_that_is_asked_for(tmp_path):
    spaces = Spaces(gym_spaces.Box(-np.inf, np.inf, (2,), np.float32), None)
    good = Episode(np.ones((3, 2), np.float32), None, None, terminated=False, truncated=False)
    bad = replace(good, observations=np.full((3, 2), np.nan, np.float32))
    source = Source("made", spaces, lambda: iter([bad, good, bad]))
    findings = Findings(strict=False)
    store = convert(source, tmp_path / "store", findings=findings)
    assert store.lengths.tolist() == [2]
    assert [problem.episode for problem in findings.errors] == [0, 2]
    with pytest.raises(DataError, match="not-finite"):
        convert(replace(source, episodes=lambda: iter([bad])), tmp_path / "none", findings=Findings(strict=False))
    assert not (tmp_path / "none").exists()
