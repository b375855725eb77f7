"""Parquet and Arrow data sets: both layouts, every class of bad input, and the shared logs against their originals."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces as gym_spaces
from PIL import Image

from seqwm.core.errors import DataError
from seqwm.data.problems import Findings
from seqwm.data.sources.hub import open_files

SHARED = Path(__file__).parents[4] / "shared" / "data"
shared = [pytest.mark.shared, pytest.mark.skipif(not SHARED.is_dir(), reason="the shared logs are not here")]


def step_columns(lengths=(3, 4), *, width=2, seed=0):
    """Columns of a table with one step a row; the first episode terminates, the others are truncated."""
    rng = np.random.default_rng(seed)
    rows = sum(lengths)
    last = np.cumsum(lengths) - 1
    ends = np.zeros(rows, bool)
    ends[last] = True
    terminated = ends & (np.arange(rows) == last[0])
    return {
        "observation.state": pa.array(
            rng.standard_normal((rows, width)).astype(np.float32).tolist(), pa.list_(pa.float32())
        ),
        "action": pa.array(rng.standard_normal((rows, 1)).astype(np.float32).tolist(), pa.list_(pa.float32())),
        "next.reward": pa.array(rng.standard_normal(rows).astype(np.float32)),
        "next.terminated": pa.array(terminated),
        "next.truncated": pa.array(ends & ~terminated),
        "episode_index": pa.array(np.repeat(np.arange(len(lengths)), lengths)),
        "frame_index": pa.array(np.concatenate([np.arange(length) for length in lengths])),
    }


def episode_columns(lengths=(3, 4), *, final=False, seed=0):
    """Columns of a table with one episode a row."""
    rng = np.random.default_rng(seed)
    return {
        "observations": [rng.standard_normal((length + final, 2)).tolist() for length in lengths],
        "actions": [rng.standard_normal((length, 1)).tolist() for length in lengths],
        "rewards": [rng.standard_normal(length).tolist() for length in lengths],
        "terminals": [[False] * (length - 1) + [True] for length in lengths],
        "timeouts": [[False] * length for length in lengths],
    }


def replaced(columns, name, change):
    """The columns with one of them changed as a list of Python values."""
    kind = columns[name].type if isinstance(columns[name], pa.Array) else None
    values = columns[name].to_pylist() if kind is not None else [list(row) for row in columns[name]]
    change(values)
    return columns | {name: pa.array(values, kind) if kind is not None else values}


def write(path, columns, **options):
    pq.write_table(pa.table(columns), path, write_page_checksum=True, **options)
    return path


def read(*paths):
    findings = Findings()
    source = open_files([Path(path) for path in paths], findings)
    return source, list(source.episodes()), findings


def problem_of(*paths):
    """The one problem that a strict reading ends in."""
    with pytest.raises(DataError) as caught:
        read(*paths)
    return caught.value.problems[0]


def png(array, form="PNG"):
    out = io.BytesIO()
    Image.fromarray(array).save(out, form)
    return {"bytes": out.getvalue(), "path": None}


# -- one row a step ---------------------------------------------------------------------------------------------------


def test_step_rows_become_episodes_with_their_ends(tmp_path):
    columns = step_columns((3, 4))
    source, episodes, findings = read(write(tmp_path / "a.parquet", columns))
    assert source.spaces.observation == gym_spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert source.spaces.action == gym_spaces.Box(-np.inf, np.inf, (1,), np.float32)
    assert [(e.terminated, e.truncated, e.final_observation, len(e)) for e in episodes] == [
        (True, False, False, 3),
        (False, True, False, 4),
    ]
    np.testing.assert_array_equal(
        episodes[1].observations, np.array(columns["observation.state"].to_pylist()[3:], np.float32)
    )
    np.testing.assert_array_equal(episodes[1].rewards, columns["next.reward"].to_numpy()[3:])
    assert episodes[1].meta == {"episode_index": 1}
    assert findings.problems == []


def test_an_episode_goes_on_across_row_groups_batches_and_files(tmp_path, monkeypatch):
    monkeypatch.setattr("seqwm.data.sources.step_rows.ROW_LIMIT", 5)
    table = pa.table(step_columns((13, 9, 8), seed=3))
    write(tmp_path / "whole.parquet", {name: table[name] for name in table.column_names})
    pq.write_table(table.slice(0, 17), tmp_path / "x-00000-of-00002.parquet", row_group_size=4)
    pq.write_table(table.slice(17), tmp_path / "x-00001-of-00002.parquet", row_group_size=7)
    _, whole, _ = read(tmp_path / "whole.parquet")
    _, parts, _ = read(tmp_path / "x-00000-of-00002.parquet", tmp_path / "x-00001-of-00002.parquet")
    assert [len(e) for e in parts] == [13, 9, 8]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one.observations, other.observations)
        np.testing.assert_array_equal(one.rewards, other.rewards)


def test_several_observation_columns_become_a_dict_space_with_integers_and_images(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), dtype=np.uint8)
    columns = step_columns((3, 4)) | {
        "observation.images.top": pa.array([png(frame) for frame in frames]),
        "observation.room": pa.array([0, 1, 2, 0, 1, 2, 5]),
        "action": pa.array([[0, 3]] * 6 + [[1, 0]]),
    }
    source, episodes, _ = read(write(tmp_path / "a.parquet", columns))
    assert source.spaces.observation == gym_spaces.Dict(
        {
            "state": gym_spaces.Box(-np.inf, np.inf, (2,), np.float32),
            "images.top": gym_spaces.Box(0, 255, (4, 5, 3), np.uint8),
            "room": gym_spaces.Discrete(6),
        }
    )
    assert source.spaces.action == gym_spaces.MultiDiscrete([2, 4])
    np.testing.assert_array_equal(episodes[1].observations["images.top"], frames[3:])
    np.testing.assert_array_equal(episodes[1].observations["room"], [0, 1, 2, 5])


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4), ("P", 3)])
def test_images_of_every_8_bit_mode_keep_their_pixels(tmp_path, mode, channels):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)).convert(mode)
    out = io.BytesIO()
    image.save(out, "PNG")
    columns = step_columns((3, 4)) | {"observation.state": pa.array([{"bytes": out.getvalue(), "path": "x.png"}] * 7)}
    _, episodes, _ = read(write(tmp_path / "a.parquet", columns))
    expected = np.asarray(image.convert("RGB") if mode == "P" else image).reshape(6, 7, channels)
    np.testing.assert_array_equal(episodes[0].observations[2], expected)


def test_the_row_of_the_final_observation_is_no_transition(tmp_path):
    columns = step_columns((3, 5)) | {"is_last": pa.array([False] * 7 + [True])}
    columns["next.truncated"] = pa.array([False] * 6 + [True, False])
    _, episodes, _ = read(write(tmp_path / "a.parquet", columns))
    assert [(len(e), e.final_observation, len(e.observations), len(e.rewards)) for e in episodes] == [
        (3, False, 3, 3),
        (4, True, 5, 4),
    ]
    assert episodes[1].truncated


def test_dtypes_are_kept_and_scalars_restored(tmp_path):
    columns = step_columns((3, 4)) | {
        "observation.state": pa.array(np.arange(7, dtype=np.float64)),
        "action": pa.array([True, False] * 3 + [True]),
        "next.reward": pa.array(np.arange(7)),
    }
    source, episodes, _ = read(write(tmp_path / "a.parquet", columns))
    assert source.spaces.observation == gym_spaces.Box(-np.inf, np.inf, (1,), np.float64)
    assert source.spaces.action == gym_spaces.Discrete(2)
    assert episodes[0].observations.dtype == np.float64
    assert episodes[0].observations.shape == (3, 1)
    assert episodes[0].actions.dtype == np.int64
    assert episodes[0].rewards.dtype == np.float32


def test_names_may_be_episode_ids_of_text(tmp_path):
    columns = step_columns((3, 4))
    columns["episode_id"] = pa.array(["b"] * 3 + ["a"] * 4)
    del columns["episode_index"]
    _, episodes, _ = read(write(tmp_path / "a.parquet", columns))
    assert [e.meta["episode_index"] for e in episodes] == ["b", "a"]


def test_a_lone_done_is_read_by_the_time_limit_and_told(tmp_path):
    columns = step_columns((200, 30, 200))
    columns["next.done"] = pa.array(np.isin(np.arange(430), [199, 229, 429]))
    del columns["next.terminated"], columns["next.truncated"]
    _, episodes, findings = read(write(tmp_path / "a.parquet", columns))
    assert [(e.terminated, e.truncated) for e in episodes] == [(False, True), (True, False), (False, True)]
    assert [p.check for p in findings.warnings] == ["end-kind-inferred"]


def test_what_is_missing_is_told_and_kept_as_absent(tmp_path):
    columns = {name: column for name, column in step_columns().items() if name.startswith(("obs", "epi", "frame"))}
    source, episodes, findings = read(write(tmp_path / "a.parquet", columns | {"weather": pa.array(["rain"] * 7)}))
    assert source.spaces.action is None
    assert all(e.actions is None and e.rewards is None and not (e.terminated or e.truncated) for e in episodes)
    checks = ["no-actions", "no-rewards", "no-end-flags", "columns-left-out"]
    assert [(p.check, p.severity) for p in findings.problems] == [(check, "warning") for check in checks]


def test_a_log_that_stops_within_an_episode_keeps_it_as_a_tail(tmp_path):
    columns = replaced(step_columns((3, 4)), "next.truncated", lambda values: values.__setitem__(6, False))
    _, episodes, findings = read(write(tmp_path / "a.parquet", columns))
    assert (episodes[1].terminated, episodes[1].truncated) == (False, False)
    assert [(p.check, p.episode, p.step, p.severity) for p in findings.problems] == [
        ("missing-end-flag", 1, 3, "warning")
    ]


def set_row(row, value):
    return lambda values: values.__setitem__(row, value)


@pytest.mark.parametrize(
    ("column", "change", "check", "step"),
    [
        ("observation.state", set_row(4, None), "null-value", 1),
        ("observation.state", set_row(4, [1.0, None]), "null-value", 1),
        ("observation.state", set_row(5, [1.0]), "ragged-row", 2),
        ("action", set_row(5, [1.0, 2.0]), "ragged-row", 2),
        ("next.reward", set_row(6, None), "null-value", 3),
        ("frame_index", set_row(4, 7), "frame-order", 1),
        ("frame_index", lambda values: values.__setitem__(slice(3, 7), [1, 2, 3, 4]), "frame-order", 0),
        ("frame_index", lambda values: values.__setitem__(slice(4, 6), [2, 1]), "frame-order", 1),
        ("next.terminated", set_row(4, True), "end-in-middle", 1),
    ],
)
def test_a_bad_step_is_refused_with_its_place_and_the_other_episode_kept(tmp_path, column, change, check, step):
    path = write(tmp_path / "a.parquet", replaced(step_columns(), column, change))
    problem = problem_of(path)
    assert (problem.check, problem.file, problem.episode, problem.step) == (check, str(path), 1, step)
    assert problem.column == column
    findings = Findings(strict=False)
    episodes = list(open_files([path], findings).episodes())
    assert [e.meta["episode_index"] for e in episodes] == [0]
    assert [p.check for p in findings.errors] == [check]


def test_a_null_episode_number_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", replaced(step_columns(), "episode_index", set_row(2, None)))
    problem = problem_of(path)
    assert (problem.check, problem.column) == ("null-value", "episode_index")


def test_an_episode_before_the_last_without_an_end_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", replaced(step_columns(), "next.terminated", set_row(2, False)))
    problem = problem_of(path)
    assert (problem.check, problem.episode, problem.step) == ("missing-end-flag", 0, 2)


@pytest.mark.parametrize("done", [False, True])
def test_flags_that_contradict_each_other_are_refused(tmp_path, done):
    columns = step_columns() | {"next.done": pa.array([False] * 2 + [not done] + [False] * 3 + [True])}
    columns = replaced(columns, "next.terminated", set_row(2, done))
    problem = problem_of(write(tmp_path / "a.parquet", columns))
    assert (problem.check, problem.episode, problem.step, problem.column) == ("contradicting-flags", 0, 2, "next.done")


def test_interleaved_and_duplicate_episodes_are_told_apart(tmp_path):
    order = [0, 1, 3, 4, 5, 6, 2]
    mixed = pa.table(step_columns()).take(order)
    mixed = mixed.set_column(4, "next.truncated", pa.array([False] * 7)).drop_columns(
        ["next.truncated", "next.terminated"]
    )
    problem = problem_of(write(tmp_path / "a.parquet", {n: mixed[n] for n in mixed.column_names}))
    assert (problem.check, problem.episode) == ("interleaved-episodes", 0)
    twice = pa.concat_tables([pa.table(step_columns()), pa.table(step_columns())])
    problem = problem_of(write(tmp_path / "b.parquet", {n: twice[n] for n in twice.column_names}))
    assert (problem.check, problem.episode) == ("duplicate-episode", 0)


def test_a_final_observation_alone_or_in_the_middle_is_refused(tmp_path):
    columns = step_columns((1, 4))
    alone = write(tmp_path / "a.parquet", columns | {"is_last": pa.array([True] + [False] * 4)})
    assert (problem_of(alone).check, problem_of(alone).episode) == ("empty-episode", 0)
    middle = write(tmp_path / "b.parquet", columns | {"is_last": pa.array([False, False, True, False, False])})
    assert (problem_of(middle).check, problem_of(middle).step) == ("end-in-middle", 1)


def image_columns(images):
    return step_columns() | {
        "observation.state": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    }


@pytest.mark.parametrize(
    ("bad", "check"),
    [
        (png(np.zeros((5, 4, 3), np.uint8)), "image-shape"),
        (png(np.zeros((4, 4), np.uint8)), "image-shape"),
        (png(np.zeros((4, 4), np.uint16)), "image-format"),
        ({"bytes": b"no image", "path": None}, "image-broken"),
        ({"bytes": png(np.zeros((4, 4, 3), np.uint8))["bytes"][:45], "path": None}, "image-broken"),
        ({"bytes": None, "path": "/etc/hostname"}, "image-outside"),
    ],
)
def test_images_that_vary_break_or_stand_elsewhere_are_refused(tmp_path, bad, check):
    images = [png(np.full((4, 4, 3), value, np.uint8)) for value in range(7)]
    path = write(tmp_path / "a.parquet", image_columns([*images[:5], bad, *images[6:]]))
    problem = problem_of(path)
    assert (problem.check, problem.episode, problem.step, problem.column) == (check, 1, 2, "observation.state")
    first = write(tmp_path / "b.parquet", image_columns([bad] * 7))
    if check != "image-shape":
        assert problem_of(first).check == check


def test_float_images_and_channels_first_are_refused(tmp_path):
    floats = pa.array(np.zeros((7, 4, 4, 3)).tolist(), pa.list_(pa.list_(pa.list_(pa.float32()))))
    assert (
        problem_of(write(tmp_path / "a.parquet", step_columns() | {"observation.state": floats})).check == "image-dtype"
    )
    channels = pa.array(np.zeros((7, 3, 8, 9), int).tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))
    problem = problem_of(write(tmp_path / "b.parquet", step_columns() | {"observation.state": channels}))
    assert (problem.check, problem.found) == ("channel-order", "images of shape (3, 8, 9)")


# -- one row an episode -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("final", [False, True])
def test_episode_rows_are_read_with_and_without_the_final_observation(tmp_path, final):
    columns = episode_columns((3, 1, 4), final=final)
    source, episodes, findings = read(write(tmp_path / "a.parquet", columns))
    assert source.count == 3
    assert [(len(e), e.final_observation, e.terminated) for e in episodes] == [(n, final, True) for n in (3, 1, 4)]
    np.testing.assert_array_equal(episodes[2].observations, np.array(columns["observations"][2]))
    np.testing.assert_array_equal(episodes[2].actions, np.array(columns["actions"][2]))
    assert findings.problems == []


def test_jat_rows_are_read_as_tails_without_ends(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), dtype=np.uint8)
    columns = {
        "image_observations": [[png(frame) for frame in episode] for episode in frames],
        "discrete_actions": [[0, 17, 3], [1, 2, 0]],
        "rewards": [[0.0, 1.0, 0.0]] * 2,
        "text_observations": [["a", "b", "c"]] * 2,
    }
    source, episodes, findings = read(write(tmp_path / "a.parquet", columns))
    assert source.spaces.observation == gym_spaces.Box(0, 255, (4, 5, 3), np.uint8)
    assert source.spaces.action == gym_spaces.Discrete(18)
    np.testing.assert_array_equal(episodes[1].observations, frames[1])
    assert [(e.terminated, e.truncated, e.final_observation) for e in episodes] == [(False, False, False)] * 2
    assert [p.check for p in findings.problems] == ["no-end-flags", "columns-left-out"]


def test_one_flag_an_episode_will_do(tmp_path):
    columns = episode_columns((3, 4)) | {"terminals": [True, False], "timeouts": [False, True]}
    _, episodes, _ = read(write(tmp_path / "a.parquet", columns))
    assert [(e.terminated, e.truncated) for e in episodes] == [(True, False), (False, True)]


@pytest.mark.parametrize(
    ("column", "change", "check", "step"),
    [
        ("observations", lambda v: v[1].__setitem__(2, [0.0]), "ragged-row", 2),
        ("observations", lambda v: v[1].__setitem__(2, None), "null-value", 2),
        ("observations", lambda v: v[1].pop(), "observation-length", None),
        ("observations", lambda v: v[1].append([0.0, 0.0]), "observation-length", None),
        ("rewards", lambda v: v[1].pop(), "ragged-episode", None),
        ("terminals", lambda v: v[1].pop(), "ragged-episode", None),
        ("terminals", lambda v: v[1].__setitem__(1, True), "end-in-middle", 1),
    ],
)
def test_a_bad_episode_row_is_refused_with_its_place_and_the_others_kept(tmp_path, column, change, check, step):
    path = write(tmp_path / "a.parquet", replaced(episode_columns((3, 4, 2)), column, change))
    problem = problem_of(path)
    assert (problem.check, problem.file, problem.episode, problem.step) == (check, str(path), 1, step)
    assert problem.column == column
    findings = Findings(strict=False)
    assert [len(e) for e in open_files([path], findings).episodes()] == [3, 2]
    assert [p.check for p in findings.errors] == [check]


def test_an_empty_episode_row_is_refused(tmp_path):
    columns = {name: [*rows, []] for name, rows in episode_columns((3, 4)).items()}
    problem = problem_of(write(tmp_path / "a.parquet", columns))
    assert (problem.check, problem.episode) == ("empty-episode", 2)


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_flipped_byte_in_a_page_is_an_error_and_not_another_number(tmp_path):
    path = write(tmp_path / "a.parquet", step_columns((300, 400)), use_dictionary=False, compression="none")
    start = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start + 3000] ^= 1
    path.write_bytes(content)
    problem = problem_of(path)
    assert (problem.check, problem.file) == ("corrupt-file", str(path))


@pytest.mark.parametrize("damage", [lambda c: b"", lambda c: c[:-9], lambda c: c[: len(c) // 2], lambda c: b"PAR0" * 9])
def test_a_file_that_is_cut_empty_or_of_another_kind_is_refused(tmp_path, damage):
    path = write(tmp_path / "a.parquet", step_columns())
    path.write_bytes(damage(path.read_bytes()))
    assert (problem_of(path).check, problem_of(path).file) == ("corrupt-file", str(path))


def test_a_missing_file_of_a_numbered_set_is_named(tmp_path):
    for number in (0, 2):
        write(tmp_path / f"train-0000{number}-of-00003.parquet", step_columns())
    problem = problem_of(tmp_path)
    assert problem.check == "missing-shard"
    assert problem.file == str(tmp_path / "train-00001-of-00003.parquet")


def test_shards_whose_columns_drift_are_refused(tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.parquet", step_columns())
    double = step_columns() | {"action": pa.array([[1.0]] * 7, pa.list_(pa.float64()))}
    write(tmp_path / "1.parquet", double)
    problem = problem_of(tmp_path)
    assert (problem.check, problem.file, problem.column) == ("schema-drift", str(tmp_path / "1.parquet"), "action")
    assert "float" in problem.expected


def test_shards_of_another_width_are_refused(tmp_path):
    write(tmp_path / "0.parquet", step_columns((3,)))
    wide = step_columns((3,), width=3) | {"episode_index": pa.array([1] * 3)}
    write(tmp_path / "1.parquet", wide)
    problem = problem_of(tmp_path)
    assert (problem.check, problem.episode, problem.column) == ("wrong-shape", 1, "observation.state")


def test_the_training_split_is_read_alone_and_the_rest_told(tmp_path):
    write(tmp_path / "train-00000-of-00001.parquet", step_columns((3, 4)))
    write(tmp_path / "test-00000-of-00001.parquet", step_columns((5,)))
    source, episodes, findings = read(tmp_path)
    assert [len(e) for e in episodes] == [3, 4]
    assert source.files == (tmp_path / "train-00000-of-00001.parquet",)
    assert [p.check for p in findings.warnings] == ["split-left-out"]


@pytest.mark.parametrize("form", ["file", "stream"])
def test_arrow_files_of_both_formats_are_read(tmp_path, form):
    table = pa.table(step_columns((3, 4)))
    make = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
    with make(str(tmp_path / "a.arrow"), table.schema) as writer:
        for start in (0, 2, 5):
            writer.write_table(table.slice(start, {0: 2, 2: 3, 5: 2}[start]))
    _, arrow, _ = read(tmp_path / "a.arrow")
    _, parquet, _ = read(write(tmp_path / "a.parquet", step_columns((3, 4))))
    for one, other in zip(arrow, parquet, strict=True):
        np.testing.assert_array_equal(one.observations, other.observations)
        assert one.terminated == other.terminated


def test_an_arrow_file_whose_offsets_leave_their_buffer_is_refused(tmp_path):
    values = pa.array(np.zeros(14, np.float32))
    offsets = np.arange(0, 16, 2, dtype=np.int32)
    offsets[4] = 1 << 20
    broken = pa.Array.from_buffers(
        pa.list_(pa.float32()), 7, [None, pa.py_buffer(offsets.tobytes())], children=[values]
    )
    columns = step_columns() | {"observation.state": broken}
    table = pa.table(columns)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert problem_of(tmp_path / "a.arrow").check == "corrupt-file"


@pytest.mark.parametrize(
    ("columns", "check", "column"),
    [
        ({"action": [1.0], "episode_index": [0]}, "missing-column", None),
        ({"observation": [[1.0]], "action": [[1.0]], "reward": [1.0]}, "missing-column", "episode_index"),
        ({"observation": ["a"], "episode_index": [0]}, "wrong-type", "observation"),
        ({"observation": [1.0], "action": ["left"], "episode_index": [0]}, "wrong-type", "action"),
        ({"observation": [1.0], "done": ["yes"], "episode_index": [0]}, "wrong-type", "done"),
    ],
)
def test_a_table_whose_meaning_cannot_be_known_is_refused(tmp_path, columns, check, column):
    problem = problem_of(write(tmp_path / "a.parquet", columns))
    assert (problem.check, problem.column) == (check, column)


def test_files_without_a_row_are_refused(tmp_path):
    empty = pa.table(step_columns()).slice(0, 0)
    path = write(tmp_path / "a.parquet", {name: empty[name] for name in empty.column_names})
    assert problem_of(path).check == "empty-dataset"
    assert problem_of(tmp_path / "nothing").check == "corrupt-file"


# -- the shared logs --------------------------------------------------------------------------------------------------


def table_of(name):
    with open(SHARED / "tables" / f"{name}.csv") as file:
        return list(csv.DictReader(file))


class TestSharedLogs:
    pytestmark = shared

    @pytest.mark.parametrize("name", ["hopper-medium", "cartpole-mixed"])
    def test_episode_rows_equal_the_table_of_their_originals(self, name):
        _, episodes, findings = read(SHARED / "parquet" / f"{name}.parquet")
        table = table_of(f"{name}-v0")
        assert [p.check for p in findings.problems] == ["end-kind-inferred"]
        assert [len(e) for e in episodes] == [int(row["length"]) for row in table]
        returns = [e.rewards.sum(dtype=np.float64) for e in episodes]
        np.testing.assert_allclose(returns, [float(row["return"]) for row in table], atol=2e-3)
        limit = max(len(e) for e in episodes)
        for episode, row in zip(episodes, table, strict=True):
            assert episode.terminated != episode.truncated
            if len(episode) < limit:
                assert episode.terminated == (row["terminated"] == "1")
        # one CartPole episode fell at its very last step; nothing in `dones` can say so
        wrong = [
            e.terminated for e, row in zip(episodes, table, strict=True) if e.terminated != (row["terminated"] == "1")
        ]
        assert len(wrong) == {"hopper-medium": 0, "cartpole-mixed": 1}[name]

    @pytest.mark.parametrize(
        ("name", "group"), [("hopper-medium", "hopper/medium-v0"), ("cartpole-mixed", "cartpole/mixed-v0")]
    )
    def test_episode_rows_equal_their_minari_originals(self, name, group, monkeypatch):
        import minari

        monkeypatch.setenv("MINARI_DATASETS_PATH", str(SHARED))
        _, episodes, _ = read(SHARED / "parquet" / f"{name}.parquet")
        for episode, original in zip(episodes, minari.load_dataset(group), strict=True):
            np.testing.assert_array_equal(episode.observations, original.observations[:-1])
            np.testing.assert_array_equal(episode.actions, original.actions)
            np.testing.assert_array_equal(episode.rewards, original.rewards.astype(np.float32))

    def test_step_rows_with_frames_are_whole(self):
        source, episodes, findings = read(SHARED / "parquet" / "pong-steps")
        assert findings.problems == []
        assert source.spaces.observation == gym_spaces.Box(0, 255, (64, 64, 3), np.uint8)
        assert source.spaces.action == gym_spaces.Discrete(6)
        assert (len(episodes), sum(len(e) for e in episodes)) == (18, 24_000)
        returns = [e.rewards.sum() for e in episodes]
        assert (min(returns), max(returns)) == (-21, 2)
        assert all(e.final_observation and len(e.observations) == len(e) + 1 for e in episodes)
        assert all(e.terminated or e.truncated for e in episodes)
