"""LeRobot v3 folders, written here as LeRobot lays them out: many episodes a file, videos with their own numbering."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces as gym_spaces

from seqwm.core.errors import DataError
from seqwm.data.problems import Findings
from seqwm.data.sources.lerobot import open_source

FPS = 10
CAMERA = "observation.images.top"


class Folder:
    """Three episodes in two data files, and in two videos that are cut elsewhere; to be spoilt by the tests."""

    lengths = (5, 7, 4)
    data_files = (0, 0, 1)
    video_files = (0, 1, 1)

    def __init__(self, root: Path, *, cameras=(CAMERA,), state=True):
        rng = np.random.default_rng(0)
        self.root, self.cameras = root, cameras
        self.frames = {
            name: [rng.integers(0, 256, (length, 32, 48, 3), dtype=np.uint8) for length in self.lengths]
            for name in cameras
        }
        self.states = [rng.standard_normal((length, 2)).astype(np.float32) for length in self.lengths]
        self.actions = [rng.standard_normal(length).astype(np.float32) for length in self.lengths]
        self.rewards = [rng.standard_normal(length).astype(np.float32) for length in self.lengths]
        self.state = state
        number = {"dtype": "int64", "shape": [1], "names": None}
        self.info = {
            "codebase_version": "v3.0",
            "robot_type": "arm",
            "total_episodes": 3,
            "total_frames": sum(self.lengths),
            "fps": FPS,
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "features": {
                **({"observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "y"]}} if state else {}),
                **{
                    name: {"dtype": "video", "shape": [3, 32, 48], "names": ["channels", "height", "width"]}
                    for name in cameras
                },
                "action": {"dtype": "float32", "shape": [1], "names": None},
                "next.reward": {"dtype": "float32", "shape": [1], "names": None},
                "next.done": {"dtype": "bool", "shape": [1], "names": None},
                "timestamp": {"dtype": "float32", "shape": [1], "names": None},
                **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), number),
            },
        }

    def write(self):
        for file in sorted(set(self.data_files)):
            chosen = [episode for episode in range(3) if self.data_files[episode] == file]
            self.put(f"data/chunk-000/file-{file:03d}.parquet", pa.concat_tables([self.steps(e) for e in chosen]))
        self.put("meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist([self.record(e) for e in range(3)]))
        for name in self.cameras:
            for file in sorted(set(self.video_files)):
                chosen = [episode for episode in range(3) if self.video_files[episode] == file]
                frames = np.concatenate([self.frames[name][episode] for episode in chosen])
                write_video(self.root / f"videos/{name}/chunk-000/file-{file:03d}.mp4", frames)
        self.write_info()
        return self.root

    def write_info(self):
        (self.root / "meta").mkdir(parents=True, exist_ok=True)
        (self.root / "meta" / "info.json").write_text(json.dumps(self.info))

    def put(self, name, table):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)

    def steps(self, episode):
        length = self.lengths[episode]
        state = pa.array(self.states[episode].tolist(), pa.list_(pa.float32(), 2))
        return pa.table(
            {
                **({"observation.state": state} if self.state else {}),
                "action": self.actions[episode],
                "next.reward": self.rewards[episode],
                "next.done": np.arange(length) == length - 1,
                "timestamp": (np.arange(length) / FPS).astype(np.float32),
                "frame_index": np.arange(length),
                "episode_index": np.full(length, episode),
                "index": sum(self.lengths[:episode]) + np.arange(length),
                "task_index": np.full(length, episode % 2),
            }
        )

    def record(self, episode):
        file = self.video_files[episode]
        before = sum(n for n, f in zip(self.lengths[:episode], self.video_files[:episode], strict=True) if f == file)
        clip = {
            "chunk_index": 0,
            "file_index": file,
            "from_timestamp": before / FPS,
            "to_timestamp": (before + self.lengths[episode]) / FPS,
        }
        return {
            "episode_index": episode,
            "tasks": [["lift", "place"][episode % 2]],
            "length": self.lengths[episode],
            "data/chunk_index": 0,
            "data/file_index": self.data_files[episode],
            "dataset_from_index": sum(self.lengths[:episode]),
            "dataset_to_index": sum(self.lengths[: episode + 1]),
            **{f"videos/{name}/{key}": value for name in self.cameras for key, value in clip.items()},
        }


def write_video(path, frames, fps=FPS, times=None):
    """A lossless file with a key frame every other frame; frames stand at k / fps, or at `times` / fps."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=fps, options={"crf": "0", "g": "2", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "rgb24"
        stream.codec_context.time_base = Fraction(1, 100 * fps)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = round(100 * (number if times is None else times[number]))
            frame.time_base = Fraction(1, 100 * fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def read(root):
    findings = Findings()
    source = open_source(str(root), findings)
    return source, list(source.episodes()), findings


def problem_of(root):
    with pytest.raises(DataError) as caught:
        read(root)
    return caught.value.problems[0]


def test_states_frames_and_ends_of_every_episode_are_read(tmp_path):
    folder = Folder(tmp_path)
    source, episodes, findings = read(folder.write())
    assert source.spaces.observation == gym_spaces.Dict(
        {
            "state": gym_spaces.Box(-np.inf, np.inf, (2,), np.float32),
            "images.top": gym_spaces.Box(0, 255, (32, 48, 3), np.uint8),
        }
    )
    assert source.spaces.action == gym_spaces.Box(-np.inf, np.inf, (1,), np.float32)
    assert (source.count, source.provenance["fps"], source.provenance["codebase_version"]) == (3, 10.0, "v3.0")
    assert len(source.files) == 1 + 2 + 2
    for number, episode in enumerate(episodes):
        np.testing.assert_array_equal(episode.observations["images.top"], folder.frames[CAMERA][number])
        np.testing.assert_array_equal(episode.observations["state"], folder.states[number])
        np.testing.assert_array_equal(episode.actions[:, 0], folder.actions[number])
        np.testing.assert_array_equal(episode.rewards, folder.rewards[number])
        task = {"task_index": number % 2, "task": ["lift", "place"][number % 2]}
        assert episode.meta == {"episode_index": number, **task}
        assert (episode.terminated, episode.truncated, episode.final_observation) == (True, False, False)
    assert len(episodes) == 3
    assert [p.check for p in findings.problems] == ["end-kind-inferred"]


def test_a_camera_alone_stands_alone_and_two_stand_side_by_side(tmp_path):
    alone = Folder(tmp_path / "one", state=False)
    source, episodes, _ = read(alone.write())
    assert source.spaces.observation == gym_spaces.Box(0, 255, (32, 48, 3), np.uint8)
    np.testing.assert_array_equal(episodes[2].observations, alone.frames[CAMERA][2])
    two = Folder(tmp_path / "two", cameras=(CAMERA, "observation.images.wrist"), state=False)
    _, episodes, _ = read(two.write())
    np.testing.assert_array_equal(episodes[1].observations["images.wrist"], two.frames["observation.images.wrist"][1])


def test_a_state_alone_needs_no_video(tmp_path):
    folder = Folder(tmp_path, cameras=())
    source, episodes, _ = read(folder.write())
    assert source.spaces.observation == gym_spaces.Box(-np.inf, np.inf, (2,), np.float32)
    np.testing.assert_array_equal(episodes[1].observations, folder.states[1])


def test_without_rewards_and_end_flags_episodes_are_tails_and_it_is_told(tmp_path):
    folder = Folder(tmp_path, cameras=())
    columns = folder.steps
    folder.steps = lambda episode: columns(episode).drop_columns(["next.reward", "next.done"])
    _, episodes, findings = read(folder.write())
    assert all(e.rewards is None and not (e.terminated or e.truncated) for e in episodes)
    assert [p.check for p in findings.problems] == ["no-rewards", "no-end-flags"]


def test_episodes_whose_flag_is_never_set_are_tails_and_counted(tmp_path):
    folder = Folder(tmp_path, cameras=())
    columns = folder.steps
    folder.steps = lambda e: columns(e).set_column(3, "next.done", pa.array([False] * folder.lengths[e]))
    _, episodes, findings = read(folder.write())
    assert not any(e.terminated or e.truncated for e in episodes)
    assert (findings.problems[-1].check, findings.problems[-1].found) == (
        "missing-end-flag",
        "3 episodes without an end flag",
    )


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"codebase_version": "v2.1"}, "unknown-version"),
        ({"codebase_version": "v9.0"}, "unknown-version"),
        ({"total_frames": 17}, "totals-differ"),
        ({"total_episodes": 4}, "totals-differ"),
        ({"data_path": "../data/{chunk_index}.parquet"}, "path-outside"),
        ({"data_path": "/etc/{chunk_index}"}, "path-outside"),
        ({"data_path": "{chunk_index.__class__}"}, "path-outside"),
        ({"data_path": "{episode_chunk}/{chunk_index}"}, "path-outside"),
        ({"data_path": "{chunk_index"}, "path-outside"),
        ({"video_path": "videos/../../{video_key}/{chunk_index}"}, "path-outside"),
        ({"data_path": "elsewhere/{chunk_index}-{file_index}.parquet"}, "missing-shard"),
        ({"fps": 0}, "video-fps"),
        ({"fps": 12}, "video-fps"),
        ({"features": None}, "corrupt-file"),
    ],
)
def test_an_info_that_does_not_fit_is_refused(tmp_path, change, check):
    folder = Folder(tmp_path)
    folder.write()
    folder.info |= change
    folder.write_info()
    assert problem_of(tmp_path).check == check


