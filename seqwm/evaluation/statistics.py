"""What a handful of episode returns says: robust means, and how sure they are.

The interquartile mean and the percentile bootstrap are those recommended by Agarwal et al., "Deep Reinforcement
Learning at the Edge of the Statistical Precipice" (NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqwm.core.random import numpy_generator

_RESAMPLES = 5000
_CHUNK_VALUES = 1 << 22


def iqm(values: ArrayLike, axis: int = -1) -> NDArray[np.float64]:
    """The mean of the middle half along an axis: a quarter of the values, rounded down, is left out at each end."""
    ordered = np.sort(np.asarray(values, np.float64), axis=axis)
    count = ordered.shape[axis]
    middle = np.take(ordered, np.arange(count // 4, count - count // 4), axis=axis)
    return np.asarray(middle.mean(axis=axis))


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """The percentile bootstrap interval of a statistic; None for fewer than two values, which say nothing of spread.

    Args:
        values: [N].
        statistic: takes an array and `axis`.
        confidence: the share of resamples that the interval holds.
        seed: names the resamples; the same values and seed give the same interval.
    """
    sample = np.asarray(values, np.float64)
    if len(sample) < 2:
        return None
    generator = numpy_generator(seed)
    rows = max(1, _CHUNK_VALUES // len(sample))
    drawn = [
        statistic(sample[generator.integers(len(sample), size=(min(rows, _RESAMPLES - first), len(sample)))], axis=1)
        for first in range(0, _RESAMPLES, rows)
    ]
    low, high = np.quantile(np.concatenate(drawn), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
