"""Finite scalar quantisation against enumeration."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqwm.nn.finite_scalar import FiniteScalar

levels = st.lists(st.integers(2, 5), min_size=1, max_size=4)


@settings(deadline=None)
@given(levels)
def test_every_code_has_a_point_of_its_own_that_is_quantised_to_itself(levels):
    quantise = FiniteScalar(levels)
    codes = torch.arange(quantise.size)
    points = quantise.values(codes)
    assert quantise.size == math.prod(levels) == len(points.unique(dim=0))
    assert points.abs().max() <= 1
    again, found = quantise(torch.atanh(points.clamp(-0.9999, 0.9999)))
    assert torch.equal(found, codes)
    torch.testing.assert_close(again, points)


@settings(deadline=None)
@given(levels, st.integers(0, 99))
def test_the_nearest_point_is_taken(levels, seed):
    quantise = FiniteScalar(levels)
    x = torch.randn(20, len(levels), generator=torch.Generator().manual_seed(seed))
    points = quantise.values(torch.arange(quantise.size))
    nearest = torch.cdist(x.tanh().double(), points.double()).argmin(1)
    assert torch.equal(quantise(x)[1], nearest)


def test_gradients_pass_the_rounding():
    x = torch.tensor([[0.3, -1.2]], requires_grad=True)
    FiniteScalar([2, 3])(x)[0].sum().backward()
    torch.testing.assert_close(x.grad, 1 - x.detach().tanh().square())


def test_a_single_level_is_refused():
    with pytest.raises(ValueError, match=r"found \[2, 1\], expected one number of at least 2"):
        FiniteScalar([2, 1])
