from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from seqwm.core.errors import DataError
from seqwm.tokenizers.discretizer import Binning, Column, Discretizer

FLOATS = st.floats(-1e6, 1e6, width=32)
DATA = arrays.arrays(np.float32, st.integers(1, 300), elements=FLOATS)
SPARSE = arrays.arrays(np.float32, st.integers(1, 300), elements=st.sampled_from([0.0, 0.0, 0.0, 1.0, -2.5, 1e-3]))
SCHEMES = st.sampled_from(["uniform", "quantile"])


def fit_one(data: NDArray[np.float32], binning: Binning, bins: int) -> Discretizer:
    return Discretizer.fit([Column("x", binning)], [data], bins)


@settings(deadline=None)
@given(data=DATA | SPARSE, binning=SCHEMES, bins=st.integers(1, 40))
def test_every_code_decodes_to_a_value_of_its_own_bin(data: NDArray[np.float32], binning: Binning, bins: int) -> None:
    discretizer = fit_one(data, binning, bins)
    codes = torch.arange(int(discretizer.counts[0]))[:, None]
    assert len(codes) <= bins
    assert torch.equal(discretizer.encode(discretizer.decode(codes)), codes)


@settings(deadline=None)
@given(data=DATA | SPARSE, binning=SCHEMES, bins=st.integers(1, 40), others=DATA)
def test_a_larger_value_never_has_a_smaller_code(
    data: NDArray[np.float32], binning: Binning, bins: int, others: NDArray[np.float32]
) -> None:
    discretizer = fit_one(data, binning, bins)
    rising = torch.from_numpy(np.sort(np.concatenate([data, others, [-np.inf, np.inf]])).astype(np.float32))[:, None]
    codes = discretizer.encode(rising)
    assert (codes.diff(dim=0) >= 0).all()
    assert codes[0] == 0
    assert codes[-1] == discretizer.counts[0] - 1


@settings(deadline=None)
@given(data=DATA | SPARSE, binning=SCHEMES, bins=st.integers(1, 40))
def test_training_values_are_reconstructed_within_the_width_of_their_bin(
    data: NDArray[np.float32], binning: Binning, bins: int
) -> None:
    discretizer = fit_one(data, binning, bins)
    values = torch.from_numpy(data)[:, None]
    codes = discretizer.encode(values)
    count = int(discretizer.counts[0])
    bounds = torch.cat([discretizer.low, discretizer.edges[0, : count - 1], discretizer.high])
    width = bounds.diff()[codes]
    assert ((discretizer.decode(codes) - values).abs() <= width).all()
    assert not discretizer.outside(values).any()


@settings(deadline=None)
@given(data=arrays.arrays(np.float32, st.integers(50, 400), elements=FLOATS, unique=True), bins=st.integers(2, 50))
def test_quantile_bins_of_distinct_values_hold_equal_shares(data: NDArray[np.float32], bins: int) -> None:
    discretizer = fit_one(data, "quantile", bins)
    held = torch.bincount(discretizer.encode(torch.from_numpy(data)[:, None]).flatten(), minlength=bins)
    assert int(held.max() - held.min()) <= 1
    assert len(held) == bins


@settings(deadline=None)
@given(data=DATA | SPARSE, bins=st.integers(1, 300))
def test_no_more_distinct_values_than_quantile_bins_are_kept_exactly(data: NDArray[np.float32], bins: int) -> None:
    discretizer = fit_one(data, "quantile", bins)
    values = torch.from_numpy(data)[:, None]
    if len(np.unique(data)) <= bins:
        assert torch.equal(discretizer.decode(discretizer.encode(values)), values)


def test_a_value_that_fills_most_of_a_column_leaves_the_other_bins_to_the_rest() -> None:
    rare = np.linspace(1.0, 2.0, 500, dtype=np.float32)
    data = np.concatenate([np.zeros(9_500, np.float32), rare])
    discretizer = fit_one(data, "quantile", 100)
    codes = discretizer.encode(torch.from_numpy(data)[:, None]).flatten()
    assert int(discretizer.counts[0]) == 100
    assert torch.equal(codes[:9_500], torch.zeros(9_500, dtype=torch.int64))
    held = torch.bincount(codes)[1:]
    assert int(held.min()) >= 5
    assert int(held.max()) <= 6


def test_a_rare_value_of_a_sparse_reward_has_a_code_of_its_own() -> None:
    data = np.zeros(100_000, np.float32)
    data[7] = 1.0
    discretizer = fit_one(data, "quantile", 100)
    assert discretizer.decode(discretizer.encode(torch.tensor([[0.0], [1.0]]))).tolist() == [[0.0], [1.0]]


