"""Observations into an embedding and back out of the features of a state: vectors, categories, images, or all at once.

Numbers go through symlog (Dreamer V3), or are standardised with figures of the data; those are buffers and travel with
the weights. Categories are one-hot. What is rebuilt is the same vector, so the error is one in those units: squared for
numbers, cross entropy for categories. Images are halved by strided convolutions until four pixels are left, and rebuilt
by the same sizes backwards, nearest neighbours and then a convolution; their error is squared, with pixels from 0 to 1,
and counts as much as that of a frame of 64 x 64 pixels in three colours, what the references' losses are balanced for:
summed over the few pixels of a small frame, an error would be worth less than what a latent state costs.

Shapes: F features of all leaves that are not images, E embedding.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from gymnasium import Space
from torch import Tensor, nn

from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.core.tree import flatten, unflatten
from seqwm.core.types import TensorTree, Tree
from seqwm.nn.dense import MLP, Activation, Linear, Norm, activate, initialise, normalisation
from seqwm.nn.distributions import symexp, symlog
from seqwm.nn.leaves import Leaf, features_of
from seqwm.nn.rms_layers import raised

Units = Literal["symlog", "standardised"]
_FRAME = 64 * 64 * 3


class ObservationCodec(nn.Module):
    """The encoder and the decoder of an observation space.

    Args:
        space: of one observation.
        features: of a state, what is decoded.
        layers, width: of the MLPs on vectors.
        depth: channels of the first convolution; each halving doubles them, up to eight times as many.
        norm, activation: of all layers.
        units: of numbers within the networks.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        space: Space[Any],
        features: int,
        *,
        layers: int,
        width: int,
        depth: int,
        norm: Norm,
        activation: Activation,
        units: Units,
    ) -> None:
        super().__init__()
        self.units: Units = units
        spaces = leaf_spaces(space)
        self.leaves = [Leaf.of(path, leaf) for path, leaf in spaces.items() if not is_image(leaf)]
        size = sum(leaf.size for leaf in self.leaves)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.encoder = MLP(size, None, layers, width, norm, activation) if size else None
        self.decoder = MLP(features, size, layers, width, norm, activation) if size else None
        frames = {path: leaf.shape or () for path, leaf in spaces.items() if is_image(leaf)}
        self.paths = list(frames)
        self.cameras = nn.ModuleList([Camera(shape, depth, norm, activation) for shape in frames.values()])
        self.projectors = nn.ModuleList(
            [Projector(features, shape, depth, norm, activation) for shape in frames.values()]
        )
        self.size = width * bool(size) + sum(camera.size for camera in self.cameras)  # type: ignore[misc]

    def fit(self, mean: Tree, std: Tree) -> None:
        """Take means and deviations of the data, trees of the Box leaves; symlog needs none."""
        if self.units == "standardised":
            self.mean.copy_(features_of(self.leaves, mean, 0.0))
            self.std.copy_(features_of(self.leaves, std, 1.0))

    def encode(self, observations: TensorTree) -> Tensor:
        """Leaves [..., *leaf] to [..., E]."""
        values = flatten(observations)
        parts = [] if self.encoder is None else [self.encoder(self.vector(values))]
        parts += [camera(values[path]) for path, camera in zip(self.paths, self.cameras, strict=True)]
        return torch.cat(parts, -1)

    def vector(self, values: dict[str, Tensor]) -> Tensor:
        """The leaves that are not images as one vector [..., F] in the networks' units."""
        parts = []
        for leaf in self.leaves:
            part = leaf.features(values[leaf.path])
            parts.append(symlog(part) if self.units == "symlog" and not leaf.sizes else part)
        return (torch.cat(parts, -1) - self.mean) / self.std

    def loss(self, features: Tensor, observations: TensorTree) -> Tensor:
        """Squared errors and cross entropies of what features [..., N] are decoded to, summed, [...]."""
        values = flatten(observations)
        total = features.new_zeros(features.shape[:-1])
        if self.decoder is not None:
            outputs, target, offset = raised(self.decoder(features)), self.vector(values), 0
            for leaf in self.leaves:
                span = slice(offset, offset + leaf.size)
                if leaf.sizes:
                    codes = leaf.categories(values[leaf.path])
                    for logits, code in zip(outputs[..., span].split(leaf.sizes, -1), codes, strict=True):
                        total = total - logits.log_softmax(-1).gather(-1, code[..., None])[..., 0]
                else:
                    total = total + (outputs[..., span] - target[..., span]).square().sum(-1)
                offset += leaf.size
        for path, projector in zip(self.paths, self.projectors, strict=True):
            total = total + _FRAME * (projector(features) - values[path].float() / 255).square().mean((-3, -2, -1))
        return total

    def decode(self, features: Tensor) -> TensorTree:
        """The observations that features [..., N] stand for."""
        restored: dict[str, Tensor] = {}
        if self.decoder is not None:
            outputs = self.decoder(features) * self.std + self.mean
            for leaf, part in zip(self.leaves, outputs.split([leaf.size for leaf in self.leaves], -1), strict=True):
                restored[leaf.path] = leaf.restore(symexp(part) if self.units == "symlog" and not leaf.sizes else part)
        for path, projector in zip(self.paths, self.projectors, strict=True):
            restored[path] = (projector(features) * 255).round().to(torch.uint8)
        order = [leaf.path for leaf in self.leaves] + self.paths
        tree: TensorTree = unflatten({path: restored[path] for path in order})
        return tree


