from __future__ import annotations

import math

import pytest
import torch
from torch import distributions as reference

from seqwm.nn import distributions as own

NUMBERS = torch.tensor([0.0, 1e-6, -0.3, 1.0, -7.5, 123.4, -1e4, 3e6])


def test_symexp_undoes_symlog():
    torch.testing.assert_close(own.symexp(own.symlog(NUMBERS)), NUMBERS, rtol=2e-5, atol=1e-9)
    torch.testing.assert_close(own.symlog(torch.tensor(-(math.e - 1))), torch.tensor(-1.0))


def test_bins_are_255_symmetric_rising_numbers_from_symexp_of_minus_20_to_20():
    bins = own.two_hot_bins()
    assert bins.shape == (255,)
    assert torch.equal(bins, -bins.flip(0))
    assert bool((bins.diff() > 0).all())
    torch.testing.assert_close(bins[-1], torch.tensor(math.expm1(20.0), dtype=torch.float32))


def test_a_two_hot_target_has_the_number_as_its_mean_and_two_neighbouring_bins():
    bins = own.two_hot_bins()
    below, weight = own.two_hot_weights(NUMBERS, bins)
    spread = torch.zeros(len(NUMBERS), 255, dtype=torch.float64)
    rows = torch.arange(len(NUMBERS))
    spread[rows, below] = 1 - weight.double()
    spread[rows, below + 1] += weight.double()
    torch.testing.assert_close((spread * bins.double()).sum(-1), NUMBERS.double(), rtol=1e-5, atol=1e-7)
    assert bool(((weight >= 0) & (weight <= 1)).all())


def test_numbers_beyond_the_bins_count_as_the_outermost_one():
    bins = own.two_hot_bins()
    below, weight = own.two_hot_weights(torch.tensor([1e12, -1e12]), bins)
    assert below.tolist() == [253, 0]
    assert weight.tolist() == [1.0, 0.0]


def test_two_hot_loss_is_the_cross_entropy_with_the_spread_out_target():
    bins = own.two_hot_bins()
    logits = torch.randn(len(NUMBERS), 255, generator=torch.Generator().manual_seed(0))
    below, weight = own.two_hot_weights(NUMBERS, bins)
    rows = torch.arange(len(NUMBERS))
    spread = torch.zeros(len(NUMBERS), 255)
    spread[rows, below] = 1 - weight
    spread[rows, below + 1] += weight
    expected = -(spread * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(own.two_hot_loss(logits, NUMBERS, bins=bins), expected)
    both = own.two_hot_loss(logits, NUMBERS, torch.zeros(len(NUMBERS)), bins=bins)
    torch.testing.assert_close(both, expected - logits.log_softmax(-1)[:, 127])


def test_the_logits_that_minimise_the_two_hot_loss_decode_to_the_target():
    bins = own.two_hot_bins()
    for number in (0.0, 0.37, -12.5):
        below, weight = own.two_hot_weights(torch.tensor([number]), bins)
        logits = torch.full((1, 255), -1e9)
        logits[0, below] = torch.log(1 - weight).clamp_min(-1e9)
        logits[0, below + 1] = torch.log(weight).clamp_min(-1e9)
        torch.testing.assert_close(own.two_hot_mean(logits, bins), torch.tensor([number]), rtol=1e-5, atol=1e-6)


def test_equal_logits_decode_to_zero_exactly():
    assert own.two_hot_mean(torch.zeros(3, 255), own.two_hot_bins()).tolist() == [0.0, 0.0, 0.0]


def test_categories_have_the_log_probability_entropy_and_kl_of_the_mixture():
    logits = torch.tensor([[4.0, -2.0, 0.5], [0.0, 50.0, -50.0]])
    p, q = own.mixed(logits, 0.01), own.mixed(logits.flip(-1), 0.01)
    expected = 0.99 * logits.softmax(-1) + 0.01 / 3
    torch.testing.assert_close(p.exp(), expected)
    one, other = reference.Categorical(probs=expected), reference.Categorical(probs=expected.flip(-1))
    torch.testing.assert_close(own.categorical_kl(p, q), reference.kl_divergence(one, other))
    torch.testing.assert_close(own.categorical_entropy(p), one.entropy())
    assert float(p.min()) > math.log(0.01 / 3) - 1e-4


def test_samples_come_as_often_as_the_probabilities_say_and_evenly_spread_noise_to_the_last_one():
    log_probabilities = own.mixed(torch.tensor([1.0, 0.0, -1.0]), 0.01)
    noise = (torch.arange(10_000) + 0.5) / 10_000
    often = own.straight_through(log_probabilities.expand(10_000, 3), noise).mean(0)
    torch.testing.assert_close(often, log_probabilities.exp(), atol=1e-4, rtol=0)


def test_the_largest_uniform_number_there_is_still_chooses_a_category():
    log_probabilities = torch.tensor([0.1, 0.2, 0.7]).log()
    noise = torch.tensor([0.0, 1 - 2**-24])
    hot = own.straight_through(log_probabilities.expand(2, 3), noise)
    assert hot.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]


