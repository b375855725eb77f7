from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import VideoMAEConfig, VideoMAEModel

from seqwm.core.errors import CheckpointError, SpaceError
from seqwm.evaluation.frame_table import frame_table
from seqwm.evaluation.learned_metrics import frechet_distance, lpips, video_distance
from seqwm.evaluation.prediction import Rollouts

SIZES = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The network with random weights."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for head, (number, (out, into, kernel)) in enumerate(SIZES.items()):
        scale = (2 / (into * kernel**2)) ** 0.5
        state[f"features.{number}.weight"] = scale * torch.randn(out, into, kernel, kernel, generator=generator)
        state[f"features.{number}.bias"] = 0.1 * torch.randn(out, generator=generator)
        state[f"lin{head}.model.1.weight"] = torch.rand(1, out, 1, 1, generator=generator)
    file = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    save_file(state, file)
    return file, state


def frames(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def test_equal_frames_are_at_distance_0_and_others_at_the_same_one_both_ways(weights):
    one, other = frames(0, 2, 40, 33), frames(1, 2, 40, 33)
    assert lpips(one, one, weights[0]) == 0
    assert lpips(one, other, weights[0]) == pytest.approx(lpips(other, one, weights[0]), rel=1e-6)
    apart = [lpips(one[k], other[k], weights[0]) for k in range(2)]
    assert lpips(one, other, weights[0]) == pytest.approx(np.mean(apart), rel=1e-5)


def test_the_first_layers_share_is_what_its_convolution_says(weights, tmp_path):
    state = dict(weights[1])
    for head in range(1, 5):
        state[f"lin{head}.model.1.weight"] = torch.zeros_like(state[f"lin{head}.model.1.weight"])
    save_file(state, tmp_path / "first.safetensors")
    pair = frames(2, 2, 31, 31)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x = ((torch.from_numpy(pair).float() / 127.5 - 1 - shift) / scale).permute(0, 3, 1, 2)
    x = F.relu(F.conv2d(x, state["features.0.weight"], state["features.0.bias"], stride=4, padding=2))
    unit = x / x.square().sum(1, keepdim=True).sqrt()
    expected = ((unit[0] - unit[1]).square() * state["lin0.model.1.weight"][0]).sum(0).mean()
    assert lpips(pair[0], pair[1], tmp_path / "first.safetensors") == pytest.approx(float(expected), rel=1e-5)


def test_files_and_frames_that_do_not_fit_are_named(weights, tmp_path):
    with pytest.raises(SpaceError, match="30 x 40 pixels"):
        lpips(frames(0, 30, 40), frames(1, 30, 40), weights[0])
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        lpips(frames(0, 32, 32), frames(1, 32, 32), tmp_path / "none.safetensors")
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=r"features\.0\.bias is missing, and 13 more"):
        lpips(frames(0, 32, 32), frames(1, 32, 32), tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match="expected a VideoMAE"):
        video_distance(frames(0, 2, 4, 32, 32), frames(1, 2, 4, 32, 32), tmp_path)
    with pytest.raises(SpaceError, match="found 1 and 2 clips"):
        video_distance(frames(0, 1, 4, 32, 32), frames(1, 2, 4, 32, 32), tmp_path)


def test_the_frechet_distance_is_that_of_the_normal_distributions():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + torch.tensor([1.0, 2.0, 0.0])) == pytest.approx(5)
    centred = x - x.mean(0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * float(x.var(0).sum()))  # (3 - 1)^2 tr S
    y = torch.randn(40, 3, generator=generator, dtype=torch.float64) @ torch.randn(3, 3, generator=generator).double()
    s, r = torch.cov(x.T), torch.cov(y.T)
    root = torch.linalg.eigvals(s @ r).real.sqrt().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + s.trace() + r.trace() - 2 * root
    assert frechet_distance(x, y) == pytest.approx(float(expected))


@pytest.fixture
def network(tmp_path):
    """The folder of a small VideoMAE with random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    VideoMAEModel(VideoMAEConfig(image_size=32, patch_size=16, num_frames=4, **sizes)).save_pretrained(tmp_path)
    return tmp_path


def test_clips_are_compared_in_the_features_of_a_saved_network(network):
    clips = frames(0, 6, 7, 24, 24)
    assert video_distance(clips, clips, network) == pytest.approx(0, abs=1e-6)
    near = np.clip(clips.astype(int) + 8, 0, 255).astype(np.uint8)
    far = np.clip(clips.astype(int) + 80, 0, 255).astype(np.uint8)
    assert 0 < video_distance(clips, near, network) < video_distance(clips, far, network)


def test_the_table_of_a_dream_has_both_of_the_clips_that_go_on_so_far(weights, network):
    predicted, happened = frames(0, 3, 2, 32, 32), frames(1, 3, 2, 32, 32)
    there, nothing = np.array([[True, True], [True, True], [True, False]]), np.zeros((3, 2), np.float32)
    rollouts = Rollouts({"": happened[:, 0]}, {"": predicted}, {"": happened}, nothing, None, there)
    table = frame_table(rollouts, "", weights[0], network)
    near, far = (lpips(predicted[:n, h], happened[:n, h], weights[0]) for n, h in ((3, 0), (2, 1)))
    assert table.lpips == [near, far]
    assert (table.video_distance, table.clips) == (video_distance(predicted[:2], happened[:2], network), 2)
    head, *lines, last = str(table).splitlines()
    assert [head.split()[-1], *(line.split()[-1] for line in lines)] == ["LPIPS", f"{near:.3f}", f"{far:.3f}"]
    assert last == f"Frechet distance of 2 clips: {table.video_distance:.4g}"
