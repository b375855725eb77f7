"""Data set repositories, downloaded and streamed through the real client from a Hub on this machine."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces as gym_spaces

from seqwm.core.errors import DataError
from seqwm.core.types import Spaces
from seqwm.data.export import write_parquet
from seqwm.data.problems import Findings
from seqwm.data.sources.hub import open_source
from tests.fakes.loopback_hub import Hub
from tests.strategies import assert_same_episode, random_episode

SPACES = Spaces(gym_spaces.Box(-np.inf, np.inf, (17,), np.float32), gym_spaces.Box(-1, 1, (6,), np.float32))


def exported(folder, lengths=(30, 50, 40)):
    rng = np.random.default_rng(0)
    episodes = [random_episode(SPACES, length, rng) for length in lengths]
    write_parquet(episodes, SPACES, folder)
    return episodes


@contextmanager
def served(folder, monkeypatch, cache):
    """A Hub that has the files of `folder` as the data set user/log."""
    with Hub() as hub:
        hub.connect(monkeypatch, cache)
        files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        hub.plant("user/log", files, kind="dataset")
        yield hub


def commit_of(hub):
    return hub.repository("user/log", "dataset").references["main"]


def problem_of(location, **options):
    with pytest.raises(DataError) as caught:
        list(open_source(location, Findings(), **options).episodes())
    return caught.value.problems[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_repository_is_read_at_the_commit_it_stands_at(tmp_path, monkeypatch, streaming):
    episodes = exported(tmp_path / "repository")
    with served(tmp_path / "repository", monkeypatch, tmp_path / "cache") as hub:
        source = open_source("user/log", Findings(), streaming=streaming)
        assert source.name == "hf:user/log"
        assert source.provenance == {"revision": commit_of(hub)}
        assert source.count == 3
        assert len(source.files) == (0 if streaming else 1)
        for _ in range(2):  # every pass is a fresh one
            for one, other in zip(episodes, source.episodes(), strict=True):
                assert_same_episode(one, other)


def test_a_downloaded_repository_opens_again_while_the_hub_is_away(tmp_path, monkeypatch):
    episodes = exported(tmp_path / "repository")
    with served(tmp_path / "repository", monkeypatch, tmp_path / "cache") as hub:
        open_source("user/log", Findings())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = open_source("user/log", Findings())
    assert source.provenance["revision"] == commit_of(hub)
    for one, other in zip(episodes, source.episodes(), strict=True):
        assert_same_episode(one, other)
    assert problem_of("user/other").check == "unreachable"


def test_a_file_that_was_not_downloaded_is_missed_while_the_hub_is_away(tmp_path, monkeypatch):
    monkeypatch.setattr("seqwm.data.export.FILE_BYTES", 1)
    exported(tmp_path / "repository")
    with served(tmp_path / "repository", monkeypatch, tmp_path / "cache"):
        open_source("user/log", Findings())
    next((tmp_path / "cache").rglob("train-00001-of-00003.parquet")).unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert problem_of("user/log").check == "unreachable"


def test_the_first_episode_of_a_stream_comes_before_the_data_set_has_arrived(tmp_path, monkeypatch):
    monkeypatch.setattr("seqwm.data.sources.shards.FETCH_BYTES", 100_000)
    exported(tmp_path / "repository", lengths=(300,) * 60)
    size = sum(file.stat().st_size for file in (tmp_path / "repository").rglob("*.parquet"))
    with served(tmp_path / "repository", monkeypatch, tmp_path / "cache") as hub:
        stream = open_source("user/log", Findings(), streaming=True).episodes()
        next(stream)
        assert hub.sent < size / 4
        assert sum(1 for _ in stream) == 59
    assert not list((tmp_path / "cache").rglob("*.parquet"))


def test_a_stream_that_breaks_off_is_an_error_and_not_a_shorter_log(tmp_path, monkeypatch):
    monkeypatch.setattr("seqwm.data.sources.shards.FETCH_BYTES", 100_000)
    exported(tmp_path / "repository", lengths=(300,) * 20)
    with served(tmp_path / "repository", monkeypatch, tmp_path / "cache") as hub:
        stream = open_source("user/log", Findings(), streaming=True).episodes()
        next(stream)
        hub.fail("GET .*parquet", after=1000)
        with pytest.raises(DataError) as caught:
            list(stream)
    assert caught.value.problems[0].check == "unreachable"


@pytest.mark.parametrize(
    ("files", "check", "mend"),
    [
        (["log.py", "data/replay.pkl"], "no-parquet", "never run"),
        (["README.md"], "no-parquet", "refs/convert/parquet"),
        (["hopper/a.parquet", "walker/a.parquet"], "several-datasets", "hf:user/log/hopper"),
    ],
)
def test_a_repository_without_one_data_set_is_refused_with_the_mend(tmp_path, monkeypatch, files, check, mend):
    for name in files:
        (tmp_path / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repository" / name).write_text("import os")
    with served(tmp_path / "repository", monkeypatch, tmp_path / "cache"):
        problem = problem_of("user/log")
    assert (problem.check, problem.file) == (check, "hf:user/log")
    assert mend in problem.mend
    assert not list((tmp_path / "cache").rglob("*.p*"))


def test_one_data_set_of_several_is_named_by_its_folder(tmp_path, monkeypatch):
    for name, length in (("hopper", 2), ("walker", 5)):
        rows = {"observations": [[[0.5]] * length], "actions": [[[1.0]] * length], "rewards": [[1.0] * length]}
        (tmp_path / "repository" / name).mkdir(parents=True)
        pq.write_table(pa.table(rows), tmp_path / "repository" / name / "train-00000-of-00001.parquet")
    with served(tmp_path / "repository", monkeypatch, tmp_path / "cache"):
        assert [len(e) for e in open_source("user/log/walker", Findings()).episodes()] == [5]


def test_a_repository_or_revision_that_is_not_there_is_named(tmp_path, monkeypatch):
    exported(tmp_path / "repository")
    with served(tmp_path / "repository", monkeypatch, tmp_path / "cache"):
        assert (problem_of("user/nothing").check, problem_of("user/nothing").file) == ("unreachable", "hf:user/nothing")
        assert problem_of("user/log", revision="v9").file == "hf:user/log@v9"
        assert problem_of("not a name").check == "unreachable"


def test_a_lerobot_repository_is_known_by_its_metadata(tmp_path, monkeypatch):
    (tmp_path / "repository" / "meta").mkdir(parents=True)
    (tmp_path / "repository" / "meta" / "info.json").write_text('{"codebase_version": "v2.1"}')
    with served(tmp_path / "repository", monkeypatch, tmp_path / "cache"):
        assert problem_of("user/log").check == "unknown-version"
