"""Data sets go to the Hub in one commit, open with `datasets`, and come back equal to the last bit."""

from __future__ import annotations

import io

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces as gym_spaces
from huggingface_hub import DatasetCard, HfApi, hf_hub_download

import seqwm
from seqwm.cli import main
from seqwm.core.errors import HubError
from seqwm.core.tree import flatten
from seqwm.core.types import Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.hub.publish_data import publish_data
from tests.strategies import assert_same_episode, random_episode

VECTORS = Spaces(gym_spaces.Box(-1, 1, (3,), np.float64), gym_spaces.Box(-2, 2, (2,), np.float32))
FRAMES = Spaces(
    gym_spaces.Dict(
        {
            "camera": gym_spaces.Box(0, 255, (8, 10, 3), np.uint8),
            "mode": gym_spaces.Discrete(4),
            "state": gym_spaces.Box(-np.inf, np.inf, (5,), np.float32),
        }
    ),
    gym_spaces.MultiDiscrete([3, 2]),
)
VIDEO = Spaces(gym_spaces.Box(0, 255, (6, 6, 1), np.uint8), None)
ENDS = ("terminated", "truncated", "open")


def store_of(spaces, path=None, *, rewards=True, final_observation=True, environment="CartPole-v1"):
    provenance = {"source": "minari:tests/log-v0", "environment": environment, "licence": "mit"}
    store = TrajectoryStore.create(path, spaces, provenance=provenance, rewards=rewards)
    rng = np.random.default_rng(1)
    for number, end in enumerate(ENDS * 2):
        store.append(
            random_episode(
                spaces, 3 + 2 * number, rng, rewards=rewards, final_observation=final_observation, end=end,
                meta={"seed": number},
            )
        )  # fmt: skip
    return store


def assert_same_stores(one, other):
    assert one.spaces == other.spaces
    assert len(one) == len(other)
    for left, right in zip(one.episodes(), other.episodes(), strict=True):
        assert_same_episode(left, right)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("spaces", "how"),
    [(VECTORS, {}), (FRAMES, {}), (VECTORS, {"final_observation": False}), (VIDEO, {"rewards": False})],
    ids=["vectors", "frames", "no-final-observation", "video-alone"],
)
def test_a_data_set_comes_back_equal_to_the_last_bit(hub, spaces, how, streaming):
    store = store_of(spaces, **how)
    assert publish_data(store, "user/log").startswith(f"{hub.address}/")
    back = seqwm.load("hf:user/log", streaming=streaming, cache=False)
    if streaming:
        back.grow(store.rows)
    assert_same_stores(store, back)
    assert back.provenance["revision"] == hub.repository("user/log", "dataset").references["main"]
    assert back.provenance["environment"] == "CartPole-v1"
    assert back.provenance["exported_from"] == "minari:tests/log-v0"


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_opens_what_was_published_with_frames_as_images(hub, streaming):
    store = store_of(FRAMES)
    publish_data(store, "user/log")
    opened = datasets.load_dataset("user/log", split="train", streaming=streaming)
    assert opened.features["observation.camera"] == datasets.Image()
    assert opened.features["action"] == datasets.List(datasets.Value("int64"), length=2)
    rows = list(opened)
    assert len(rows) == store.rows + len(store)
    wanted = store.episode(2)
    found = [row for row in rows if row["episode_index"] == 2]
    assert [row["frame_index"] for row in found] == list(range(len(wanted) + 1))
    for step, row in enumerate(found):
        for path, leaf in flatten(wanted.observations).items():
            np.testing.assert_array_equal(np.asarray(row[f"observation.{path}"]), leaf[step])
    assert [np.float32(row["next.reward"]) for row in found[:-1]] == wanted.rewards.tolist()
    assert [row["is_final_observation"] for row in found] == [False] * len(wanted) + [True]