def test_uniform_bins_have_equal_width_and_quantile_bins_follow_the_data() -> None:
    data = np.arange(10, dtype=np.float32) ** 2
    uniform, quantile = fit_one(data, "uniform", 3), fit_one(data, "quantile", 2)
    assert uniform.edges.tolist() == [[27.0, 54.0]]
    assert uniform.values[0].tolist() == pytest.approx([(0 + 1 + 4 + 9 + 16 + 25) / 6, (36 + 49) / 2, (64 + 81) / 2])
    assert quantile.edges.tolist() == [[(16 + 25) / 2]]
    assert quantile.values.tolist() == [[6.0, 51.0]]


def test_an_empty_uniform_bin_decodes_to_its_middle() -> None:
    discretizer = fit_one(np.array([0.0, 9.0], np.float32), "uniform", 3)
    assert discretizer.values.tolist() == [[0.0, 4.5, 9.0]]


def test_columns_of_every_kind_mix_and_discrete_ones_pass_through() -> None:
    rng = np.random.default_rng(0)
    data = [rng.normal(size=500), rng.normal(size=500), rng.integers(3, 6, 500), np.full(500, 7.0)]
    columns = [Column("a", "uniform"), Column("b", "quantile"), Column("c", "discrete", 2, 5), Column("d", "quantile")]
    discretizer = Discretizer.fit(columns, data, 20)
    assert discretizer.counts.tolist() == [20, 20, 5, 1]
    values = torch.from_numpy(np.stack(data, -1)).float().reshape(10, 50, 4)
    codes = discretizer.encode(values)
    assert torch.equal(codes[..., 2], values[..., 2].long() - 2)
    assert torch.equal(discretizer.decode(codes)[..., 2:], values[..., 2:])
    for index in range(4):  # alone and together are the same
        alone = discretizer.encode(values[..., index : index + 1], slice(index, index + 1))
        assert torch.equal(alone[..., 0], codes[..., index])
        assert torch.equal(
            discretizer.decode(alone, slice(index, index + 1))[..., 0], discretizer.decode(codes)[..., index]
        )


def test_values_beyond_the_training_data_are_clipped_and_told() -> None:
    discretizer = fit_one(np.linspace(-1, 1, 100, dtype=np.float32), "quantile", 10)
    values = torch.tensor([[-5.0], [-1.0], [0.0], [1.0], [1.5], [torch.nan]])
    assert discretizer.encode(values)[:5].flatten().tolist() == [0, 0, 5, 9, 9]
    assert discretizer.outside(values).flatten().tolist() == [True, False, False, False, True, True]


def test_the_expectation_of_a_one_hot_distribution_is_the_decoded_code() -> None:
    discretizer = fit_one(np.arange(8, dtype=np.float32), "quantile", 8)
    assert torch.equal(discretizer.expectation(torch.eye(8), 0), torch.arange(8.0))
    even = torch.full((3, 8), 1 / 8)
    assert discretizer.expectation(even, 0).tolist() == [3.5, 3.5, 3.5]


def test_a_fitted_discretizer_is_restored_from_its_state() -> None:
    data = np.random.default_rng(1).normal(size=(2, 300)).astype(np.float32)
    fitted = Discretizer.fit([Column("a", "uniform"), Column("b", "quantile")], data, 16)
    restored = Discretizer(2, 16)
    restored.load_state_dict(fitted.state_dict())
    values = torch.from_numpy(data.T.copy())
    assert torch.equal(restored.encode(values), fitted.encode(values))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_a_column_with_a_value_that_is_not_finite_is_refused_by_name(bad: float) -> None:
    data = np.array([0.0, bad, 1.0])
    with pytest.raises(DataError, match=r"column 'observation\[1\]'.*1 of 3 values NaN or infinite"):
        Discretizer.fit([Column("observation[1]", "quantile")], [data], 10)


def test_an_empty_column_is_refused() -> None:
    with pytest.raises(DataError, match="no values"):
        fit_one(np.zeros(0, np.float32), "uniform", 4)


def test_a_discrete_column_with_other_values_is_refused() -> None:
    with pytest.raises(DataError, match=r"values from 0 to 3; expected integers from 0 to 2"):
        Discretizer.fit([Column("action", "discrete", 0, 3)], [np.array([0, 3])], 4)


@pytest.mark.parametrize("binning", ["uniform", "quantile"])
@pytest.mark.parametrize("value", [-100.0, 0.5, 9.0])
def test_a_value_that_stands_alone_keeps_its_bin_to_itself(binning: Binning, value: float) -> None:
    data = np.concatenate([np.linspace(0, 1, 1000), [value]]).astype(np.float32)
    discretizer = Discretizer.fit([Column("reward", binning, alone=value)], [data], 20)
    codes = discretizer.encode(torch.from_numpy(data)[:, None])[:, 0]
    assert int(discretizer.counts[0]) <= 20
    assert int((codes == codes[-1]).sum()) == 1
    assert float(discretizer.decode(codes[-1:, None])) == value
