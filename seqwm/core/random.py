"""Randomness as a pure function of where it is used: a seed and a path of integers, never a hidden global state.

The mixing function is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), which passes BigCrush as a generator and is a
bijection of 64 bits, so distinct positions under one seed never collide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def key(seed: int, *path: int) -> int:
    """A 64-bit key for the place `path` under `seed`; distinct paths give unrelated keys."""
    state = _mix((seed & _MASK) + _GAMMA & _MASK)
    for part in path:
        state = _mix((state ^ _mix((part & _MASK) + _GAMMA & _MASK)) + _GAMMA & _MASK)
    return state


def indices(seed: int, positions: NDArray[np.uint64], bound: int) -> NDArray[np.int64]:
    """Uniform integers in [0, bound), one for each position: the same position always gives the same draw.

    Exact up to 2**-53 * bound, far below what any run could see.
    """
    with np.errstate(over="ignore"):
        z = positions * np.uint64(_GAMMA) + np.uint64(key(seed))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return ((z >> np.uint64(11)) * (2.0**-53 * bound)).astype(np.int64)


def numpy_generator(seed: int, *path: int) -> np.random.Generator:
    """A NumPy generator for the place `path` under `seed`."""
    return np.random.Generator(np.random.Philox(key=key(seed, *path)))


def torch_generator(seed: int, *path: int, device: str = "cpu") -> torch.Generator:
    """A torch generator for the place `path` under `seed`."""
    import torch

    return torch.Generator(device).manual_seed(key(seed, *path) >> 1)


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
