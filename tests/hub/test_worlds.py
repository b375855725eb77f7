"""Worlds of diffusers: published, fetched, dreamt in, and drawn the same by diffusers where seqwm is not."""

from __future__ import annotations

import inspect
import json
import shutil

import pytest
import torch

from seqwm.cli import main
from seqwm.core.errors import CheckpointError
from seqwm.hub.card import card
from seqwm.hub.load import find_model, load_model
from seqwm.hub.publish import publish
from seqwm.methods import methods
from seqwm.nn.video_pipeline import VideoWorldPipeline
from tests.hub.conftest import METHODS, WORLDS, in_a_process_without_seqwm

THROUGH_A_PIPELINE = """
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

found = {}
for repository in json.loads(sys.argv[2]):
    pipeline = DiffusionPipeline.from_pretrained(repository, trust_remote_code=True)
    assert type(pipeline).__module__.startswith("diffusers_modules."), type(pipeline).__module__
    assert type(pipeline.world).__module__.startswith("diffusers_modules."), type(pipeline.world).__module__
    for name, tensor in dream(pipeline).items():
        found[f"{repository} {name}"] = tensor
assert not [name for name in sys.modules if name.split(".")[0] == "seqwm"]
save_file(found, sys.argv[1])
"""


def dream(pipeline):
    """What a pipeline draws of given frames and actions; it needs no more than torch."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (2, 3, 32, 32, 3), generator=generator, dtype=torch.uint8)
    past, actions = (torch.randint(5, (2, length), generator=generator) for length in (2, 4))
    dreamt = pipeline(frames, actions, past, generator=torch.Generator().manual_seed(1))
    return {"frames": dreamt.frames, "rewards": dreamt.rewards, "likeliest": pipeline(frames, actions).frames}


@pytest.fixture(scope="module")
def found_elsewhere(worlds, tmp_path_factory):
    """What every published world drew in a process that cannot import seqwm and knows the Hub alone."""
    script = inspect.getsource(dream) + THROUGH_A_PIPELINE
    return in_a_process_without_seqwm(script, worlds, tmp_path_factory.mktemp("elsewhere"))


@pytest.mark.parametrize("method", WORLDS)
def test_a_world_is_drawn_the_same_through_diffusers_and_the_code_beside_its_weights(found_elsewhere, worlds, method):
    wanted = dream(VideoWorldPipeline(load_model(worlds[method])))
    assert len(wanted["frames"].unique()) > 2
    for name, tensor in wanted.items():
        assert torch.equal(found_elsewhere[f"user/{method} {name}"], tensor)


@pytest.mark.parametrize("method", WORLDS)
def test_a_world_goes_up_in_one_commit_and_comes_down_equal_and_is_dreamt_in(hub, worlds, method, tmp_path, capsys):
    run, name = shutil.copytree(worlds[method], tmp_path / "run"), "diffusion_pytorch_model.safetensors"
    publish(run, "user/world")
    assert len(hub.repository("user/world").history) == 2
    held = hub.repository("user/world").files
    assert held[f"world/{name}"] == (run / "model" / name).read_bytes()
    assert json.loads(held["model_index.json"])["world"] == [f"seqwm_{method}", type(load_model(run)).__name__]
    there, here = load_model("user/world"), load_model(run)
    for weight, tensor in here.state_dict().items():
        assert torch.equal(there.state_dict()[weight], tensor)
    options = ["--data", str(run / "replay"), "--horizon", "2", "--contexts", "2", "--episodes", "2"]
    assert main(["dream", "user/world", *options, "--out", str(tmp_path / "there")]) == 0
    # The map of latent actions is written to the run that is dreamt in, and is news to publish.
    dreamt = shutil.copytree(run, tmp_path / "dreamt")
    assert main(["dream", str(dreamt), *options, "--out", str(tmp_path / "here")]) == 0
    capsys.readouterr()
    measured = [json.loads((tmp_path / place / "dream.json").read_text()) for place in ("there", "here")]
    assert measured[0]["prediction"] == measured[1]["prediction"]
    publish(run, "user/world")
    assert len(hub.repository("user/world").history) == 2


def test_a_dream_of_what_came_from_the_hub_is_written_here_and_leaves_the_cache_as_it_was(
    hub, worlds, tmp_path, monkeypatch, capsys
):
    publish(worlds["latent_actions"], "user/latent")
    folder = find_model("user/latent").parent
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    data = str(worlds["latent_actions"] / "replay")
    assert main(["dream", "user/latent", "--data", data, "--horizon", "2", "--contexts", "2"]) == 0
    capsys.readouterr()
    assert (tmp_path / "dream" / "actions.json").is_file()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_card_of_a_world_tells_how_to_dream_in_it_and_draw_it_with_diffusers(worlds):
    text = card(worlds["video_diffusion"], "user/world")
    assert 'DiffusionPipeline.from_pretrained("user/world", trust_remote_code=True)' in text
    assert "seqwm dream user/world --data LOGS" in text
    assert "It has no policy, so nothing was played" in text
    assert "AutoModel" not in text


def test_what_was_dreamt_of_a_world_stands_in_its_card_and_goes_up_with_it(hub, worlds, tmp_path, capsys):
    run = shutil.copytree(worlds["video_diffusion"], tmp_path / "run")
    assert main(["dream", str(run), "--horizon", "2", "--contexts", "2", "--episodes", "2"]) == 0
    capsys.readouterr()
    publish(run, "user/world")
    held = hub.repository("user/world").files
    names = {"dream.json", "dream.png", "strip.png", "dream.mp4"}
    assert {name for name in held if name.startswith("dream/")} == {f"dream/{name}" for name in names}
    text, measured = held["README.md"].decode(), json.loads(held["dream/dream.json"])
    (curve,) = measured["prediction"]["observations"].values()
    assert "![strip.png](dream/strip.png)" in text
    assert f"| 2 | {curve['error'][1]:.3g} [{curve['unchanged'][1]:.3g}] |" in text
    assert f"| 1 | {measured['gap']['dream']['mean'][0]:.4g} [" in text
    (run / "dream" / "dream.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"dream.json: cannot be read \(KeyError.*`seqwm dream "):
        publish(run, "user/world")


def test_a_model_that_takes_a_worlds_place_leaves_nothing_of_it(hub, worlds, run):
    publish(worlds["video_diffusion"], "user/model")
    publish(run, "user/model")
    held = hub.repository("user/model").files
    assert not [name for name in held if name.startswith("world/") or name in ("pipeline.py", "model_index.json")]
    assert type(load_model("user/model")).__name__ == "DecisionTransformer"


def test_frames_that_do_not_fit_are_refused(worlds):
    pipeline = VideoWorldPipeline(load_model(worlds["video_diffusion"]))
    frames, actions = torch.zeros(1, 2, 32, 32, 3, dtype=torch.uint8), torch.zeros(1, 1).long()
    with pytest.raises(ValueError, match=r"frames: found float32 \[1, 2, 32, 32, 3\], expected uint8 \[lanes, rows"):
        pipeline(frames.float(), actions)
    with pytest.raises(ValueError, match=r"frames: found uint8 \[1, 2, 16, 32, 3\], expected uint8 .* 32, 32, 3\]"):
        pipeline(frames[:, :, :16], actions)
    with pytest.raises(ValueError, match="past_actions: found 2 for 2 frames, expected one less"):
        pipeline(frames, actions, torch.zeros(1, 2).long())


def test_every_method_is_published_and_fetched_by_a_test():
    assert sorted([*METHODS, *WORLDS]) == methods()
