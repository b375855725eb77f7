from __future__ import annotations

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqwm.core.errors import CheckpointError
from seqwm.training import checkpoint


def state_at(step):
    return {
        "model": {"layer.weight": torch.full((2, 3), float(step)), "layer.count": torch.tensor(step)},
        "half": torch.ones(4, dtype=torch.bfloat16),
        "scaler": {"scale": 65536.0, "name": "a/b"},
        "seconds": 1.5,
    }


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            assert_same_state(value, other[name])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, other[name])
            assert value.dtype == other[name].dtype
        else:
            assert value == other[name]


def test_what_is_saved_is_loaded_as_it_was(tmp_path):
    path = checkpoint.save(tmp_path, 7, state_at(7))
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "state.json", "state.safetensors"]
    for loaded in (checkpoint.load(path), checkpoint.latest(tmp_path)):
        assert loaded.step == 7
        assert_same_state(loaded.state, state_at(7))


def test_tensors_that_share_memory_are_saved(tmp_path):
    weight = torch.randn(3, 3)
    checkpoint.save(tmp_path, 1, {"embedding": weight, "head": weight, "transposed": weight.T})
    state = checkpoint.latest(tmp_path).state
    assert torch.equal(state["head"], weight)
    assert torch.equal(state["transposed"], weight.T)


def test_the_last_two_checkpoints_are_kept(tmp_path):
    for step in (1, 2, 3, 30):
        checkpoint.save(tmp_path, step, state_at(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000030"]
    assert checkpoint.latest(tmp_path).step == 30


def test_where_nothing_was_saved_there_is_no_checkpoint(tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_flipped_bit_or_cut_is_noticed_and_the_checkpoint_before_is_taken(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("run")
    checkpoint.save(folder, 1, state_at(1))
    path = checkpoint.save(folder, 2, state_at(2))
    file = data.draw(st.sampled_from(sorted(path.iterdir())))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[place:]
    file.write_bytes(content)
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
    except ValueError:
        manifest = None
    if manifest == {"step": 2, "files": json.loads(file_manifest(path))}:  # a flip between spaces: nothing is lost
        assert_same_state(checkpoint.latest(folder).state, state_at(2))
        return
    with pytest.warns(RuntimeWarning, match="passing over a damaged checkpoint"):
        found = checkpoint.latest(folder)
    assert found.step == 1
    assert_same_state(found.state, state_at(1))


def file_manifest(path):
    files = {
        name: {"bytes": (path / name).stat().st_size, "sha256": checkpoint.file_sha256(path / name)}
        for name in ("state.safetensors", "state.json")
    }
    return json.dumps(files)


def test_a_folder_under_another_name_is_not_taken_for_that_step(tmp_path):
    path = checkpoint.save(tmp_path, 1, state_at(1))
    shutil.copytree(path, tmp_path / "step-00000009")
    with pytest.warns(RuntimeWarning, match="found step 1"):
        assert checkpoint.latest(tmp_path).step == 1


def test_when_all_are_damaged_the_run_is_refused(tmp_path):
    (checkpoint.save(tmp_path, 1, state_at(1)) / "state.json").unlink()
    with (
        pytest.warns(RuntimeWarning, match="its content is not what was saved"),
        pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"),
    ):
        checkpoint.latest(tmp_path)


def test_what_a_dying_process_left_is_never_read_and_is_cleared_away(tmp_path):
    whole = checkpoint.save(tmp_path, 1, state_at(1))
    shutil.copytree(whole, tmp_path / ".step-00000002")
    assert checkpoint.latest(tmp_path).step == 1
    checkpoint.save(tmp_path, 2, state_at(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_a_step_saved_again_replaces_the_old_one(tmp_path):
    checkpoint.save(tmp_path, 1, state_at(1))
    checkpoint.save(tmp_path, 1, state_at(5))
    assert_same_state(checkpoint.latest(tmp_path).state, state_at(5))


def test_the_hook_saves_every_so_many_updates_and_after_the_last(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda folder, step, state: saved.append((step, state)))
    hook = checkpoint.Checkpoints(tmp_path, dict, every=3)
    for step in range(8):
        hook(step, {}, last=step == 7)
    assert saved == [(3, {}), (6, {}), (8, {})]


def test_without_a_number_the_hook_saves_once_a_minute(tmp_path, monkeypatch):
    clock, saved = [0.0], []
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(checkpoint, "save", lambda folder, step, state: saved.append(step))
    hook = checkpoint.Checkpoints(tmp_path, dict, every=None)
    for step in range(10):
        clock[0] += 25.0
        hook(step, {}, last=False)
    assert saved == [3, 6, 9]
