from __future__ import annotations

import numpy as np
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqwm.core.random import indices, key, numpy_generator, torch_generator

INTEGERS = st.integers(-(2**63), 2**64 - 1)


def splitmix64(seed, count):
    """The published generator, step by step."""
    state, out = seed, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        out.append(z ^ (z >> 31))
    return out


def test_draws_are_the_published_generators():
    """SplitMix64 from state 0 begins with 0xE220A8397B1DCDAF (Vigna's reference code)."""
    assert splitmix64(0, 1) == [0xE220A8397B1DCDAF]
    assert key(0) == 0xE220A8397B1DCDAF
    bound = 1 << 40
    start = (key(5) - 0x9E3779B97F4A7C15) % 2**64  # position p is the p-th state behind the key
    wanted = [(word >> 11) * bound >> 53 for word in splitmix64(start, 50)]
    assert indices(5, np.arange(50, dtype=np.uint64), bound).tolist() == wanted


@given(st.integers(0, 2**32), st.lists(st.integers(0, 2**63), min_size=1, max_size=20), st.integers(1, 10**9))
def test_a_draw_depends_on_its_position_alone(seed, positions, bound):
    together = indices(seed, np.array(positions, np.uint64), bound)
    assert together.min() >= 0
    assert together.max() < bound
    for position, draw in zip(positions, together, strict=True):
        assert indices(seed, np.array([position], np.uint64), bound) == draw


def test_draws_are_uniform_and_seeds_unrelated():
    positions = np.arange(100_000, dtype=np.uint64)
    one, other = indices(0, positions, 50), indices(1, positions, 50)
    assert scipy.stats.chisquare(np.bincount(one, minlength=50)).pvalue > 1e-4
    table = np.histogram2d(one, other, bins=50)[0]
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-4


@given(INTEGERS, st.lists(INTEGERS, max_size=3), st.lists(INTEGERS, max_size=3))
def test_places_have_keys_of_their_own(seed, path, other):
    same = [part % 2**64 for part in path] == [part % 2**64 for part in other]
    assert (key(seed, *path) == key(seed, *other)) is same


def test_generators_repeat_at_their_place_and_differ_elsewhere():
    assert numpy_generator(3, 1).random() == numpy_generator(3, 1).random()
    assert numpy_generator(3, 1).random() != numpy_generator(3, 2).random()
    draw = [torch.rand(4, generator=torch_generator(3, place)) for place in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