def test_a_row_group_is_an_episode_and_pages_carry_checksums(hub):
    store = store_of(VECTORS)
    publish_data(store, "user/log")
    name = "data/train-00000-of-00001.parquet"
    local = hf_hub_download("user/log", name, repo_type="dataset")
    with pq.ParquetFile(local, page_checksum_verification=True) as file:
        assert file.num_row_groups == len(store)
        assert [file.read_row_group(3)["episode_index"][0].as_py()] == [3]
        assert file.read().num_rows == store.rows + len(store)
        chunk = file.metadata.row_group(0).column(0)
        place = chunk.data_page_offset + chunk.total_compressed_size - 2
    content = bytearray(hub.repository("user/log", "dataset").files[name])
    content[place] ^= 1
    with pytest.raises(OSError, match="checksum"):
        pq.read_table(io.BytesIO(bytes(content)), page_checksum_verification=True)


def test_the_card_is_read_by_the_hubs_client_and_shows_returns_and_lengths(hub):
    store = store_of(VECTORS)
    publish_data(store, "user/log")
    card = DatasetCard.load("user/log")
    assert card.data.license == "mit"
    assert card.data.task_categories == ["reinforcement-learning"]
    assert card.data.size_categories == ["n<1K"]
    assert {"CartPole-v1", "offline-reinforcement-learning", "trajectories", "seqwm"} <= set(card.data.tags)
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "data/*.parquet"}]
    for part in (
        f"{store.rows} transitions in {len(store)} episodes of `CartPole-v1`",
        "![histograms of episode returns and episode lengths](histograms.png)",
        f"| return | {store.returns.mean():.5g} | {store.returns.min():.5g} |",
        f"| length | {store.lengths.mean():.5g} |",
        "`minari:tests/log-v0`",
        'datasets.load_dataset("user/log"',
        'seqwm.load("hf:user/log")',
        "| `observation.state` | `double[3]` |",
        "2 episodes were cut",
    ):
        assert part in card.text, part
    picture = hub.repository("user/log", "dataset").files["histograms.png"]
    assert picture.startswith(b"\x89PNG")


def test_what_has_not_changed_is_not_published_twice_and_what_has_replaces_it(hub, monkeypatch):
    monkeypatch.setattr("seqwm.data.export.FILE_BYTES", 1)
    store = store_of(VECTORS)
    first = publish_data(store, "user/log")
    assert publish_data(store, "user/log") == first
    HfApi().upload_file(repo_id="user/log", path_or_fileobj=b"x", path_in_repo="notes.md", repo_type="dataset")
    smaller = TrajectoryStore.create(None, VECTORS)
    smaller.append(store.episode(0))
    publish_data(smaller, "user/log")
    held = hub.repository("user/log", "dataset").files
    names = {".gitattributes", "README.md", "histograms.png", "notes.md", "data/train-00000-of-00001.parquet"}
    assert set(held) == names
    assert_same_stores(seqwm.load("hf:user/log", cache=False), smaller)


def test_a_revision_and_a_private_data_set(hub, monkeypatch, tmp_path):
    one, other = store_of(VECTORS), store_of(VECTORS, final_observation=False)
    publish_data(one, "user/log", private=True)
    publish_data(other, "user/log", revision="bare")
    assert hub.repository("user/log", "dataset").private
    assert_same_stores(seqwm.load("hf:user/log", cache=False), one)
    assert_same_stores(seqwm.load("hf:user/log@bare", cache=False), other)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    with pytest.raises(seqwm.core.errors.DataError, match="hf auth login"):
        seqwm.load("hf:user/log", cache=False)


def test_a_dry_run_writes_what_would_be_sent_and_sends_nothing(hub, tmp_path, capsys):
    store_of(VECTORS, tmp_path / "log").close()
    assert main(["data", "publish", str(tmp_path / "log"), "user/log", "--dry-run", str(tmp_path / "dry")]) == 0
    assert hub.requests == []
    assert capsys.readouterr().out.strip() == str(tmp_path / "dry")
    assert main(["data", "publish", str(tmp_path / "log"), "user/log"]) == 0
    held = hub.repository("user/log", "dataset").files
    for file in (path for path in (tmp_path / "dry").rglob("*") if path.is_file()):
        assert held.pop(file.relative_to(tmp_path / "dry").as_posix()) == file.read_bytes()
    assert set(held) == {".gitattributes"}
    with pytest.raises(HubError, match="new or empty folder"):
        publish_data(store_of(VECTORS), "user/log", dry_run=tmp_path / "dry")
