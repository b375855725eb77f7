"""Minari's three storages: the same episodes as Minari reads, and none of the bad ones that it lets through."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import h5py
import minari
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces as gym_spaces
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from seqwm.core.errors import DataError
from seqwm.core.tree import flatten
from seqwm.data.load import convert
from seqwm.data.problems import Findings
from seqwm.data.sources import open_source
from seqwm.data.validate import validate

SHARED = Path(__file__).parents[4] / "shared" / "data"
here = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared logs are not here")
FORMATS = ("hdf5", "arrow", "parquet")

OBSERVATION = gym_spaces.Box(-10, 10, (3,), np.float32)
ACTION = gym_spaces.Box(-1, 1, (2,), np.float32)
STEPS = 5


def buffer(number, observation_space=OBSERVATION, action_space=ACTION, steps=STEPS):
    rng = np.random.default_rng(number)

    def draw(space, rows):
        if isinstance(space, gym_spaces.Dict):
            return {name: draw(sub, rows) for name, sub in space.spaces.items()}
        if isinstance(space, gym_spaces.Discrete):
            return rng.integers(space.n, size=rows)
        if space.dtype == np.uint8:
            return rng.integers(0, 256, (rows, *space.shape), dtype=np.uint8)
        return rng.uniform(-1, 1, (rows, *space.shape)).astype(space.dtype)

    last = np.arange(steps) == steps - 1
    return EpisodeBuffer(
        id=number,
        seed=100 + number,
        options={"level": number, "start": {"x": 0.5}},
        observations=draw(observation_space, steps + 1),
        actions=draw(action_space, steps),
        rewards=rng.standard_normal(steps),
        terminations=last & (number % 2 == 0),
        truncations=last & (number % 2 == 1),
        infos=None,
    )


def write(root, kind, *, count=3, observation_space=OBSERVATION, action_space=ACTION, jpeg=True, name="made/up-v0"):
    """A data set as Minari writes it, at root/data."""
    (root / "data").mkdir(parents=True)
    storage = MinariStorage.new(
        root / "data", observation_space, action_space, data_format=kind, jpeg_encoding=jpeg
    )  # fmt: skip
    storage.update_episodes([buffer(number, observation_space, action_space) for number in range(count)])
    storage.update_metadata({"dataset_id": name, "minari_version": minari.__version__, "algorithm_name": "dice"})
    return root


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("minari")
    return {kind: write(folder / kind, kind) for kind in FORMATS}


@pytest.fixture
def root(tmp_path, originals, kind):
    return Path(shutil.copytree(originals[kind], tmp_path / "set"))


def edit_metadata(root, **changes):
    file = root / "data" / "metadata.json"
    stated = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in stated.items() if value is not None}))


def edit(root, kind, number, **changes):
    """Replace columns of an episode by functions of them, writing what Minari would have written."""
    if kind == "hdf5":
        with h5py.File(root / "data" / "main_data.hdf5", "r+") as file:
            group = file[f"episode_{number}"]
            for column, change in changes.items():
                values = change(group[column][()])
                del group[column]
                group.create_dataset(column, data=values)
        return
    folder = root / "data" / str(number)
    (file,) = folder.glob(f"*.{kind}")
    table = read_table(file, kind)
    steps = len(table) - 1
    dtypes = {
        "observations": OBSERVATION.dtype, "actions": ACTION.dtype, "rewards": np.float64,
        "terminations": np.bool_, "truncations": np.bool_,
    }  # fmt: skip
    columns = {name: np.array(table[name].to_pylist(), dtype) for name, dtype in dtypes.items()}
    columns = {name: values if name == "observations" else values[:steps] for name, values in columns.items()}
    columns |= {name: change(columns[name]) for name, change in changes.items()}
    stated = json.loads((folder / "metadata.json").read_text()) | {"total_steps": len(columns["rewards"])}
    (folder / "metadata.json").write_text(json.dumps(stated))
    rows = len(columns["observations"])
    arrays = {}
    for name, values in columns.items():
        values = np.concatenate([values, np.zeros((rows - len(values), *values.shape[1:]), values.dtype)])
        flat = pa.array(values.reshape(-1))
        arrays[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.ndim == 2 else flat
    write_table(file, kind, pa.table(arrays))


def read_table(file, kind):
    if kind == "parquet":
        return pq.read_table(file)
    with pa.OSFile(str(file)) as opened:  # not mapped: the file is written again
        return pa.ipc.open_file(opened).read_all()


def write_table(file, kind, table):
    if kind == "parquet":
        pq.write_table(table, file)
    else:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)


def put(place, value):
    def change(values):
        values[place] = value
        return values

    return change


def add_rows(count):
    return lambda values: np.concatenate([values, values[:count]])


def told(root):
    return [
        (p.check, p.episode, p.step, p.column, p.severity) for p in validate(root).problems if p.check != "cut-return"
    ]


# name: (formats, changed columns of episode 1, problems as (check, episode, step, column, severity))
ACCEPTED_BY_MINARI = {
    "NaN in an observation": (
        FORMATS, {"observations": put((3, 1), np.nan)}, ("not-finite", 1, 3, "observations[1]", "error"),
    ),
    "infinite reward": (FORMATS, {"rewards": put(4, np.inf)}, ("not-finite", 1, 4, "rewards", "error")),
    "a reward that float32 cannot hold": (
        FORMATS, {"rewards": put(0, 1e300)}, ("not-finite", 1, 0, "rewards", "error"),
    ),
    "observation outside its space": (
        FORMATS, {"observations": put((5, 0), 11)}, ("outside-space", 1, 5, "observations[0]", "warning"),
    ),
    "action outside its space": (
        FORMATS, {"actions": put((2, 1), 1.5)}, ("outside-space", 1, 2, "actions[1]", "error"),
    ),
    "no end flag": (FORMATS, {"truncations": put(-1, False)}, ("missing-end-flag", 1, 4, "terminations", "error")),
    "end flag in the middle": (
        FORMATS, {"terminations": put(2, True)}, ("end-in-middle", 1, 2, "terminations", "error"),
    ),
    "T observations": (
        FORMATS, {"observations": lambda values: values[:-1]}, ("observation-length", 1, 5, "observations", "error"),
    ),
    "T+5 observations": (
        FORMATS, {"observations": add_rows(4)}, ("observation-length", 1, 6, "observations", "error"),
    ),
    "float64 in a float32 space": (
        FORMATS, {"observations": lambda values: values.astype(np.float64)},
        ("narrowing-cast", 1, None, "observations", "warning"),
    ),
    "integer actions in a float space": (
        FORMATS, {"actions": lambda values: values.astype(np.int8)}, ("wrong-type", 1, None, "actions", "error"),
    ),
    "wrong width": (
        ("hdf5",), {"observations": lambda values: values[:, :2]}, ("wrong-shape", 1, None, "observations", "error"),
    ),
    "wrong width in a table": (
        ("arrow", "parquet"), {"observations": lambda values: values[:, :2]},
        ("wrong-shape", 1, 0, "observations", "error"),
    ),
    "fewer actions than rewards": (
        ("hdf5",), {"actions": lambda values: values[:3]}, ("ragged-episode", 1, 3, "actions", "error"),
    ),
    "fewer flags than rewards": (
        ("hdf5",), {"truncations": lambda values: values[:4]}, ("ragged-episode", 1, 4, "truncations", "error"),
    ),
    "rewards two-dimensional": (
        ("hdf5",), {"rewards": lambda values: values[:, None]}, ("wrong-shape", 1, None, "rewards", "error"),
    ),
    "no step at all": (
        FORMATS,
        {"observations": lambda values: values[:1]} | dict.fromkeys(
            ("actions", "rewards", "terminations", "truncations"), lambda values: values[:0]
        ),
        ("empty-episode", 1, None, "rewards", "error"),
    ),
    "flags that are no booleans": (
        ("hdf5",), {"truncations": lambda values: values * 2}, ("wrong-type", 1, 4, "truncations", "error"),
    ),
    "flags beside a total that is wrong": (
        ("hdf5",),
        {"observations": add_rows(1), "actions": add_rows(1), "rewards": add_rows(1), "terminations": add_rows(1),
         "truncations": lambda values: np.concatenate([values[:1], values])},
        ("totals-differ", 1, None, "rewards", "error"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for name, (kinds, *_) in ACCEPTED_BY_MINARI.items() for kind in kinds]
)
def test_a_bad_episode_is_named_by_episode_step_and_column(root, kind, name):
    _, changes, expected = ACCEPTED_BY_MINARI[name]
    edit(root, kind, 1, **changes)
    assert told(root) == [expected]
    assert all(problem.file.startswith(str(root / "data")) for problem in validate(root).problems)
    if expected[-1] == "error":
        with pytest.raises(DataError) as refused:
            convert(open_source(str(root), Findings()), root / "store")
        (problem,) = refused.value.problems
        assert (problem.check, problem.episode, problem.step, problem.column) == expected[:4]
        assert problem.file.startswith(str(root / "data"))
        assert not (root / "store").exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_left_of_a_set_is_read_where_one_episode_is_passed_over(root, kind):
    edit(root, kind, 1, truncations=put(-1, False))
    findings = Findings(strict=False)
    episodes = list(open_source(str(root), findings).episodes())
    assert [episode.meta["episode_index"] for episode in episodes] == [0, 2]
    assert len(findings.errors) == 1


@pytest.mark.parametrize("kind", FORMATS)
def test_the_last_episode_alone_may_be_open(root, kind):
    edit(root, kind, 2, terminations=put(-1, False))
    *_, last = open_source(str(root), Findings()).episodes()
    assert (last.terminated, last.truncated) == (False, False)
    assert told(root) == [("missing-end-flag", 2, 4, None, "warning")]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_step_that_is_both_is_a_termination(root, kind):
    edit(root, kind, 1, terminations=put(-1, True))
    episodes = list(open_source(str(root), Findings()).episodes())
    assert [(e.terminated, e.truncated) for e in episodes] == [(True, False)] * 3


def remove_episode(root, kind, number):
    if kind == "hdf5":
        with h5py.File(root / "data" / "main_data.hdf5", "r+") as file:
            del file[f"episode_{number}"]
    else:
        shutil.rmtree(root / "data" / str(number))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("number", "check", "episode"), [(1, "missing-episode", 1), (2, "totals-differ", None)])
def test_an_episode_that_is_gone_is_missed(root, kind, number, check, episode):
    remove_episode(root, kind, number)
    assert told(root) == [(check, episode, None, None, "error")]


@pytest.mark.parametrize("kind", FORMATS)
def test_an_empty_set_is_refused(root, kind):
    for number in range(3):
        remove_episode(root, kind, number)
    assert told(root) == [("empty-dataset", None, None, None, "error")]


@pytest.mark.parametrize("kind", FORMATS)
def test_an_id_that_two_episodes_have_is_told(root, kind):
    if kind == "hdf5":
        with h5py.File(root / "data" / "main_data.hdf5", "r+") as file:
            file["episode_2"].attrs["id"] = 0
    else:
        (root / "data" / "2" / "metadata.json").write_text('{"id": 0, "total_steps": 5}')
    assert told(root) == [("duplicate-episode", 2, None, None, "error")]


@pytest.mark.parametrize("kind", FORMATS)
def test_stated_totals_are_compared_with_the_data(root, kind):
    edit_metadata(root, total_steps=16)
    assert told(root) == [("totals-differ", None, None, None, "error")]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("damage", ["cut", "emptied"])
def test_a_damaged_file_is_told(root, kind, damage):
    file = root / "data" / ("main_data.hdf5" if kind == "hdf5" else f"1/part-0.{kind}")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    findings = validate(root)
    assert [p.check for p in findings.errors] == ["corrupt-file"]
    assert str(file.parent) in findings.errors[0].file


@pytest.mark.parametrize("kind", FORMATS)
def test_whatever_byte_is_changed_validation_ends_in_findings(root, kind):
    files = [file for file in root.rglob("*") if file.is_file()]
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        file = files[rng.integers(len(files))]
        content = file.read_bytes()
        place = rng.integers(len(content))
        file.write_bytes(content[:place] + bytes([content[place] ^ rng.integers(1, 256)]) + content[place + 1 :])
        refused += bool(validate(root).errors)
        file.write_bytes(content)
    assert refused > 0
    assert validate(root).errors == []


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("column", ["observations", "rewards"])
def test_a_column_that_is_not_there_is_told(root, kind, column):
    if kind == "hdf5":
        with h5py.File(root / "data" / "main_data.hdf5", "r+") as file:
            del file["episode_1"][column]
    else:
        file = root / "data" / "1" / f"part-0.{kind}"
        table = read_table(file, kind)
        write_table(file, kind, table.drop_columns([column]))
    assert told(root) == [("missing-column", 1, None, column, "error")]


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_a_null_is_told_by_its_step(root, kind):
    file = root / "data" / "1" / f"part-0.{kind}"
    table = read_table(file, kind)
    rewards = table["rewards"].to_pylist()
    rewards[2] = None
    write_table(file, kind, table.set_column(table.column_names.index("rewards"), "rewards", pa.array(rewards)))
    assert told(root) == [("null-value", 1, 2, "rewards", "error")]


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_an_episode_without_a_table_is_told(root, kind):
    (root / "data" / "1" / f"part-0.{kind}").unlink()
    assert told(root) == [("missing-shard", 1, None, None, "error")]


@pytest.mark.parametrize("kind", ["arrow"])
def test_a_table_of_several_batches_is_one_episode(root, kind):
    file = root / "data" / "1" / "part-0.arrow"
    table = read_table(file, kind)
    before = [episode.observations.copy() for episode in open_source(str(root), Findings()).episodes()]
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    after = [episode.observations for episode in open_source(str(root), Findings()).episodes()]
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_a_table_without_its_final_observation_is_told_even_where_no_step_count_is_stated(root, kind):
    edit(root, kind, 1, observations=lambda values: values[:-1])
    (root / "data" / "1" / "metadata.json").write_text('{"id": 1}')
    assert told(root) == [("observation-length", 1, 4, "truncations", "error")]


@pytest.mark.parametrize("kind", ["hdf5"])
@pytest.mark.parametrize("text", ["", "[]", '{"total_steps": -1}', '{"total_episodes": "3"}', "[" * 100_000])
def test_metadata_that_cannot_be_read_is_told(root, kind, text):
    (root / "data" / "metadata.json").write_text(text)
    assert told(root) == [("broken-metadata", None, None, None, "error")]


@pytest.mark.parametrize("kind", ["hdf5"])
@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"data_format": "lance"}, "unknown-format"),
        ({"observation_space": '{"type": "Graph"}'}, "unsupported-space"),
        ({"observation_space": '{"type": "Box", "dtype": "float32"}'}, "broken-metadata"),
    ],
)
def test_a_format_or_space_that_is_not_known_is_told(root, kind, changes, check):
    edit_metadata(root, **changes)
    assert [p.check for p in validate(root).problems] == [check]


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_that_an_environment_specification_names_is_run(root, kind):
    nasty = {"id": "Nasty-v0", "entry_point": "this:d", "kwargs": {}, "additional_wrappers": []}
    edit_metadata(root, observation_space=None, action_space=None, env_spec=json.dumps(nasty))
    findings = Findings()
    source = open_source(str(root), findings)
    assert len(list(source.episodes())) == 3
    assert "this" not in sys.modules
    assert source.provenance["environment"] == "Nasty-v0"
    assert [p.check for p in findings.problems] == ["environment-code", "space-inferred", "space-inferred"]


def test_wrappers_by_import_path_are_told_even_of_a_registered_environment(tmp_path, originals):
    root = Path(shutil.copytree(originals["hdf5"], tmp_path / "set"))
    edit_metadata(root, env_spec=json.dumps({"id": "CartPole-v1", "additional_wrappers": [{"entry_point": "this:d"}]}))
    assert told(root) == [("environment-code", None, None, None, "warning")]
    edit_metadata(root, env_spec=json.dumps({"id": "CartPole-v1"}))
    assert told(root) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_spaces_that_are_not_stated_are_read_off_the_data(tmp_path, kind):
    observation = gym_spaces.Dict({"a": gym_spaces.Box(-9, 9, (2,), np.float64), "b": gym_spaces.Discrete(3)})
    root = write(tmp_path / "set", kind, observation_space=observation, action_space=gym_spaces.Discrete(4))
    before = list(open_source(str(root), Findings()).episodes())
    edit_metadata(root, observation_space=None, action_space=None)
    source = open_source(str(root), Findings())
    assert source.spaces.observation["a"] == gym_spaces.Box(-np.inf, np.inf, (2,), np.float64)
    for name, leaf, space in (
        ("b", [e.observations["b"] for e in before], source.spaces.observation["b"]),
        ("action", [e.actions for e in before], source.spaces.action),
    ):
        assert space == gym_spaces.Discrete(int(np.max(leaf)) + 1), name
    for one, other in zip(before, source.episodes(), strict=True):
        for path, leaf in flatten(one.observations).items():
            np.testing.assert_array_equal(leaf, flatten(other.observations)[path])


def assert_same_as_minari(dataset, source):
    """Every array of every episode as Minari reads it; returns the number of episodes."""
    count = 0
    for theirs, ours in zip(dataset.iterate_episodes(), source.episodes(), strict=True):
        for name in ("observations", "actions"):
            left, right = flatten(getattr(theirs, name)), flatten(getattr(ours, name))
            assert left.keys() == right.keys()
            for path in left:
                assert left[path].dtype == right[path].dtype
                np.testing.assert_array_equal(left[path], right[path])
        np.testing.assert_array_equal(theirs.rewards.astype(np.float32), ours.rewards)
        assert ours.terminated == theirs.terminations[-1]
        assert ours.truncated == (theirs.truncations[-1] and not theirs.terminations[-1])
        assert ours.final_observation
        assert ours.meta["episode_index"] == theirs.id
        count += 1
    assert source.spaces.observation == dataset.observation_space
    assert source.spaces.action == dataset.action_space
    return count


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("jpeg", [True, False])
def test_nested_observations_with_frames_are_read_as_minari_reads_them(tmp_path, monkeypatch, kind, jpeg):
    observation = gym_spaces.Dict(
        {
            "camera": gym_spaces.Box(0, 255, (40, 48, 3), np.uint8),
            "depth": gym_spaces.Dict({"grey": gym_spaces.Box(0, 255, (33, 32), np.uint8)}),
            "pose": gym_spaces.Box(-1, 1, (2, 3), np.float64),
            "room": gym_spaces.Discrete(5),
        }
    )
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    write(tmp_path / "made" / "up-v0", kind, observation_space=observation, jpeg=jpeg)
    findings = Findings()
    source = open_source("minari:made/up-v0", findings)
    assert assert_same_as_minari(minari.load_dataset("made/up-v0"), source) == 3
    assert findings.problems == []
    assert source.name == "minari:made/up-v0"
    assert source.count == 3
    first = next(iter(source.episodes()))
    assert dict(first.meta) == {"episode_index": 0, "seed": 100, "options/level": 0, "options/start/x": 0.5}
    assert source.provenance["algorithm_name"] == "dice"


@pytest.mark.parametrize("kind", ["hdf5"])
def test_frames_that_are_no_jpeg_are_told_by_their_step(tmp_path, kind):
    camera = gym_spaces.Box(0, 255, (40, 48, 3), np.uint8)
    root = write(tmp_path / "set", kind, observation_space=camera)
    with h5py.File(root / "data" / "main_data.hdf5", "r+") as file:
        file["episode_1"]["observations"][3] = np.zeros(9, np.uint8)
    assert told(root) == [("image-broken", 1, 3, "observations", "error")]


def test_an_id_is_looked_up_where_minari_keeps_its_data_sets_and_a_path_where_it_points(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "kept"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "kept" / "made" / "up-v0", "hdf5", count=3)
    write(tmp_path / "made" / "up-v0", "hdf5", count=2)
    assert open_source("minari:made/up-v0", Findings()).count == 3
    assert open_source("made/up-v0", Findings()).count == 2
    assert open_source(str(tmp_path / "made" / "up-v0" / "data"), Findings()).count == 2


def test_what_is_not_local_is_downloaded_through_minari(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))

    def download(name):
        print("downloading")
        write(tmp_path / name, "hdf5")

    monkeypatch.setattr(minari, "download_dataset", download)
    assert open_source("minari:made/up-v0", Findings()).count == 3
    assert capsys.readouterr().out == ""


def test_an_id_that_cannot_be_had_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))

    def download(name):
        raise ConnectionError(f"no network for {name}")

    monkeypatch.setattr(minari, "download_dataset", download)
    (problem,) = validate("minari:made/up-v7").problems
    assert (problem.check, problem.file) == ("unreachable", "minari:made/up-v7")
    assert "no network for made/up-v7" in problem.found
    assert str(tmp_path) in problem.mend
    for name in ("../up-v0", "/etc/up-v0", "made/up"):
        assert [p.check for p in validate(f"minari:{name}").problems] == ["unknown-source"]


TOTALS = {  # transitions, episodes, mean return
    "cartpole/mixed-v0": (101_548, 1436, 70.72),
    "hopper/mixed-v0": (200_282, 562, 1108.71),  # its README says 1108.68; Minari's own reader gives this, too
    "hopper/expert-v0": (201_448, 214, 3387.29),
    "hopper/medium-replay-v0": (180_000, 1101, 443.08),
    "hopper/medium-v0": (200_835, 355, 1759.96),
    "minigrid/gotoredball-v0": (20_065, 1812, 0.84),
    "pendulum/mixed-v0": (100_000, 500, -701.83),
    "pong/mixed-v0": (36_451, 22, 0.82),
}


@pytest.mark.shared
@here
@pytest.mark.parametrize("name", TOTALS)
def test_the_shared_logs_import_and_validate_clean(tmp_path, monkeypatch, name):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(SHARED))
    findings = Findings()
    store = convert(open_source(f"minari:{name}", findings), tmp_path / "store")
    assert (store.rows, len(store), round(float(store.returns.mean()), 2)) == TOTALS[name]
    assert {problem.check for problem in findings.problems} <= {"environment-code"}
    told = validate(tmp_path / "store")
    assert {problem.check for problem in told.problems} <= {"cut-return"}
    store.delete()


@pytest.mark.shared
@here
def test_a_shared_log_is_read_as_minari_reads_it(monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(SHARED))
    source = open_source("minari:hopper/mixed-v0", Findings())
    assert assert_same_as_minari(minari.load_dataset("hopper/mixed-v0"), source) == 562
