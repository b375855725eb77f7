"""The loopback Hub is a Hub to the real clients, and its faults are seen by them."""

from __future__ import annotations

from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError


class Denoiser(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width)


def fetched(repository, file):
    return Path(hf_hub_download(repository, file)).read_bytes()


def test_a_folder_goes_up_and_comes_down_equal(hub, tmp_path):
    files = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 4000, "a/b/note.txt": b"deep"}
    for name, content in files.items():
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(content)
    api = HfApi()
    api.create_repo("user/things")
    api.upload_folder(repo_id="user/things", folder_path=tmp_path / "up")
    api.create_tag("user/things", tag="v1")
    api.upload_file(repo_id="user/things", path_or_fileobj=b"{1}", path_in_repo="config.json")
    down = snapshot_download("user/things", revision="v1", local_dir=tmp_path / "down")
    for name, content in files.items():
        assert (tmp_path / "down" / name).read_bytes() == content
    assert fetched("user/things", "config.json") == b"{1}"
    assert down


def test_a_file_that_did_not_change_makes_no_commit(hub):
    api = HfApi()
    api.create_repo("user/things")
    for _ in range(2):
        adds = [CommitOperationAdd("a.txt", b"text"), CommitOperationAdd("b.safetensors", b"weights")]
        api.create_commit("user/things", adds, commit_message="again")
    assert [commit.title for commit in hub.repository("user/things").history] == ["initial commit", "again"]
    assert len(hub.asked("PUT")) == 1


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")  # which diffusers still gives
def test_a_model_of_transformers_and_one_of_diffusers_come_back_equal(hub):
    config = transformers.DecisionTransformerConfig(
        state_dim=3, act_dim=2, hidden_size=8, n_layer=1, n_head=1, max_ep_len=5, vocab_size=1
    )
    model = transformers.DecisionTransformerModel(config)
    model.push_to_hub("user/dt")
    back = transformers.DecisionTransformerModel.from_pretrained("user/dt")
    for name, weight in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight)

    denoiser = Denoiser(width=3)
    denoiser.push_to_hub("user/denoiser")
    restored = Denoiser.from_pretrained("user/denoiser")
    for name, weight in denoiser.state_dict().items():
        assert torch.equal(restored.state_dict()[name], weight)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_is_pushed_and_read_with_and_without_streaming(hub, streaming):
    rows = {"observation.state": np.arange(12, dtype=np.float32).reshape(6, 2).tolist(), "episode_index": [0] * 6}
    datasets.Dataset.from_dict(rows).push_to_hub("user/log")
    back = datasets.load_dataset("user/log", split="train", streaming=streaming)
    assert [row["observation.state"] for row in back] == rows["observation.state"]
    assert bool(hub.asked("GET /datasets/user/log/resolve/.*parquet")) is True


def test_a_card_is_pushed_and_loaded(hub):
    huggingface_hub.create_repo("user/things")
    ModelCard("---\nlibrary_name: seqwm\n---\n# Things\n").push_to_hub("user/things")
    assert ModelCard.load("user/things").data.library_name == "seqwm"


def test_what_is_not_there_is_said_by_its_own_error(hub):
    hub.plant("user/things", {"a.txt": b"a"})
    for name, file, revision, error in (
        ("user/nothing", "a.txt", None, RepositoryNotFoundError),
        ("user/things", "a.txt", "v9", RevisionNotFoundError),
        ("user/things", "b.txt", None, EntryNotFoundError),
    ):
        with pytest.raises(error):
            hf_hub_download(name, file, revision=revision)


def test_a_private_repository_is_not_there_without_the_token(hub):
    hub.plant("user/secret", {"a.txt": b"a"}, private=True)
    assert HfApi().model_info("user/secret").private
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=False).model_info("user/secret")
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(token="hf_wrong").create_repo("user/mine")


def test_a_moved_parent_is_refused(hub):
    api = HfApi()
    api.create_repo("user/things")
    before = api.model_info("user/things").sha
    api.upload_file(repo_id="user/things", path_or_fileobj=b"1", path_in_repo="a")
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("user/things", [CommitOperationAdd("b", b"2")], commit_message="late", parent_commit=before)


@pytest.mark.parametrize("name", ["../evil", "/abs", "a/../../x", "..\\x"])
def test_a_listed_name_that_leaves_the_folder_is_refused_by_the_client(hub, tmp_path, name):
    hub.plant("user/evil", {name: b"evil", "good.txt": b"good"})
    with pytest.raises(ValueError):
        snapshot_download("user/evil", local_dir=tmp_path / "in" / "down")
    assert not [path for path in tmp_path.rglob("*") if path.name in ("evil", "x")]


@pytest.mark.parametrize(
    ("how", "times"), [({"status": 500}, 2), ({"status": 429, "headers": {"Retry-After": "3"}}, 1), ({"after": 100}, 2)]
)
def test_a_fault_on_the_way_up_passes_when_it_stops(hub, how, times):
    HfApi().create_repo("user/things")
    hub.fail("PUT /objects/", times=times, **how)
    HfApi().upload_file(repo_id="user/things", path_or_fileobj=b"w" * 50_000, path_in_repo="w.safetensors")
    assert hub.repository("user/things").files["w.safetensors"] == b"w" * 50_000
    assert len(hub.asked("PUT /objects/")) == times + 1
    assert (4.0 in hub.slept) is (how.get("status") == 429)


def test_a_download_that_is_cut_goes_on_where_it_stopped(hub):
    content = bytes(range(256)) * 400
    hub.plant("user/things", {"w.safetensors": content})
    hub.fail("GET .*/resolve/", after=30_000, times=2)
    assert fetched("user/things", "w.safetensors") == content
    assert hub.sent < 2 * len(content)


def test_spoiled_bytes_are_refused_on_the_way_up_and_believed_on_the_way_down(hub):
    HfApi().create_repo("user/things")
    hub.fail("(PUT|GET) /(objects|.*/resolve/)", spoil=True)
    with pytest.raises(RuntimeError) as caught:
        HfApi().upload_file(repo_id="user/things", path_or_fileobj=b"weights", path_in_repo="w.safetensors")
    assert "sha256" in str(caught.value.__cause__)
    hub.plant("user/other", {"w.safetensors": b"weights"})
    # The client checks sizes only; `seqwm.hub.load` checks hashes.
    assert fetched("user/other", "w.safetensors") != b"weights"


def test_a_slow_body_arrives(hub):
    hub.plant("user/things", {"w.safetensors": b"w" * 5000})
    hub.fail("GET .*/resolve/", pause=0.01)
    assert fetched("user/things", "w.safetensors") == b"w" * 5000
