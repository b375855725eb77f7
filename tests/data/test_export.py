"""What is exported comes back equal to the last bit, and opens in `datasets`."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces as gym_spaces
from hypothesis import HealthCheck, given, settings

from seqwm.core.errors import DataError, SpaceError
from seqwm.core.types import Spaces
from seqwm.data.export import write_parquet
from seqwm.data.problems import Findings
from seqwm.data.sources.hub import open_files
from tests.strategies import assert_same_episode, episode_sets, random_episode

MIXED = Spaces(
    gym_spaces.Dict(
        {
            "camera": gym_spaces.Dict({"front": gym_spaces.Box(0, 255, (8, 9, 3), np.uint8)}),
            "state": gym_spaces.Box(-1, 1, (2, 3), np.float64),
            "room": gym_spaces.Discrete(4, start=-1),
        }
    ),
    gym_spaces.Dict({"arm": gym_spaces.Box(-2, 2, (3,), np.float32), "grip": gym_spaces.MultiDiscrete([2, 5])}),
)


def mixed_episodes(lengths=(3, 5, 4), spaces=MIXED, **options):
    rng = np.random.default_rng(0)
    return [
        random_episode(spaces, length, rng, meta={"seed": number}, **options) for number, length in enumerate(lengths)
    ]


def read_back(folder):
    findings = Findings()
    source = open_files([folder], findings)
    episodes = list(source.episodes())
    assert findings.errors == []
    return source, episodes


@given(drawn=episode_sets())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_episodes_of_any_spaces_come_back_equal_to_the_last_bit(drawn, tmp_path_factory):
    spaces, _, episodes = drawn
    folder = tmp_path_factory.mktemp("export")
    write_parquet(episodes, spaces, folder)
    source, found = read_back(folder)
    assert source.spaces == spaces
    assert source.count == len(episodes)
    assert len(found) == len(episodes)
    for one, other in zip(episodes, found, strict=True):
        assert_same_episode(one, other)


def test_spaces_with_bounds_and_every_number_that_floats_can_be_come_back(tmp_path):
    spaces = Spaces(gym_spaces.Box(np.array([-1.5, -np.inf]), np.array([0.1, 7.0]), dtype=np.float64), None)
    episode = random_episode(spaces, 4, np.random.default_rng(0))
    episode.observations[0] = [np.nextafter(0, 1), -0.0]
    episode.observations[1] = [np.nan, -np.inf]
    write_parquet([episode], spaces, tmp_path)
    source, (found,) = read_back(tmp_path)
    assert source.spaces == spaces
    assert found.observations.tobytes() == episode.observations.tobytes()


def test_several_files_are_numbered_and_read_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr("seqwm.data.export.FILE_BYTES", 1)
    episodes = mixed_episodes()
    write_parquet(iter(episodes), MIXED, tmp_path)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.parquet"))
    assert files == [f"data/train-0000{number}-of-00003.parquet" for number in range(3)]
    for one, other in zip(episodes, read_back(tmp_path)[1], strict=True):
        assert_same_episode(one, other)


def test_a_row_group_is_one_episode_and_columns_have_lerobots_names(tmp_path):
    write_parquet(mixed_episodes(), MIXED, tmp_path, provenance={"fps": 20})
    footer = pq.ParquetFile(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert [footer.metadata.row_group(number).num_rows for number in range(3)] == [4, 6, 5]
    table = footer.read_row_group(1).to_pydict()
    assert list(table) == [
        *(
            "observation.camera.front",
            "observation.room",
            "observation.state",
            "action.arm",
            "action.grip",
            "next.reward",
        ),
        *("next.done", "next.terminated", "next.truncated", "episode_index", "frame_index", "timestamp"),
        *("is_final_observation", "episode_meta"),
    ]
    assert table["next.done"] == table["next.terminated"] == [False] * 4 + [True, False]
    assert table["is_final_observation"] == [False] * 5 + [True]
    np.testing.assert_array_equal(table["timestamp"], np.float32(np.arange(6) / 20))
    assert table["frame_index"] == list(range(6))
    assert set(table["episode_index"]) == {1}


@pytest.mark.parametrize("image", [False, True])
def test_an_observation_that_stands_alone_is_named_by_what_it_is(tmp_path, image):
    space = gym_spaces.Box(0, 255, (5, 6, 3), np.uint8) if image else gym_spaces.Box(-1, 1, (2,), np.float32)
    spaces = Spaces(space, gym_spaces.Discrete(3))
    write_parquet(mixed_episodes((2,), spaces), spaces, tmp_path)
    names = pq.read_schema(tmp_path / "data" / "train-00000-of-00001.parquet").names
    assert names[:2] == [f"observation.{'image' if image else 'state'}", "action"]


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_opens_it_with_images_and_lists_of_fixed_length(tmp_path, streaming, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    episodes = mixed_episodes()
    write_parquet(episodes, MIXED, tmp_path / "export")
    files = str(tmp_path / "export" / "data" / "*.parquet")
    opened = datasets.load_dataset(
        "parquet", data_files=files, split="train", streaming=streaming, cache_dir=str(tmp_path / "cache")
    )
    assert opened.features["observation.camera.front"] == datasets.Image()
    assert opened.features["action.arm"] == datasets.List(datasets.Value("float32"), length=3)
    rows = list(opened)
    assert len(rows) == 15
    np.testing.assert_array_equal(
        np.asarray(rows[5]["observation.camera.front"]), episodes[1].observations["camera"]["front"][1]
    )
    np.testing.assert_array_equal(rows[5]["observation.state"], episodes[1].observations["state"][1])
    np.testing.assert_array_equal(np.float32(rows[5]["action.arm"]), episodes[1].actions["arm"][1])
    assert np.float32(rows[5]["next.reward"]) == episodes[1].rewards[1]


def test_provenance_comes_back_with_the_place_of_the_original_named_as_such(tmp_path):
    provenance = {"source": "minari:hopper/medium-v0", "revision": "abc", "environment": "Hopper-v5"}
    write_parquet(mixed_episodes(), MIXED, tmp_path, provenance=provenance)
    assert read_back(tmp_path)[0].provenance == {
        "exported_from": "minari:hopper/medium-v0@abc",
        "environment": "Hopper-v5",
    }


def test_a_failure_on_the_way_leaves_nothing(tmp_path):
    def breaking():
        yield mixed_episodes()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_parquet(breaking(), MIXED, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_export_never_replaces_or_begins_with_nothing(tmp_path):
    with pytest.raises(DataError, match="empty-dataset"):
        write_parquet([], MIXED, tmp_path)
    write_parquet(mixed_episodes(), MIXED, tmp_path)
    with pytest.raises(DataError, match="store-exists"):
        write_parquet(mixed_episodes(), MIXED, tmp_path)


def test_leaves_that_would_share_a_column_are_refused(tmp_path):
    box = gym_spaces.Box(-1, 1, (1,), np.float32)
    spaces = Spaces(gym_spaces.Dict({"a": gym_spaces.Dict({"b": box}), "a.b": box}), None)
    with pytest.raises(SpaceError, match=r"a/b, a\.b"):
        write_parquet(mixed_episodes((2,), spaces), spaces, tmp_path)


def tamper(folder, change):
    """Apply `change(metadata, table)` to the file; it changes the metadata in place or returns another table."""
    path = folder / "data" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[b"seqwm"])
    changed = change(metadata, table)
    table = changed if isinstance(changed, pa.Table) else table
    pq.write_table(table.replace_schema_metadata({b"seqwm": json.dumps(metadata)}), path)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda m, t: m.update(format=9), "unknown-version"),
        (lambda m, t: m.pop("observations"), "spaces-mismatch"),
        (lambda m, t: m["observation_space"]["subspaces"]["state"].update(dtype="float32"), "spaces-mismatch"),
        (lambda m, t: m["observation_space"].update(type="Text"), "spaces-mismatch"),
        (lambda m, t: m.update(action_space=None), "spaces-mismatch"),
        (lambda m, t: t.drop_columns(["frame_index"]), "spaces-mismatch"),
        (lambda m, t: t.drop_columns(["next.reward"]), "spaces-mismatch"),
        (lambda m, t: m["observation_space"]["subspaces"]["state"].update(shape=[3, 3]), "wrong-shape"),
        (lambda m, t: t.set_column(13, "episode_meta", [["x"] * len(t)]), "wrong-type"),
    ],
)
def test_metadata_that_does_not_fit_the_columns_is_refused(tmp_path, change, check):
    write_parquet(mixed_episodes(), MIXED, tmp_path)
    tamper(tmp_path, change)
    with pytest.raises(DataError) as caught:
        list(open_files([tmp_path], Findings()).episodes())
    assert caught.value.problems[0].check == check


def test_no_flipped_byte_becomes_another_number(tmp_path):
    spaces = Spaces(gym_spaces.Box(-np.inf, np.inf, (3,), np.float32), gym_spaces.Discrete(2))
    episodes = mixed_episodes((20, 20), spaces)
    write_parquet(episodes, spaces, tmp_path)
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.choice(len(whole), 300, replace=False):
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        try:
            found = list(open_files([path], Findings()).episodes())
        except DataError:
            refused += 1
            continue
        for one, other in zip(episodes, found, strict=True):
            assert_same_episode(one, other)
    assert refused > 100  # the others lie in columns that nobody reads, and in statistics
