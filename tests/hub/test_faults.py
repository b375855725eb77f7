"""Whatever goes wrong with the Hub ends in a message with cause and next step, nothing lost, and a second try works."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces
from huggingface_hub import HfApi

import seqwm
from seqwm.cli import main
from seqwm.core.errors import CheckpointError, DataError, HubError
from seqwm.core.types import Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.data.validate import validate
from seqwm.hub.load import load_model
from seqwm.hub.publish import publish
from seqwm.hub.publish_data import publish_data
from seqwm.hub.upload import upload_folder
from tests.strategies import assert_same_episode, random_episode

SPACES = Spaces(gym_spaces.Box(-1, 1, (40,), np.float32), gym_spaces.Discrete(3))
COMMIT, UPLOAD, PREUPLOAD = "POST /api/.*/commit/", "PUT /objects/", "POST /api/.*/preupload/"
UP = {
    "401": (PREUPLOAD, {"status": 401}, r"answered 401.*hf auth login.*HF_TOKEN.*may write it"),
    "403": (COMMIT, {"status": 403}, r"answered 403.*token may not write it"),
    "409": (COMMIT, {"status": 409}, r"answered 409.*try again in a minute"),
    "412": (COMMIT, {"status": 412}, r"answered 412.*somebody else committed.*nothing of yours was published"),
    "429": (COMMIT, {"status": 429, "headers": {"Retry-After": "7"}}, r"answered 429.*wait 7 seconds.*same command"),
    "500": (COMMIT, {"status": 500}, r"answered 500.*status\.huggingface\.co.*same command again"),
    "500 of the storage": (UPLOAD, {"status": 500}, r"answered 500.*status\.huggingface\.co"),
    "cut in a file": (UPLOAD, {"after": 500}, r"connection broke: run the same command again"),
    "cut in the commit": (COMMIT, {"after": 100}, r"connection broke: run the same command again"),
    "wrong hash": (UPLOAD, {"spoil": True}, r"answered 400.*sha256 is not.*try again"),
}
DATA, WEIGHTS, LISTING = "GET .*parquet", r"GET .*model\.safetensors", "GET /api/"
DOWN = {
    "401": (LISTING, {"status": 401}, r"401.*hf auth login|may not see it"),
    "403": (LISTING, {"status": 403}, r"answered 403.*token may not read it"),
    "429": (LISTING, {"status": 429, "headers": {"Retry-After": "9"}}, r"answered 429.*wait 9 seconds.*same command"),
    "500": (LISTING, {"status": 500}, r"answered 500.*status\.huggingface\.co"),
    "500 of a file": ("FILE", {"status": 500}, r"answered 500.*status\.huggingface\.co"),
    "cut": ("FILE", {"after": 900}, r"connection broke: run the same command again|same command again"),
    "wrong hash": ("FILE", {"spoil": True}, r"has the hash \w{12}, the Hub said \w{12}.*run the same command again"),
}


@pytest.fixture(scope="session")
def store():
    made = TrajectoryStore.create(None, SPACES)
    rng = np.random.default_rng(0)
    for length in (60, 90):
        made.append(random_episode(SPACES, length, rng))
    return made


@pytest.fixture(scope="session")
def composed(runs, store, tmp_path_factory):
    """The files that a run and a data set consist of once published."""
    folder = tmp_path_factory.mktemp("composed")
    publish(runs["decision_transformer"], "user/thing", dry_run=folder / "model")
    publish_data(store, "user/thing", dry_run=folder / "dataset")
    return {kind: files_of(folder / kind) for kind in ("model", "dataset")}


@pytest.fixture
def planted(hub, composed):
    """A Hub that has both."""
    for kind, files in composed.items():
        hub.plant("user/thing", files, kind=kind)
    return hub


def files_of(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def held(hub, kind):
    return hub.repository("user/thing", kind).files


@pytest.mark.parametrize("fault", UP)
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_fault_on_the_way_up_is_explained_and_loses_nothing(hub, composed, tmp_path, kind, fault):
    pattern, how, said = UP[fault]
    for name, content in composed[kind].items():
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(content)
    hub.fail(pattern, **how)
    with pytest.raises(HubError, match=f"user/thing.*{said}"):
        upload_folder(tmp_path / "up", "user/thing", kind=kind, message="Publish")
    assert list(held(hub, kind)) == [".gitattributes"]
    arrived = set(hub.objects)
    hub.mend()
    hub.requests.clear()
    upload_folder(tmp_path / "up", "user/thing", kind=kind, message="Publish")
    assert not {request.split("/")[-1] for request in hub.asked("PUT")} & arrived
    sent = held(hub, kind)
    sent.pop(".gitattributes")
    assert sent == composed[kind] == files_of(tmp_path / "up")


def test_publishing_a_run_and_a_data_set_ends_so_too(hub, run, store):
    hub.fail(UPLOAD, after=500)
    for send in (lambda: publish(run, "user/thing"), lambda: publish_data(store, "user/thing")):
        with pytest.raises(HubError, match=r"user/thing.*connection broke: run the same command again"):
            send()
    hub.mend()
    publish(run, "user/thing")
    publish_data(store, "user/thing")
    assert held(hub, "model")["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    assert_same(seqwm.load("hf:user/thing"), store)


def assert_same(found, wanted):
    for one, other in zip(found.episodes(), wanted.episodes(), strict=True):
        assert_same_episode(one, other)


@pytest.mark.parametrize("fault", ["429", "500", "cut in the commit"])
def test_a_fault_that_passes_is_waited_for(hub, run, fault):
    pattern, how, _ = UP[fault]
    hub.fail(pattern, times=1, **how)
    publish(run, "user/thing")
    assert len(hub.repository("user/thing").history) == 2
    assert (7.0 in hub.slept) is (fault == "429")


def test_a_wait_of_an_hour_is_left_to_the_person(hub, run):
    hub.fail(COMMIT, status=429, headers={"Retry-After": "3600"})
    with pytest.raises(HubError, match="wait 3600 seconds"):
        publish(run, "user/thing")
    assert sum(hub.slept) < 60


def test_who_commits_meanwhile_is_not_overwritten(hub, run, monkeypatch):
    publish(run, "user/thing")
    create_commit = HfApi.create_commit

    def overtaken(api, *arguments, **options):
        hub.plant("user/thing", hub.repository("user/thing").files | {"theirs.txt": b"theirs"})
        return create_commit(api, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "create_commit", overtaken)
        (run_again := shutil.copytree(run, run.parent / "changed")).joinpath("curve.png").write_bytes(b"other")
        with pytest.raises(HubError, match=r"answered 412.*somebody else committed"):
            publish(run_again, "user/thing")
    assert held(hub, "model")["theirs.txt"] == b"theirs"
    assert held(hub, "model")["curve.png"] == (run / "curve.png").read_bytes()
    publish(run_again, "user/thing")
    assert held(hub, "model")["curve.png"] == b"other"
    assert held(hub, "model")["theirs.txt"] == b"theirs"


@pytest.mark.parametrize("fault", DOWN)
@pytest.mark.parametrize("what", ["model", "dataset"])
def test_a_fault_on_the_way_down_is_explained_and_a_second_try_completes(planted, run, store, what, fault, monkeypatch):
    pattern, how, said = DOWN[fault]
    planted.fail({"model": WEIGHTS, "dataset": DATA}[what] if pattern == "FILE" else pattern, **how)
    fetch = (lambda: load_model("user/thing")) if what == "model" else (lambda: seqwm.load("hf:user/thing"))
    with pytest.raises((HubError, DataError), match=f"user/thing.*({said})"):
        fetch()
    with monkeypatch.context() as offline:  # what came is not taken for the whole
        offline.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises((HubError, DataError), match="HF_HUB_OFFLINE"):
            fetch()
    planted.mend()
    found = fetch()
    if what == "dataset":
        assert_same(found, store)
    else:
        for name, weight in load_model(run).state_dict().items():
            assert torch.equal(found.state_dict()[name], weight)


@pytest.mark.parametrize("what", ["model", "dataset"])
def test_a_connection_that_is_cut_once_is_gone_on_with(planted, store, what):
    planted.fail({"model": WEIGHTS, "dataset": DATA}[what], after=900, times=1)
    planted.fail(LISTING, status=500, times=1)
    if what == "model":
        load_model("user/thing")
    else:
        assert seqwm.load("hf:user/thing").rows == store.rows


@pytest.mark.parametrize(("how", "said"), [
    ({"status": 401}, "hf auth login"),
    ({"status": 429, "headers": {"Retry-After": "9"}}, "wait 9 seconds"),
    ({"status": 500}, r"status\.huggingface\.co"),
    ({"after": 50}, "connection broke|cannot be read"),
    ({"spoil": True}, "cannot be read"),
])  # fmt: skip
def test_a_stream_that_fails_says_so_and_the_next_one_is_whole(planted, store, how, said):
    planted.fail(DATA, **how)
    with pytest.raises(DataError, match=f"train-00000-of-00001.*({said})"):
        seqwm.load("hf:user/thing", streaming=True)
    planted.mend()
    assert_same(seqwm.load("hf:user/thing", streaming=True), store)


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil"])
def test_a_name_that_leaves_the_folder_is_refused_or_stays_in_it(hub, composed, name, tmp_path):
    for kind, suffix in (("model", ".safetensors"), ("dataset", ".parquet")):
        hub.plant("user/bad", composed[kind] | {f"{name}{suffix}": b"evil"}, kind=kind)
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"path-outside.*evil"):
            seqwm.load("hf:user/bad", streaming=streaming)
    load_model("user/bad")  # asks for nothing in another folder; a backslash is a letter like any other here
    repository = tmp_path / "huggingface" / "hub" / "models--user--bad"
    assert [path for path in tmp_path.rglob("*evil*") if repository not in (path, *path.parents)] == []


@pytest.mark.usefixtures("planted")
def test_a_file_in_the_cache_that_was_cut_is_not_taken_for_whole(tmp_path, monkeypatch):
    load_model("user/thing")
    seqwm.load("hf:user/thing")
    for pattern in ("model.safetensors", "*.parquet"):
        (file,) = (path for path in (tmp_path / "huggingface").rglob(pattern) if path.is_symlink())
        blob = file.resolve()
        blob.write_bytes(blob.read_bytes()[:-50])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises((CheckpointError, HubError), match=r"user/thing.*(cannot be read|not whole in the cache)"):
        load_model("user/thing")
    with pytest.raises(DataError, match=r"cannot be read|not whole in the cache"):
        seqwm.load("hf:user/thing")


def test_the_command_line_says_it_in_one_line(hub, run, capsys):
    hub.fail(PREUPLOAD, status=401)
    assert main(["publish", str(run), "user/thing"]) == 1
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert shown.startswith("seqwm: user/thing: the Hub answered 401")
    assert "Traceback" not in shown


def test_validation_names_a_hub_that_cannot_be_reached(hub):
    hub.fail(LISTING, status=500)
    (problem,) = validate("hf:user/thing").problems
    assert problem.check == "unreachable"
    assert "answered 500" in problem.found