def test_a_feature_of_another_shape_is_refused(tmp_path):
    folder = Folder(tmp_path, cameras=())
    folder.info["features"]["observation.state"]["shape"] = [3]
    problem = problem_of(folder.write())
    assert (problem.check, problem.column) == ("wrong-shape", "observation.state")


def test_an_episode_of_another_length_than_the_metadata_says_is_refused(tmp_path):
    folder = Folder(tmp_path, cameras=())
    record = folder.record
    folder.record = lambda e: record(e) | {"length": (6, 6, 4)[e]}
    problem = problem_of(folder.write())
    assert (problem.check, problem.episode, problem.found) == ("totals-differ", 0, "5 steps")


def test_a_video_with_fewer_frames_than_steps_is_refused(tmp_path):
    folder = Folder(tmp_path)
    folder.write()
    frames = np.concatenate(folder.frames[CAMERA][1:])
    video = tmp_path / f"videos/{CAMERA}/chunk-000/file-001.mp4"
    write_video(video, frames[:-2])
    problem = problem_of(tmp_path)
    assert (problem.check, problem.file, problem.episode, problem.column) == ("video-too-short", str(video), 2, CAMERA)
    assert problem.found == "2 frames"
    findings = Findings(strict=False)
    assert len(list(open_source(str(tmp_path), findings).episodes())) == 2


