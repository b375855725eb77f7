"""Vector quantisation against enumeration and closed forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqwm.nn.vector_quantiser import DECAY, VectorQuantiser


def fresh(size=5, width=3, seed=0):
    torch.manual_seed(seed)
    return VectorQuantiser(size, width)


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 99))
def test_the_nearest_code_is_taken(size, width, seed):
    quantise = fresh(size, width, seed).eval()
    x = torch.randn(4, 7, width)
    points, codes = quantise(x)
    for vector, point, code in zip(x.flatten(0, 1), points.flatten(0, 1), codes.flatten(), strict=True):
        distances = [float((vector - quantise.points[each]).square().sum()) for each in range(size)]
        assert distances[code] == pytest.approx(min(distances), abs=1e-5)
        torch.testing.assert_close(point, quantise.points[code])


def test_codes_are_the_decayed_means_of_the_vectors_that_chose_them():
    quantise = fresh(2, 1).train()
    quantise.points.copy_(torch.tensor([[-1.0], [1.0]]))
    quantise.chosen.fill_(1.0)
    quantise.sums.copy_(quantise.points)
    batches = [torch.tensor([[-2.0], [-1.0], [2.0]]), torch.tensor([[3.0], [-4.0], [2.0]])]
    count, total = torch.ones(2), torch.tensor([-1.0, 1.0])
    for batch in batches:
        quantise(batch)
        for code, chose in enumerate((batch[:, 0] < 0, batch[:, 0] > 0)):
            count[code] = DECAY * count[code] + (1 - DECAY) * chose.sum()
            total[code] = DECAY * total[code] + (1 - DECAY) * batch[chose].sum()
    torch.testing.assert_close(quantise.chosen, count)
    torch.testing.assert_close(quantise.points[:, 0], total / count)


def test_unused_codes_move_to_where_codes_are_missing_until_every_vector_has_its_own():
    quantise = fresh(8, 2).train()
    vectors = 10 * torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    for _ in range(300):
        points, _ = quantise(vectors)
    torch.testing.assert_close(points, vectors, rtol=1e-2, atol=1e-2)
    assert len(quantise(vectors)[1].unique()) == 6


def test_nothing_moves_outside_training():
    quantise = fresh().eval()
    before = {name: tensor.clone() for name, tensor in quantise.state_dict().items()}
    quantise(torch.randn(50, 3))
    assert all(torch.equal(before[name], tensor) for name, tensor in quantise.state_dict().items())


def test_a_single_code_is_refused():
    with pytest.raises(ValueError, match="size: found 1 codes, expected at least 2"):
        VectorQuantiser(1, 3)
