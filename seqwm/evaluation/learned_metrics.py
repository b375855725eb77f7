"""Distances between frames in the features of networks that others trained, for comparison with published figures.

Neither network is part of the package or fetched by it: both come from files on this machine, and only numbers are read
from them (safetensors).

    lpips           Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018,
                    version 0.1 with AlexNet, whose convolutions are those of torchvision's `alexnet`:

        state = {k: v for k, v in torchvision.models.alexnet(weights="DEFAULT").state_dict().items() if "features" in k}
        heads = lpips.LPIPS(net="alex", pnet_rand=True).state_dict()
        state |= {k: v for k, v in heads.items() if k[:3] == "lin" and k[3].isdigit()}
        safetensors.torch.save_file(state, "lpips.safetensors")

    video_distance  the Frechet distance of clips (Unterthiner et al., 2018) in the features of a VideoMAE, which look
                    at motion more than those of I3D do (Ge et al., "On the Content Bias in Frechet Video Distance",
                    2024). Figures of other networks, or of other numbers of clips, are of another kind.

Frames are uint8 [..., H, W, 3].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from seqwm.core.errors import CheckpointError, SpaceError

Frames = NDArray[np.uint8]

_CONVOLUTIONS = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}  # torchvision's number: stride, padding
_POOLED_BEHIND = (0, 3)
_SMALLEST = 31  # pixels, of which the two poolings leave one
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of frames in -1 .. 1
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of frames in 0 .. 1
_AT_ONCE = 64


def lpips(frames: Frames, others: Frames, weights: Path) -> float:
    """The mean perceptual distance of frames [..., H, W, 3] to others, 0 for equal ones.

    Raises:
        CheckpointError: a file that is not there, or does not hold the network.
        SpaceError: frames without three colours, or under 31 pixels.
    """
    high, wide, colours = frames.shape[-3:]
    if colours != 3 or min(high, wide) < _SMALLEST:
        found = f"found frames of {high} x {wide} pixels and {colours} colours"
        raise SpaceError(f"lpips: {found}, expected at least {_SMALLEST} along each side, and three; leave it out")
    state = _alexnet(weights)
    pairs = [torch.from_numpy(np.ascontiguousarray(each)).reshape(-1, high, wide, 3) for each in (frames, others)]
    total = 0.0
    for one, other in zip(*(each.split(_AT_ONCE) for each in pairs), strict=True):
        layers = zip(*(_features(each, state) for each in (one, other)), strict=True)
        for number, (a, b) in enumerate(layers):
            total += float(F.conv2d((a - b).square(), state[f"lin{number}.model.1.weight"]).mean((1, 2, 3)).sum())
    return total / len(pairs[0])


def video_distance(clips: Frames, others: Frames, folder: Path) -> float:
    """The Frechet distance between clips [N, T, H, W, 3] and [M, T, H, W, 3].

    Args:
        clips, others: at least two each; as many frames as the network takes are picked from them at even distances.
        folder: a VideoMAE as `transformers` saves it, for example of `MCG-NJU/videomae-base-finetuned-ssv2`.

    Raises:
        CheckpointError: the folder does not hold one.
        SpaceError: fewer than two clips.
    """
    if min(len(clips), len(others)) < 2:
        found = f"found {len(clips)} and {len(others)} clips"
        raise SpaceError(f"video distance: {found}, expected at least 2 of each: ask for a shorter horizon")
    from transformers import VideoMAEModel

    try:
        network: Any = VideoMAEModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: expected a VideoMAE that transformers saved as safetensors: {error}"
        ) from None
    return frechet_distance(*(_clip_features(each, network.eval()) for each in (clips, others)))


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """|m - n|^2 + tr(S + R - 2 (S R)^(1/2)) of normal distributions fitted to features [N, D] and [M, D].

    The last trace is the sum of the singular values of A B^T, for S = A^T A and R = B^T B: no root is taken of a matrix
    that has none.
    """
    means = [each.double().mean(0) for each in (features, others)]
    sides = [
        (each.double() - mean) / (len(each) - 1) ** 0.5 for each, mean in zip((features, others), means, strict=True)
    ]
    spread = sum(side.square().sum() for side in sides) - 2 * torch.linalg.svdvals(sides[0] @ sides[1].T).sum()
    return float((means[0] - means[1]).square().sum() + spread)


def _alexnet(weights: Path) -> dict[str, Tensor]:
    expected = {f"features.{k}.{part}" for k in _CONVOLUTIONS for part in ("weight", "bias")}
    expected |= {f"lin{k}.model.1.weight" for k in range(len(_CONVOLUTIONS))}
    try:
        state: dict[str, Tensor] = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{weights}: cannot be read as safetensors: {error}") from None
    if missing := sorted(expected - state.keys()):
        raise CheckpointError(
            f"{weights}: {missing[0]} is missing, and {len(missing) - 1} more; expected the convolutions of AlexNet "
            "and the weights of LPIPS in one file (see seqwm.evaluation.learned_metrics)"
        )
    return state


@torch.no_grad()
def _features(frames: Tensor, state: dict[str, Tensor]) -> list[Tensor]:
    """Of every layer of frames [N, H, W, 3], divided by their length at each place."""
    x = (frames.movedim(-1, 1).float() / 127.5 - 1 - _column(_SHIFT)) / _column(_SCALE)
    layers = []
    for number, (stride, padding) in _CONVOLUTIONS.items():
        x = F.relu(F.conv2d(x, state[f"features.{number}.weight"], state[f"features.{number}.bias"], stride, padding))
        layers.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10))
        if number in _POOLED_BEHIND:
            x = F.max_pool2d(x, 3, 2)
    return layers


@torch.no_grad()
def _clip_features(clips: Frames, network: Any) -> Tensor:
    """The mean over all tokens of clips [N, T, H, W, 3]: [N, D]."""
    config = network.config
    picked = np.linspace(0, clips.shape[1] - 1, config.num_frames).round().astype(int)
    features = []
    for clip in clips[:, picked]:
        x = torch.from_numpy(clip).movedim(-1, 1).float() / 255
        x = F.interpolate(x, (config.image_size, config.image_size), mode="bilinear", antialias=True)
        x = (x - _column(_MEAN)) / _column(_DEVIATION)
        features.append(network(x[None]).last_hidden_state.mean(1)[0])
    return torch.stack(features)


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)
