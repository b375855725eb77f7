from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from seqwm.evaluation.statistics import bootstrap_interval, iqm


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 20, 101])
def test_the_interquartile_mean_is_scipys_trimmed_mean(count: int) -> None:
    values = np.random.default_rng(count).normal(size=(3, count)) ** 3
    np.testing.assert_allclose(iqm(values), scipy.stats.trim_mean(values, 0.25, axis=1), rtol=1e-12)


def test_the_interquartile_mean_leaves_a_quarter_out_at_each_end() -> None:
    assert iqm([1e9, 2.0, -1e9, 4.0]) == 3.0


def test_the_interval_is_the_quantiles_over_all_resamples() -> None:
    values = [0.0, 1.0, 10.0, 100.0]
    every = [np.mean(resample) for resample in itertools.product(values, repeat=4)]
    for confidence in (0.5, 0.8, 0.95):
        low, high = bootstrap_interval(values, confidence=confidence)
        # the draws are a sample of `every`, so each end lies between quantiles a little to either side
        tail = (1 - confidence) / 2
        assert np.quantile(every, max(tail - 0.015, 0)) <= low <= np.quantile(every, tail + 0.015)
        assert np.quantile(every, 1 - tail - 0.015) <= high <= np.quantile(every, min(1 - tail + 0.015, 1))


@pytest.mark.parametrize("statistic", [np.mean, iqm])
def test_the_interval_is_scipys(statistic) -> None:
    values = np.random.default_rng(0).gamma(2.0, 100.0, size=60)
    oracle = scipy.stats.bootstrap(
        (values,), statistic, n_resamples=50_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = oracle.high - oracle.low
    assert bootstrap_interval(values, statistic) == pytest.approx((oracle.low, oracle.high), abs=0.05 * width)


def test_an_interval_is_the_same_every_time_and_none_where_nothing_is_known_of_spread() -> None:
    values = np.arange(10.0)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    assert bootstrap_interval([3.0]) is None
    assert bootstrap_interval([3.0, 3.0]) == (3.0, 3.0)
