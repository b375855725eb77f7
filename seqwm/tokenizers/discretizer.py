"""Numbers to codes and back, one column at a time: uniform bins, quantile bins, or the integers of a discrete space.

A column with K bins has K - 1 inner edges e_1 < ... < e_{K-1}; the code of x is the number of edges at or below it, so
a value beyond the range of the training data falls into the outermost bin (`outside` tells which do). A code decodes
to the mean of the training values in its bin, the estimate of least squared error, or to the middle of a bin that held
none; both lie in the bin, so encoding what was decoded gives the code back.

Quantile bins hold equal shares of the training values. A value that comes up more often than one bin's share (zero in
a sparse reward, a joint at its stop) would fill several bins and leave their edges equal; here no value claims more
than one share, and what it does not use goes to the others. A column with no more distinct values than bins therefore
gets one bin each and loses nothing, and a constant column one bin.

Trajectory Transformer: Janner, Li and Levine, "Offline Reinforcement Learning as One Big Sequence Modeling Problem",
2021 (there, edges may coincide, and codes decode to the middle of their bin).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqwm.core.errors import DataError
from seqwm.data.problems import Problem

Binning = Literal["uniform", "quantile", "discrete"]


@dataclass(frozen=True, slots=True)
class Column:
    """How one column is made into codes.

    Attributes:
        name: what errors call it, for example 'observation[3]'.
        binning: bins of equal width, bins of equal content, or integers that are codes already.
        first, count: the integers first .. first + count - 1 of a discrete column.
        alone: a value that shares its bin with no other, however rare it is: a penalty that stands for an end.
    """

    name: str
    binning: Binning
    first: int = 0
    count: int = 0
    alone: float | None = None


class Discretizer(nn.Module):
    """Codes for D columns; everything it knows is in buffers, so it is saved with the model it belongs to.

    Attributes:
        edges: float32 [D, V - 1], inner edges in rising order, then infinity.
        values: float32 [D, V], what each code decodes to; behind a column's last code, that code's value again.
        counts: int64 [D], the codes that each column has.
        low, high: float32 [D], the range of the training data.
    """

    edges: Tensor
    values: Tensor
    counts: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, columns: int, codes: int) -> None:
        """An unfitted one of the right shape, to load weights into.

        Args:
            columns: D.
            codes: V, the most codes that any column has.
        """
        super().__init__()
        self.register_buffer("edges", torch.full((columns, codes - 1), torch.inf))
        self.register_buffer("values", torch.zeros(columns, codes))
        self.register_buffer("counts", torch.ones(columns, dtype=torch.int64))
        self.register_buffer("low", torch.zeros(columns))
        self.register_buffer("high", torch.zeros(columns))

    @classmethod
    def fit(cls, columns: Sequence[Column], data: Iterable[NDArray[Any]], bins: int) -> Discretizer:
        """Fitted on training data.

        Args:
            columns: how each column is binned.
            data: the training values of each column in turn, [N]; read one after the other, so a generator will do.
            bins: the most bins a binned column gets.

        Raises:
            DataError: a column holds NaN or infinity, or a discrete one holds something else than its integers.
        """
        fitted = [_fit_column(column, values, bins) for column, values in zip(columns, data, strict=True)]
        discretizer = cls(len(columns), max(len(fit.values) for fit in fitted))
        for index, fit in enumerate(fitted):
            count = len(fit.values)
            discretizer.edges[index, : count - 1] = torch.from_numpy(fit.edges)
            discretizer.values[index, :count] = torch.from_numpy(fit.values)
            discretizer.values[index, count:] = float(fit.values[-1])
            discretizer.counts[index] = count
            discretizer.low[index], discretizer.high[index] = fit.low, fit.high
        return discretizer

    def encode(self, values: Tensor, columns: slice = slice(None)) -> Tensor:
        """Codes int64 [..., D] of float values [..., D]; `columns` tells which columns stand in the last axis."""
        edges = self.edges[columns]
        by_column = values.reshape(-1, len(edges)).T.to(edges.dtype).contiguous()
        codes = torch.searchsorted(edges, by_column, right=True)
        codes = torch.minimum(codes, self.counts[columns, None] - 1)  # plus infinity passes the padding as well
        return codes.T.reshape(values.shape)

    def decode(self, codes: Tensor, columns: slice = slice(None)) -> Tensor:
        """Values float32 [..., D] of codes int64 [..., D]."""
        table = self.values[columns]
        by_column = codes.reshape(-1, len(table)).T
        return table.gather(1, by_column).T.reshape(codes.shape)

    def outside(self, values: Tensor, columns: slice = slice(None)) -> Tensor:
        """Where values [..., D] are not within the range of the training data and are clipped, bool [..., D]."""
        return ~((values >= self.low[columns]) & (values <= self.high[columns]))

    def expectation(self, probabilities: Tensor, column: int) -> Tensor:
        """The mean value [...] under probabilities [..., V] of the codes of one column."""
        return probabilities @ self.values[column]


@dataclass(frozen=True, slots=True)
class _Fit:
    edges: NDArray[np.float32]
    values: NDArray[np.float32]
    low: float
    high: float


def _fit_column(column: Column, data: NDArray[Any], bins: int) -> _Fit:
    with np.errstate(over="ignore"):
        narrow = np.asarray(data, np.float32)
    wrong = int(narrow.size - np.isfinite(narrow).sum())
    if wrong or not narrow.size:
        found = f"{wrong} of {narrow.size} values NaN or infinite" if wrong else "no values"
        mend = "mend or drop those rows; bins have no place for them"
        raise DataError([Problem("not-finite", found, "finite numbers", mend, column=column.name)])
    if column.binning == "discrete":
        return _fit_discrete(column, data)
    distinct, counts = np.unique(narrow, return_counts=True)
    apart = _edges_around(distinct, column.alone)
    bins = max(bins - len(apart), 1)
    cuts = _uniform_edges(distinct, bins) if column.binning == "uniform" else _quantile_edges(distinct, counts, bins)
    cuts = np.union1d(cuts, apart)
    codes = np.searchsorted(cuts, distinct, side="right")
    return _Fit(cuts, _bin_values(cuts, distinct, counts, codes), float(distinct[0]), float(distinct[-1]))


def _fit_discrete(column: Column, data: NDArray[Any]) -> _Fit:
    last = column.first + column.count - 1
    low, high = data.min(), data.max()
    if low < column.first or high > last or (np.asarray(data) != np.rint(data)).any():
        found, expected = f"values from {low} to {high}", f"integers from {column.first} to {last}"
        mend = "the data does not belong to this space: name the right one or mend the data"
        raise DataError([Problem("outside-space", found, expected, mend, column=column.name)])
    values = np.arange(column.first, last + 1, dtype=np.float32)
    return _Fit(values[1:] - np.float32(0.5), values, float(column.first), float(last))


def _uniform_edges(distinct: NDArray[np.float32], bins: int) -> NDArray[np.float32]:
    """Inner edges of bins of equal width; fewer where float32 cannot tell them apart."""
    low, high = float(distinct[0]), float(distinct[-1])
    edges = np.unique(np.linspace(low, high, bins + 1)[1:-1].astype(np.float32))
    return edges[(edges > low) & (edges <= high)]


def _quantile_edges(distinct: NDArray[np.float32], counts: NDArray[np.int64], bins: int) -> NDArray[np.float32]:
    """Inner edges of bins of equal content, halfway between neighbouring values."""
    if len(distinct) <= bins:
        firsts = np.arange(1, len(distinct))
    else:
        share = _share(counts, bins)
        before = np.concatenate([[0.0], np.cumsum(np.minimum(counts, share))])[:-1]
        # A bin begins at the first value with i whole shares before it; rounding of the sum must not delay that.
        firsts = np.unique(np.searchsorted(before, np.arange(1, bins) * share - 1e-9 * share * bins))
        firsts = firsts[firsts < len(distinct)]
    return _between(distinct, firsts)


def _edges_around(distinct: NDArray[np.float32], value: float | None) -> NDArray[np.float32]:
    """The edges that part one of the values from its neighbours."""
    place = np.flatnonzero(distinct == np.float32(value)) if value is not None else np.zeros(0, np.int64)
    firsts = np.concatenate([place, place + 1])
    return _between(distinct, firsts[(firsts > 0) & (firsts < len(distinct))])


def _between(distinct: NDArray[np.float32], firsts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Edges halfway between the named values and those before them; above the lower one, at most the upper."""
    below, above = distinct[firsts - 1], distinct[firsts]
    middle = (0.5 * below.astype(np.float64) + 0.5 * above).astype(np.float32)
    return np.where(middle > below, middle, above)


