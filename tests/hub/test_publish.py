"""Runs go to the Hub in one commit and come back equal."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file

from seqwm.cli import main
from seqwm.core.errors import CheckpointError, HubError
from seqwm.core.random import torch_generator
from seqwm.evaluation.evaluate import Evaluation
from seqwm.hub.load import load_model
from seqwm.hub.publish import publish
from seqwm.run import evaluate_run
from tests.fakes.loopback_hub import TOKEN
from tests.hub.conftest import METHODS, SMALL, actions_of


def files_of(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_up_and_comes_down_equal_and_plays_the_same(hub, runs, method, tmp_path):
    run = runs[method]
    address = publish(run, "user/model")
    assert address.startswith(f"{hub.address}/user/model/commit/")
    held = hub.repository("user/model").files
    held.pop(".gitattributes")
    assert publish(run, "user/model", dry_run=tmp_path / "dry") == str(tmp_path / "dry")
    assert held == files_of(tmp_path / "dry")
    pictures = ("curve.png", "replay.mp4") if method in SMALL else ()
    for name in ("recipe.yaml", "run.json", "evaluation.json", *pictures):
        assert held[name] == (run / name).read_bytes()
    assert held["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    assert len(hub.repository("user/model").history) == 2

    there, here = load_model("user/model"), load_model(run)
    assert not there.training
    for name, weight in here.state_dict().items():
        assert torch.equal(there.state_dict()[name], weight)
    assert torch.equal(actions_of(there), actions_of(here))
    asked = Evaluation.from_json(json.loads((run / "evaluation.json").read_text()))
    assert evaluate_run("user/model").records == asked.records


def test_what_has_not_changed_is_not_published_twice(hub, run):
    first = publish(run, "user/model")
    assert publish(run, "user/model") == first
    assert len(hub.repository("user/model").history) == 2
    assert len(hub.asked("PUT")) == len({*hub.asked("PUT")})


def test_a_published_model_loads_by_revision_and_from_the_cache_when_offline(hub, runs, monkeypatch):
    publish(runs["decision_transformer"], "user/model")
    first = hub.repository("user/model").history[-1].sha
    publish(runs["behavior_cloning"], "user/model")
    assert type(load_model("user/model")).__name__ == "BehaviorCloning"
    assert type(load_model("user/model", revision=first)).__name__ == "DecisionTransformer"
    before = len(hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert type(load_model("user/model")).__name__ == "BehaviorCloning"
    assert type(load_model("user/model", revision=first)).__name__ == "DecisionTransformer"
    assert len(hub.requests) == before
    with pytest.raises(HubError, match=r"user/other.*HF_HUB_OFFLINE"):
        load_model("user/other")


def test_a_published_world_is_dreamt_in_by_revision_and_its_policies_are_evaluated_by_revision(
    hub, runs, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    publish(runs["dreamer"], "user/world")
    first = hub.repository("user/world").history[-1].sha
    publish(runs["pets"], "user/world")
    short = ["--horizon", "3", "--contexts", "4", "--episodes", "2"]
    for options, model in (([], "pets"), (["--revision", first], "dreamer")):
        assert main(["dream", "user/world", *short, *options, "--out", model]) == 0
        assert main(["dream", str(runs[model]), *short, "--out", "here"]) == 0
        there, here = (json.loads((tmp_path / name / "dream.json").read_text()) for name in (model, "here"))
        assert there["prediction"] == here["prediction"]
        assert there["gap"] == here["gap"]
        assert {"dream.png", "rollout.png"} <= {file.name for file in (tmp_path / model).iterdir()}
        capsys.readouterr()
        assert main(["evaluate", "user/world", *options, "--episodes", "2", "--out", f"{model}-played"]) == 0
        played = json.loads((tmp_path / f"{model}-played" / "evaluation.json").read_text())["episodes"]
        assert played == json.loads((runs[model] / "evaluation.json").read_text())["episodes"]


def test_a_model_published_before_leaves_nothing_behind_but_what_others_put_there(hub, runs):
    publish(runs["decision_transformer"], "user/model")
    from huggingface_hub import HfApi

    HfApi().upload_file(repo_id="user/model", path_or_fileobj=b"mine", path_in_repo="notes/thoughts.md")
    publish(runs["behavior_cloning"], "user/model")
    held = hub.repository("user/model").files
    assert not [name for name in held if "decision_transformer" in name or name.startswith("transformers/")]
    assert held["notes/thoughts.md"] == b"mine"
    assert ".gitattributes" in held


def test_a_branch_is_made_and_main_stays_as_it_was(hub, runs):
    publish(runs["decision_transformer"], "user/model")
    main = hub.repository("user/model").references["main"]
    publish(runs["behavior_cloning"], "user/model", revision="cloned")
    publish(runs["behavior_cloning"], "user/model", revision="cloned")
    assert hub.repository("user/model").references["main"] == main
    assert type(load_model("user/model", revision="cloned")).__name__ == "BehaviorCloning"
    assert type(load_model("user/model")).__name__ == "DecisionTransformer"


def test_a_private_model_is_seen_by_its_owner_only(hub, run, monkeypatch):
    publish(run, "user/secret", private=True)
    assert hub.repository("user/secret").private
    load_model("user/secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(run.parent / "none"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"may not see it|does not accept the token"):
        load_model("user/secret")
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def test_push_to_hub_alone_is_enough_to_load(hub, run):
    model = load_model(run)
    model.push_to_hub("user/plain")
    assert torch.equal(actions_of(load_model("user/plain")), actions_of(model))


def test_a_decision_transformer_loads_through_transformers_own_class(hub, run):
    publish(run, "user/model")
    theirs = transformers.DecisionTransformerModel.from_pretrained("user/model", subfolder="transformers").eval()
    ours, config = load_model(run), theirs.config
    generator = torch_generator(1)
    states, returns = torch.rand(2, 5, 4, generator=generator), torch.rand(2, 5, generator=generator) * 300
    actions = torch.randint(2, (2, 5), generator=generator)
    timesteps = torch.arange(5).expand(2, 5)
    with torch.no_grad():
        wanted = ours(states, actions, returns, timesteps)
        found = theirs(
            states=(states - torch.tensor(config.state_mean)) / torch.tensor(config.state_std),
            actions=torch.nn.functional.one_hot(actions, 2).float(),
            rewards=torch.zeros(2, 5, 1),
            returns_to_go=returns[..., None] / config.return_scale,
            timesteps=timesteps,
            attention_mask=torch.ones(2, 5),
        ).action_preds
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_name_that_is_none_is_refused_before_anything_is_sent(hub, run):
    for name in ("a/b/c", "../evil", "user/two words"):
        with pytest.raises(HubError, match="expected user/name"):
            publish(run, name)
    assert hub.requests == []


def test_a_link_out_of_the_run_is_not_followed(hub, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    (tmp_path / "secret").write_text("token")
    (folder / "curve.png").unlink()
    (folder / "curve.png").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"curve\.png: leads out of the run's folder"):
        publish(folder, "user/model")
    assert hub.requests == []


def test_half_written_weights_are_not_published(hub, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        publish(folder, "user/model")
    assert hub.requests == []


def test_a_dry_run_never_writes_over_anything(run, tmp_path):
    (tmp_path / "dry").mkdir()
    (tmp_path / "dry" / "mine.txt").write_text("mine")
    with pytest.raises(HubError, match="new or empty folder"):
        publish(run, "user/model", dry_run=tmp_path / "dry")
    assert list(files_of(tmp_path / "dry")) == ["mine.txt"]


def test_a_dry_run_holds_what_loads_and_what_went_into_the_card(run, tmp_path):
    publish(run, "user/model", dry_run=tmp_path / "dry")
    load_model(tmp_path / "dry")
    weights = load_file(tmp_path / "dry" / "transformers" / "model.safetensors")
    assert "encoder.wpe.weight" in weights
    assert 'load_model("user/model")' in (tmp_path / "dry" / "README.md").read_text()