def test_straight_through_samples_are_one_hot_with_the_gradient_of_the_probabilities():
    logits = torch.tensor([0.3, -0.2, 1.1], requires_grad=True)
    value = torch.tensor([1.0, 2.0, -3.0])
    sample = own.straight_through(own.mixed(logits, 0.01), torch.tensor(0.1))
    torch.testing.assert_close(sample.detach(), torch.tensor([1.0, 0.0, 0.0]))
    (found,) = torch.autograd.grad((sample * value).sum(), logits)
    (expected,) = torch.autograd.grad((own.mixed(logits, 0.01).exp() * value).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_the_kl_of_normals_is_the_closed_form():
    parameters = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    mean, std, other_mean, other_std = parameters[0], parameters[1].exp(), parameters[2], parameters[3].exp()
    one, other = reference.Normal(mean, std), reference.Normal(other_mean, other_std)
    found = own.normal_kl(mean, std, other_mean, other_std)
    torch.testing.assert_close(found, reference.kl_divergence(one, other).sum(-1))


def test_a_bounded_normal_has_tanh_of_the_output_as_mean_and_a_deviation_between_a_tenth_and_one():
    raw = torch.tensor([[-50.0, 0.2, 50.0]])
    distribution = own.BoundedNormal.of(raw, raw)
    torch.testing.assert_close(distribution.mode(), raw.tanh())
    torch.testing.assert_close(distribution.std[0, [0, 2]], torch.tensor([0.1, 1.0]))
    normal = reference.Independent(reference.Normal(distribution.mean, distribution.std), 1)
    action = torch.tensor([[0.3, -1.2, 0.9]])
    torch.testing.assert_close(distribution.log_density(action), normal.log_prob(action))
    torch.testing.assert_close(distribution.entropy(), normal.entropy())


def test_a_squashed_normal_integrates_to_one_and_is_the_transformed_normal():
    distribution = own.TanhNormal(torch.tensor([0.4]), torch.tensor([0.7]))
    grid = torch.linspace(-1 + 1e-5, 1 - 1e-5, 200_001, dtype=torch.float64)
    density = distribution.log_density(grid[:, None]).exp()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-3)
    theirs = reference.TransformedDistribution(
        reference.Normal(torch.tensor([0.4]), torch.tensor([0.7])), reference.TanhTransform()
    )
    torch.testing.assert_close(
        distribution.log_density(torch.tensor([0.6])), theirs.log_prob(torch.tensor([0.6]))[0], rtol=1e-4, atol=1e-5
    )


def test_the_entropy_of_a_squashed_normal_is_estimated_without_bias():
    distribution = own.TanhNormal(torch.tensor([0.4]), torch.tensor([0.7]))
    grid = torch.linspace(-1 + 1e-5, 1 - 1e-5, 200_001, dtype=torch.float64)
    log_density = distribution.log_density(grid[:, None])
    exact = float(torch.trapezoid(-log_density.exp() * log_density, grid))
    noise = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0))
    assert float(distribution.entropy(noise).mean()) == pytest.approx(exact, abs=0.01)


def test_draws_without_gradients_are_those_with_them():
    generator = torch.Generator().manual_seed(0)
    logits, noise = 3 * torch.randn(50, 7, 4, generator=generator), torch.rand(50, 7, generator=generator)
    for given in (noise, torch.zeros_like(noise), None):
        expected = own.straight_through(own.mixed(logits, 0.01), given)
        torch.testing.assert_close(own.drawn(logits, 0.01, given), expected)


def test_the_gradient_of_two_targets_is_that_of_finite_differences():
    bins = own.two_hot_bins().double()
    logits = torch.randn(3, 2, 255, dtype=torch.float64, requires_grad=True)
    targets = [torch.tensor([[0.0, 3.7], [-2e5, 1e9], [0.3, -0.1]], dtype=torch.float64) * sign for sign in (1, -0.5)]
    assert torch.autograd.gradcheck(lambda x: own.two_hot_loss(x, *targets, bins=bins), logits)
