from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from gymnasium import spaces as gym_spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from seqwm.core.errors import DataError
from seqwm.core.types import Spaces
from seqwm.data import store as store_module
from seqwm.data.store import TrajectoryStore
from tests.strategies import assert_same_episode, episode_sets, random_episode

VECTORS = Spaces(gym_spaces.Box(-np.inf, np.inf, (3,), np.float32), gym_spaces.Box(-np.inf, np.inf, (2,), np.float32))


def filled(path, count=4, seed=0, spaces=VECTORS, length=6):
    rng = np.random.default_rng(seed)
    store = TrajectoryStore.create(path, spaces)
    episodes = [random_episode(spaces, length + i, rng, meta={"seed": i}) for i in range(count)]
    for episode in episodes:
        store.append(episode)
    return store, episodes


@settings(max_examples=60, deadline=None)
@given(episode_sets(), st.booleans(), st.data())
def test_what_is_written_is_read_back_to_the_last_bit(content, on_disk, data):
    spaces, rewards, episodes = content
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store" if on_disk else None
        store = TrajectoryStore.create(path, spaces, rewards=rewards, provenance={"source": "test"})
        for episode in episodes:
            store.append(episode)
            if data.draw(st.booleans()):
                store.flush()
        for number, episode in enumerate(episodes):
            assert_same_episode(store.episode(number), episode)
        store.close()
        if path is None:
            return
        again = TrajectoryStore.open(path)
        assert again.spaces == spaces
        assert again.provenance == {"source": "test"}
        assert again.rows == sum(len(episode) for episode in episodes)
        assert again.verify() == []
        for number, episode in enumerate(episodes):
            assert_same_episode(again.episode(number), episode)


def test_pyarrow_alone_reads_the_rows(tmp_path):
    store, episodes = filled(tmp_path / "store")
    store.close()
    with pa.memory_map(str(tmp_path / "store" / "rows-00000.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    record = store.layout.record
    rows = np.frombuffer(b"".join(table.column("row").to_pylist()), record)
    np.testing.assert_array_equal(rows["observation"][: len(episodes[0]) + 1], episodes[0].observations)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_single_changed_byte_in_any_file_is_detected(data):
    with tempfile.TemporaryDirectory() as folder:
        store, _ = filled(Path(folder) / "store", count=2)
        store.close()
        file = data.draw(st.sampled_from(sorted(Path(folder, "store").iterdir())))
        content = bytearray(file.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        file.write_bytes(bytes(content))
        try:
            problems = TrajectoryStore.open(Path(folder) / "store").verify()
        except DataError as error:
            problems = list(error.problems)
        assert problems
        assert all(problem.file is not None for problem in problems)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_file_cut_anywhere_is_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        store, _ = filled(Path(folder) / "store", count=2)
        store.close()
        file = data.draw(st.sampled_from(sorted(Path(folder, "store").iterdir())))
        content = file.read_bytes()
        file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        try:
            problems = TrajectoryStore.open(Path(folder) / "store").verify()
        except DataError as error:
            problems = list(error.problems)
        assert problems


def test_rewinding_to_a_mark_is_as_if_nothing_had_been_appended(tmp_path):
    rng = np.random.default_rng(1)
    for path in (None, tmp_path / "store"):
        store, _ = filled(path, count=3)
        mark = store.mark()
        before = store.fingerprint
        later = [random_episode(VECTORS, 9, rng) for _ in range(3)]
        for episode in later:
            store.append(episode)
            store.flush()
        assert store.fingerprint != before
        store.rewind(mark)
        assert (len(store), store.fingerprint) == (3, before)
        number = store.append(later[1])
        assert_same_episode(store.episode(number), later[1])
    store.close()
    assert len(TrajectoryStore.open(tmp_path / "store")) == 4


def test_an_episode_larger_than_the_arena_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "ARENA_BYTES", 256)
    store, episodes = filled(tmp_path / "store", count=5, length=40)
    store.close()
    again = TrajectoryStore.open(tmp_path / "store")
    assert len(again.parts) == 5
    for number, episode in enumerate(episodes):
        assert_same_episode(again.episode(number), episode)


def test_a_refused_episode_adds_nothing(tmp_path):
    store, _ = filled(tmp_path / "store", count=2)
    bad = random_episode(VECTORS, 5, np.random.default_rng(0))
    bad.observations[3, 1] = np.nan
    with pytest.raises(DataError, match=r"episode 2.*step 3.*not-finite|not-finite"):
        store.append(bad)
    assert len(store) == 2
    assert store.rows == 13


def test_a_folder_with_files_is_not_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="store-exists"):
        TrajectoryStore.create(tmp_path, VECTORS)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_opening_takes_milliseconds_whatever_the_size(tmp_path):
    store, _ = filled(tmp_path / "store", count=2000, length=3)
    store.close()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        TrajectoryStore.open(tmp_path / "store")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05


def test_a_lane_turns_steps_into_episodes(tmp_path):
    store = TrajectoryStore.create(None, VECTORS)
    lane = store.lane()
    rng = np.random.default_rng(0)
    wanted = [random_episode(VECTORS, 4, rng, end=end, meta={"seed": 3}) for end in ("terminated", "truncated")]
    for episode in wanted:
        lane.reset(episode.observations[0], seed=3)
        for t in range(4):
            last = t == 3
            ends = (last and episode.terminated, last and episode.truncated)
            lane.step(episode.actions[t], episode.rewards[t], episode.observations[t + 1], *ends)
    lane.reset(wanted[0].observations[0])
    lane.cut()  # nothing happened: no episode
    assert len(store) == 2
    for number, episode in enumerate(wanted):
        assert_same_episode(store.episode(number), episode)


WRITER = """
import sys
import numpy as np
from tests.data.test_store import VECTORS
from tests.strategies import random_episode
from seqwm.data.store import TrajectoryStore
store = TrajectoryStore.create(sys.argv[1], VECTORS)
rng = np.random.default_rng(0)
for number in range(100_000):
    store.append(random_episode(VECTORS, 5, rng, meta={"number": number}))
    store.flush()
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_every_sealed_episode(tmp_path):
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "store")],
        cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    said += [int(line) for line in rest.split()]
    store = TrajectoryStore.open(tmp_path / "store")
    assert store.verify() == []
    assert len(store) >= said[-1] + 1
    assert [store.episode(i).meta["number"] for i in range(len(store))] == list(range(len(store)))
