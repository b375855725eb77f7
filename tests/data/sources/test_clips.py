"""Videos in folders, tables and repositories: frames in order, and what does not fit named."""

from __future__ import annotations

import re

import av
import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets.table import embed_table_storage

from seqwm.cli import main
from seqwm.core.errors import DataError
from seqwm.data.load import load
from seqwm.data.problems import Findings
from seqwm.data.sources import open_source
from tests.fakes.loopback_hub import Hub

SHADES = [10, 60, 110, 160], [200, 150, 100]


def write_video(path, shades, size=(32, 48), rate=10):
    """Frames of one shade each, in a codec that keeps them."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv444p"
        for shade in shades:
            pixels = np.full((*size, 3), shade, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "more").mkdir()
    write_video(tmp_path / "a.mp4", SHADES[0])
    write_video(tmp_path / "more" / "b.mkv", SHADES[1])
    return tmp_path


def assert_shades(episodes, expected):
    for episode, shades in zip(episodes, expected, strict=True):
        assert episode.observations.shape == (len(shades), 32, 48, 3)
        assert np.abs(episode.observations.mean((1, 2, 3)) - shades).max() < 3


def write_table(path, files):
    """A table as `push_to_hub` writes it: the files' bytes beside their names, and what was said of them."""
    rows = {"video": [str(file) for file in files], "caption": ["said"] * len(files)}
    table = datasets.Dataset.from_dict(rows).cast_column("video", datasets.Video()).data.table
    pq.write_table(embed_table_storage(table), path)


def test_every_file_is_an_episode_of_its_frames_without_actions_rewards_or_an_end(folder):
    store = load(f"video:{folder}", cache=False)
    assert (len(store), store.lengths.tolist()) == (2, [3, 2])
    assert not store.has_actions
    assert not store.has_rewards
    assert not (store.terminated | store.truncated).any()
    assert store.provenance["frames_per_second"] == 10
    assert_shades(store.episodes(), SHADES)
    batch = store.windows(2, 4).batch(0)
    assert batch.observations.shape == (4, 2, 32, 48, 3)
    assert batch.actions is None


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (lambda folder: write_video(folder / "c.mp4", [1, 2], size=(32, 32)), "image-shape"),
        (lambda folder: write_video(folder / "c.mp4", [1, 2, 3], rate=25), "video-fps"),
        (lambda folder: write_video(folder / "c.mp4", [1]), "no-transition"),
        (lambda folder: (folder / "c.mp4").write_bytes(b"no video"), "corrupt-file"),
    ],
)
def test_what_does_not_fit_is_named_and_passed_over_only_on_request(folder, spoil, check):
    spoil(folder)
    with pytest.raises(DataError, match=rf"c\.mp4.*\[{check}\]"):
        load(f"video:{folder}", cache=False)
    findings = Findings(strict=False)
    kept = list(open_source(f"video:{folder}", findings).episodes())
    assert len(kept) == 2
    assert [problem.check for problem in findings.errors] == [check]


@pytest.mark.parametrize("form", ["store", "parquet"])
def test_the_command_line_leaves_out_what_is_broken_on_request_and_names_it(folder, tmp_path, capsys, form):
    (folder / "c.mp4").write_bytes(b"no video")
    asked = ["data", "convert", f"video:{folder}", "--out", str(tmp_path / "out"), "--to", form]
    assert main(asked) == 1
    assert "c.mp4, episode 1: [corrupt-file]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*asked, "--skip-broken"]) == 0
    shown = capsys.readouterr()
    assert re.search(r"left out: .*c\.mp4, episode 1: \[corrupt-file\]", shown.err)
    assert "5 transitions in 2 episodes" in shown.out
    assert_shades(load(tmp_path / "out", cache=False).episodes(), SHADES)


def test_a_folder_without_videos_or_with_none_that_decodes_is_refused(tmp_path):
    with pytest.raises(DataError, match="no video file in it"):
        load(f"video:{tmp_path}")
    with pytest.raises(DataError, match="no such folder"):
        load(f"video:{tmp_path / 'nowhere'}")
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(DataError, match="none of the videos decodes"):
        load(f"video:{tmp_path}")


def test_a_table_holds_a_video_in_each_row(folder, tmp_path):
    write_table(tmp_path / "clips.parquet", [folder / "a.mp4", folder / "more" / "b.mkv"])
    findings = Findings()
    source = open_source(str(tmp_path / "clips.parquet"), findings)
    assert source.count == 2
    assert [problem.found for problem in findings.warnings] == ["caption"]
    for _ in range(2):  # every pass is a fresh one
        assert_shades(source.episodes(), SHADES)


def test_rows_without_bytes_and_bytes_of_no_video_are_named_and_files_of_this_machine_are_not_read(folder, tmp_path):
    rows = [{"bytes": (folder / "a.mp4").read_bytes(), "path": None}, {"bytes": None, "path": str(folder / "a.mp4")}]
    rows.append({"bytes": b"#EXTM3U\nhttp://localhost/", "path": "c.mp4"})
    datasets.Dataset.from_dict({"video": rows}).to_parquet(tmp_path / "clips.parquet")
    findings = Findings(strict=False)
    assert_shades(open_source(str(tmp_path / "clips.parquet"), findings).episodes(), SHADES[:1])
    assert [(problem.check, problem.episode) for problem in findings.errors] == [
        ("corrupt-file", 1),
        ("corrupt-file", 2),
    ]
    assert "without the bytes" in findings.errors[0].found
    assert "neither MP4 nor Matroska nor AVI" in findings.errors[1].found


def test_a_repository_of_videos_is_read_at_its_commit_the_training_split_alone(folder, tmp_path, monkeypatch):
    files = {"README.md": b"# Clips", "train/a.mp4": (folder / "a.mp4").read_bytes(), "metadata.parquet": b"of clips"}
    files["test/b.mkv"] = (folder / "more" / "b.mkv").read_bytes()
    with Hub() as hub:
        hub.connect(monkeypatch, tmp_path / "cache")
        hub.plant("user/clips", files, kind="dataset")
        findings = Findings()
        source = open_source("hf:user/clips", findings)
        assert_shades(source.episodes(), SHADES[:1])
        assert source.provenance["revision"] == hub.repository("user/clips", "dataset").references["main"]
        assert [problem.check for problem in findings.warnings] == ["split-left-out"]
        assert_shades(open_source("hf:user/clips/test", findings).episodes(), SHADES[1:])
        hub.plant("user/table", {"data/train.parquet": table_of(folder, tmp_path)}, kind="dataset")
        assert_shades(open_source("hf:user/table", findings).episodes(), SHADES)


def table_of(folder, tmp_path):
    write_table(tmp_path / "train.parquet", [folder / "a.mp4", folder / "more" / "b.mkv"])
    return (tmp_path / "train.parquet").read_bytes()