class Camera(nn.Module):
    """uint8 frames [..., H, W, C] to [..., size]."""

    def __init__(self, shape: tuple[int, ...], depth: int, norm: Norm, activation: Activation) -> None:
        super().__init__()
        sizes, channels = halvings(shape[:2]), widths(shape, depth)
        self.activation: Activation = activation
        self.convolutions = nn.ModuleList(
            [_convolution(a, b, 4, 2) for a, b in zip([shape[2], *channels[:-1]], channels, strict=True)]
        )
        self.norms = nn.ModuleList([normalisation(norm, width) for width in channels])
        self.size = channels[-1] * math.prod(sizes[-1])

    def forward(self, frames: Tensor) -> Tensor:
        """[..., H, W, C] uint8 to [..., size]."""
        x = frames.flatten(0, -4).movedim(-1, 1).float() / 255 - 0.5
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = activate(norm(raised(convolution(x)).movedim(1, -1)).movedim(-1, 1), self.activation)
        return x.reshape(*frames.shape[:-3], -1)


class Projector(nn.Module):
    """Features [..., N] to frames [..., H, W, C] between 0 and 1."""

    def __init__(self, features: int, shape: tuple[int, ...], depth: int, norm: Norm, activation: Activation) -> None:
        super().__init__()
        *smaller, smallest = halvings(shape[:2])
        channels = widths(shape, depth)[::-1]
        self.sizes = [*smaller[::-1], (shape[0], shape[1])]
        self.smallest, self.activation = (channels[0], *smallest), activation
        self.linear = Linear(features, math.prod(self.smallest))
        self.norms = nn.ModuleList([normalisation(norm, width) for width in channels])
        self.convolutions = nn.ModuleList(
            [_convolution(a, b, 3, 1) for a, b in zip(channels, [*channels[1:], shape[2]], strict=True)]
        )

    def forward(self, features: Tensor) -> Tensor:
        """[..., N] to [..., H, W, C]."""
        x = self.linear(features.flatten(0, -2)).unflatten(-1, self.smallest)
        for norm, convolution, size in zip(self.norms, self.convolutions, self.sizes, strict=True):
            x = activate(norm(raised(x).movedim(1, -1)).movedim(-1, 1), self.activation)
            x = convolution(F.interpolate(x, size=size, mode="nearest"))
        frames: Tensor = torch.sigmoid(raised(x)).movedim(1, -1)
        return frames.reshape(*features.shape[:-1], *frames.shape[1:])


def halvings(size: tuple[int, ...]) -> list[tuple[int, int]]:
    """The sizes of feature maps behind each strided convolution, until the shorter side has four to seven pixels."""
    height, width = size
    sizes = [(height // 2, width // 2)]
    while min(sizes[-1]) >= 8:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return sizes


def widths(shape: tuple[int, ...], depth: int) -> list[int]:
    """Channels of those feature maps."""
    return [depth * min(2**i, 8) for i in range(len(halvings(shape[:2])))]


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=1)
    initialise(layer.weight, inputs * kernel * kernel)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
