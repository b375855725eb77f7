"""What enters and leaves a network, leaf by leaf of a space: features of observations, features and heads of actions.

One flat vector of features stands for all leaves that are not images, in the order of the space:

    Box            one feature an entry, standardised
    Discrete       one-hot
    MultiDiscrete  one one-hot after another

Images go through a small convolutional network. Means, deviations and bounds are buffers, so they travel with the
weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import Space
from gymnasium import spaces as gym_spaces
from torch import Tensor, nn

from seqwm.core.errors import SpaceError
from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.core.tree import flatten, unflatten
from seqwm.core.types import TensorTree, Tree


@dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf that becomes `size` features: a Box of them, or categories of sizes `sizes` that begin at `starts`."""

    path: str
    shape: tuple[int, ...]
    sizes: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()

    @classmethod
    def of(cls, path: str, space: Space[Any]) -> Leaf:
        """The features of a leaf space."""
        shape = tuple(space.shape or ())
        match space:
            case gym_spaces.Discrete():
                return cls(path, shape, (int(space.n),), (int(space.start),))
            case gym_spaces.MultiDiscrete():
                return cls(path, shape, tuple(space.nvec.ravel().tolist()), tuple(space.start.ravel().tolist()))
            case gym_spaces.Box():
                return cls(path, shape)
        raise SpaceError(f"leaf '{path}': {space} has no features; expected Box, Discrete or MultiDiscrete")

    @property
    def size(self) -> int:
        """Features."""
        return sum(self.sizes) if self.sizes else math.prod(self.shape)

    def features(self, value: Tensor) -> Tensor:
        """[..., *shape] to [..., size]."""
        value = value.reshape(*value.shape[: value.ndim - len(self.shape)], -1)
        if not self.sizes:
            return value.float()
        codes = self._codes(value)
        return torch.cat([F.one_hot(codes[..., i], n).float() for i, n in enumerate(self.sizes)], -1)

    def categories(self, value: Tensor) -> list[Tensor]:
        """Codes from 0 of each category, int64 [...] each."""
        value = value.reshape(*value.shape[: value.ndim - len(self.shape)], -1)
        return list(self._codes(value).unbind(-1))

    def restore(self, features: Tensor) -> Tensor:
        """The value that features [..., size] stand for: numbers as they are, categories by their largest."""
        if not self.sizes:
            return features.unflatten(-1, self.shape) if self.shape else features[..., 0]
        codes = torch.stack([part.argmax(-1) for part in features.split(self.sizes, -1)], -1)
        codes = codes + torch.tensor(self.starts, device=codes.device)
        return codes.unflatten(-1, self.shape) if self.shape else codes[..., 0]

    def _codes(self, value: Tensor) -> Tensor:
        limits = torch.tensor(self.sizes, device=value.device) - 1
        # Padding is zero and may lie outside categories that begin elsewhere; it is never read.
        return (value.long() - torch.tensor(self.starts, device=value.device)).clamp_min(0).minimum(limits)


class ObservationEncoder(nn.Module):
    """Observations to features of one width.

    Args:
        space: of one observation.
        width: features out.
        mean, std: trees of the Box leaves, from `store.statistics`; zero and one when a model is loaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, space: Space[Any], width: int, mean: Tree | None = None, std: Tree | None = None) -> None:
        super().__init__()
        spaces = leaf_spaces(space)
        self.leaves = [Leaf.of(path, leaf) for path, leaf in spaces.items() if not is_image(leaf)]
        size = sum(leaf.size for leaf in self.leaves)
        self.register_buffer("mean", features_of(self.leaves, mean, 0.0))
        self.register_buffer("std", features_of(self.leaves, std, 1.0))
        self.linear = nn.Linear(size, width) if size else None
        frames = {path: leaf.shape for path, leaf in spaces.items() if is_image(leaf)}
        self.paths = list(frames)
        self.cameras = nn.ModuleList([Camera(shape, width) for shape in frames.values() if shape is not None])

    def forward(self, observations: TensorTree) -> Tensor:
        """Leaves [..., *leaf] to [..., width]."""
        values = flatten(observations)
        total: Tensor | None = None
        if self.linear is not None:
            total = self.linear(
                (torch.cat([leaf.features(values[leaf.path]) for leaf in self.leaves], -1) - self.mean) / self.std
            )
        for path, camera in zip(self.paths, self.cameras, strict=True):
            seen = camera(values[path])
            total = seen if total is None else total + seen
        assert total is not None
        return total


class Camera(nn.Module):
    """uint8 frames [..., H, W, C] to [..., width]: strided convolutions down to four pixels, then one linear map."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        height, breadth, channels = shape
        layers: list[nn.Module] = []
        features = 16
        while min(height, breadth) > 4:
            layers += [nn.Conv2d(channels, features, 4, stride=2, padding=1), nn.ReLU()]
            height, breadth, channels = height // 2, breadth // 2, features
            features = min(2 * features, 64)
        self.convolutions = nn.Sequential(*layers)
        self.linear = nn.Linear(channels * height * breadth, width)

    def forward(self, frames: Tensor) -> Tensor:
        """[..., H, W, C] uint8 to [..., width]."""
        flat = frames.flatten(0, -4).movedim(-1, 1).float() / 255 - 0.5
        out: Tensor = self.linear(self.convolutions(flat).flatten(1))
        return out.reshape(*frames.shape[:-3], -1)