def test_frames_more_than_half_a_frame_beside_their_steps_are_refused(tmp_path):
    folder = Folder(tmp_path)
    folder.write()
    video = tmp_path / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    write_video(video, folder.frames[CAMERA][0], times=[0, 1.4, 2.4, 3, 4])
    assert len(read(tmp_path)[1]) == 3
    write_video(video, folder.frames[CAMERA][0], times=[0, 1, 2.7, 3, 4])
    problem = problem_of(tmp_path)
    assert (problem.check, problem.episode, problem.step, problem.column) == ("video-drift", 0, 2, CAMERA)


def test_a_broken_or_absent_video_is_refused(tmp_path):
    folder = Folder(tmp_path)
    folder.write()
    video = tmp_path / f"videos/{CAMERA}/chunk-000/file-001.mp4"
    video.write_bytes(b"#EXTM3U\nfile:///etc/hostname\n")
    assert (problem_of(tmp_path).check, problem_of(tmp_path).file) == ("corrupt-file", str(video))
    video.unlink()
    assert problem_of(tmp_path).check == "corrupt-file"


def test_a_missing_data_file_is_named(tmp_path):
    folder = Folder(tmp_path, cameras=())
    folder.write()
    file = tmp_path / "data/chunk-000/file-001.parquet"
    file.unlink()
    assert (problem_of(tmp_path).check, problem_of(tmp_path).file) == ("missing-shard", str(file))
