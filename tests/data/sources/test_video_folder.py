"""Folders of videos: frames in order, and what does not fit named."""

from __future__ import annotations

import av
import numpy as np
import pytest

from seqwm.core.errors import DataError
from seqwm.data.load import load
from seqwm.data.problems import Findings
from seqwm.data.sources import open_source


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
    write_video(tmp_path / "a.mp4", [10, 60, 110, 160])
    write_video(tmp_path / "more" / "b.mkv", [200, 150, 100])
    return tmp_path


def test_every_file_is_an_episode_of_its_frames_without_actions_rewards_or_an_end(folder):
    store = load(f"video:{folder}", cache=False)
    assert (len(store), store.lengths.tolist()) == (2, [3, 2])
    assert not store.has_actions
    assert not store.has_rewards
    assert not (store.terminated | store.truncated).any()
    assert store.provenance["frames_per_second"] == 10
    for episode, shades in zip(store.episodes(), ([10, 60, 110, 160], [200, 150, 100]), strict=True):
        assert episode.observations.shape == (len(shades), 32, 48, 3)
        assert np.abs(episode.observations.mean((1, 2, 3)) - shades).max() < 3
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


def test_a_folder_without_videos_or_with_none_that_decodes_is_refused(tmp_path):
    with pytest.raises(DataError, match="no video file in it"):
        load(f"video:{tmp_path}")
    with pytest.raises(DataError, match="no such folder"):
        load(f"video:{tmp_path / 'nowhere'}")
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(DataError, match="none of the files decodes"):
        load(f"video:{tmp_path}")