class ActionCodec(nn.Module):
    """Actions to the features that networks read, and the numbers that networks give back to actions.

    A bounded Box is mapped to [-1, 1] and its head ends in tanh; an unbounded one is standardised and its head is
    linear; categories are one-hot in and logits out.

    Args:
        space: of one action.
        mean, std: trees of the Box leaves, for unbounded ones.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, space: Space[Any], mean: Tree | None = None, std: Tree | None = None) -> None:
        super().__init__()
        spaces = leaf_spaces(space)
        self.leaves = [Leaf.of(path, leaf) for path, leaf in spaces.items()]
        self.bounded = {path: isinstance(leaf, gym_spaces.Box) and leaf.is_bounded() for path, leaf in spaces.items()}
        self.size = sum(leaf.size for leaf in self.leaves)
        centre, scale = features_of(self.leaves, mean, 0.0), features_of(self.leaves, std, 1.0)
        offset = 0
        for leaf in self.leaves:
            box = spaces[leaf.path]
            if self.bounded[leaf.path]:
                assert isinstance(box, gym_spaces.Box)
                low, high = (torch.as_tensor(np.ravel(side), dtype=torch.float32) for side in (box.low, box.high))
                centre[offset : offset + leaf.size] = (low + high) / 2
                scale[offset : offset + leaf.size] = ((high - low) / 2).clamp_min(1e-6)
            offset += leaf.size
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)

    def features(self, actions: TensorTree) -> Tensor:
        """Leaves [..., *leaf] to [..., size]."""
        values = flatten(actions)
        return (torch.cat([leaf.features(values[leaf.path]) for leaf in self.leaves], -1) - self.centre) / self.scale

    def loss(self, outputs: Tensor, actions: TensorTree) -> Tensor:
        """Squared error (mean over a Box's entries) plus cross entropy (sum over categories), [...] of [..., size]."""
        values = flatten(actions)
        total = outputs.new_zeros(outputs.shape[:-1], dtype=torch.float32)
        offset = 0
        for leaf in self.leaves:
            span = slice(offset, offset + leaf.size)
            part = outputs[..., span].float()
            if leaf.sizes:
                for logits, code in zip(part.split(leaf.sizes, -1), leaf.categories(values[leaf.path]), strict=True):
                    entropy = F.cross_entropy(logits.flatten(0, -2), code.flatten(), reduction="none")
                    total = total + entropy.view(code.shape)
            else:
                wanted = (leaf.features(values[leaf.path]) - self.centre[span]) / self.scale[span]
                total = total + (self._squashed(leaf, part) - wanted).square().mean(-1)
            offset += leaf.size
        return total

    def decode(self, outputs: Tensor) -> TensorTree:
        """Network outputs [..., size] to actions: tanh and bounds undone, the likeliest category."""
        restored, offset = {}, 0
        for leaf in self.leaves:
            span = slice(offset, offset + leaf.size)
            part = outputs[..., span].float()
            if not leaf.sizes:
                part = self._squashed(leaf, part) * self.scale[span] + self.centre[span]
            restored[leaf.path] = leaf.restore(part)
            offset += leaf.size
        tree: TensorTree = unflatten(restored)
        return tree

    def restore(self, features: Tensor) -> TensorTree:
        """The inverse of `features`: [..., size] to leaves [..., *leaf]; of categories, the largest entry."""
        parts = (features * self.scale + self.centre).split([leaf.size for leaf in self.leaves], -1)
        tree: TensorTree = unflatten(
            {leaf.path: leaf.restore(part) for leaf, part in zip(self.leaves, parts, strict=True)}
        )
        return tree

    def stray(self, features: Tensor, scale: float) -> Tensor:
        """Features [B, size] with noise from torch's default generator, for exploring.

        Normal with deviation `scale` on entries of a Box, kept within its bounds; in that share of lanes, another
        category.
        """
        parts = []
        for leaf, part in zip(self.leaves, features.split([leaf.size for leaf in self.leaves], -1), strict=True):
            if leaf.sizes:
                elsewhere = torch.rand(len(part), 1, device=part.device) < scale
                parts.append(torch.where(elsewhere, torch.rand_like(part), part))
            else:
                strayed = part + scale * torch.randn_like(part)
                parts.append(strayed.clamp(-1, 1) if self.bounded[leaf.path] else strayed)
        return torch.cat(parts, -1)

    def zeros(self, *shape: int) -> dict[str, Tensor]:
        """Empty actions by leaf path, [*shape, *leaf]."""
        device = self.centre.device
        return {
            leaf.path: torch.zeros(
                (*shape, *leaf.shape), dtype=torch.int64 if leaf.sizes else torch.float32, device=device
            )
            for leaf in self.leaves
        }

    def _squashed(self, leaf: Leaf, part: Tensor) -> Tensor:
        return part.tanh() if self.bounded[leaf.path] else part


def features_of(leaves: list[Leaf], tree: Tree | None, default: float) -> Tensor:
    """Figures of the Box leaves as one vector of features, `default` for categories."""
    given = flatten(tree) if tree is not None else {}
    out = torch.full((sum(leaf.size for leaf in leaves),), default)
    offset = 0
    for leaf in leaves:
        if not leaf.sizes and leaf.path in given:
            out[offset : offset + leaf.size] = torch.as_tensor(np.ravel(given[leaf.path]), dtype=torch.float32)
        offset += leaf.size
    return out