def _share(counts: NDArray[np.int64], bins: int) -> float:
    """The share s of one bin when no value counts for more than one: the sum of min(count, s) is bins * s."""
    rising = np.sort(counts)
    below = np.concatenate([[0], np.cumsum(rising)])
    for capped in range(bins):
        share = float(below[len(rising) - capped]) / (bins - capped)
        if rising[len(rising) - capped - 1] <= share:
            return share
    raise AssertionError("more distinct values than bins leave something to share")


def _bin_values(
    edges: NDArray[np.float32],
    distinct: NDArray[np.float32],
    counts: NDArray[np.int64],
    codes: NDArray[np.int64],
) -> NDArray[np.float32]:
    """The mean of each bin's values, or its middle where it has none."""
    bounds = np.concatenate([distinct[:1], edges, distinct[-1:]]).astype(np.float64)
    lower, upper = bounds[:-1], bounds[1:]
    middle = (0.5 * lower + 0.5 * upper).astype(np.float32)
    values = np.where(middle < upper, middle, lower).astype(np.float32)
    weight = np.bincount(codes, counts, len(values))
    total = np.bincount(codes, counts * distinct.astype(np.float64), len(values))
    first = np.searchsorted(codes, np.arange(len(values)))  # codes rise with the distinct values
    last = np.searchsorted(codes, np.arange(len(values)), side="right") - 1
    held = weight > 0
    mean = (total[held] / weight[held]).astype(np.float32)
    values[held] = np.clip(mean, distinct[first[held]], distinct[last[held]])
    return values
