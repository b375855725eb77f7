from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces

from seqwm.control.natural_gradient import (
    GaussianActor,
    NaturalGradientOptions,
    clone,
    conjugate_gradients,
    fisher,
    natural_step,
)
from seqwm.core.errors import SpaceError

ACTION = gym_spaces.Box(np.array([-1, -1], np.float32), np.array([1, 1], np.float32))


def actor(**options):
    torch.manual_seed(0)
    made = GaussianActor(NaturalGradientOptions(layers=1, width=6, **options), 3, ACTION)
    made.observation_mean.copy_(torch.tensor([0.3, -0.2, 0.0]))
    made.observation_std.copy_(torch.tensor([2.0, 0.5, 1.0]))
    with torch.no_grad():
        made.log_std.copy_(torch.tensor([-0.5, -1.2]))
    return made


def scores(own, observation, action):
    """The gradient of log pi of each row, [R, weights]."""
    rows = []
    for one in range(len(observation)):
        density = own.log_density(observation[one : one + 1], action[one : one + 1]).sum()
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(density, list(own.parameters()))]))
    return torch.stack(rows)


def test_log_densities_are_those_of_torchs_normal_distribution():
    own, observation, action = actor(), torch.randn(5, 3), torch.randn(5, 2)
    expected = torch.distributions.Normal(own(observation), own.log_std.exp()).log_prob(action).sum(-1)
    torch.testing.assert_close(own.log_density(observation, action), expected)


def test_fishers_matrix_is_the_mean_outer_product_of_scores():
    own, generator = actor(), torch.Generator().manual_seed(1)
    observation = torch.randn(4, 3, generator=generator)
    multiply = fisher(own, observation)
    size = sum(p.numel() for p in own.parameters())
    matrix = torch.stack([multiply(row) for row in torch.eye(size)])
    # The mean over actions in closed form: scores are linear in the noise and its square, so that draws with all of the
    # noise's signs and the quadrature's nodes give it exactly; three nodes are exact for the fourth power.
    nodes, weights = torch.tensor([-math.sqrt(3.0), 0.0, math.sqrt(3.0)]), torch.tensor([1 / 6, 2 / 3, 1 / 6])
    expected = torch.zeros(size, size)
    for i, one in enumerate(nodes):
        for j, other in enumerate(nodes):
            action = (own(observation) + own.log_std.exp() * torch.stack([one, other])).detach()
            rows = scores(own, observation, action)
            expected += weights[i] * weights[j] * rows.T @ rows / len(rows)
    torch.testing.assert_close(matrix, expected + 1e-4 * torch.eye(size), rtol=1e-4, atol=1e-4)


def test_conjugate_gradients_solve_a_system_with_ten_different_eigenvalues():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64))[0]
    matrix = basis @ torch.diag(torch.arange(30, dtype=torch.float64) % 10 + 1) @ basis.T
    b = torch.randn(30, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(conjugate_gradients(lambda v: matrix @ v, b), torch.linalg.solve(matrix, b))


def test_a_step_goes_as_many_nats_as_asked_towards_what_had_the_advantage():
    own, generator = actor(step_size=1e-3), torch.Generator().manual_seed(2)
    observation = torch.randn(2000, 3, generator=generator)
    with torch.no_grad():
        before = torch.distributions.Normal(own(observation), own.log_std.exp())
        action = own.draw(observation, generator)
    advantage = action[:, 0] - before.mean[:, 0]  # the more of the first entry the better
    figures = natural_step(own, observation, action, advantage)
    with torch.no_grad():
        after = torch.distributions.Normal(own(observation), own.log_std.exp())
    far = torch.distributions.kl_divergence(before, after).sum(-1).mean()
    assert float(far) == pytest.approx(1e-3, rel=0.1)
    assert bool((after.mean[:, 0] > before.mean[:, 0]).float().mean() > 0.99)
    gained = (advantage * (after.log_prob(action) - before.log_prob(action)).sum(-1)).mean()
    assert float(gained) == pytest.approx(figures["slope"] * math.sqrt(2e-3), rel=0.1)


def test_deviations_stay_above_their_least():
    own = actor(step_size=10.0, deviation=0.25)
    observation = torch.randn(500, 3)
    action = own(observation).detach()  # the mean is best, so the deviation wants to vanish
    natural_step(own, observation, torch.cat([action, action + 1])[:500], torch.ones(500))
    assert own.log_std.exp().min() >= 0.25 - 1e-6


def test_a_clone_has_the_mean_and_the_deviation_of_what_was_done():
    own, generator = actor(), torch.Generator().manual_seed(3)
    observation = 5 + 3 * torch.randn(4000, 3, generator=generator)
    mean = torch.stack([0.1 * observation[:, 0] - 0.5, 0.2 - 0.05 * observation[:, 1]], 1)
    action = mean + torch.tensor([0.3, 0.15]) * torch.randn(4000, 2, generator=generator)
    error = clone(own, observation, action, 2000, 3e-3, generator)
    torch.testing.assert_close(own.observation_mean, observation.mean(0))
    torch.testing.assert_close(own.log_std.exp().detach(), torch.tensor([0.3, 0.15]), rtol=0.05, atol=0)
    assert error == pytest.approx((0.09 + 0.0225) / 2, rel=0.1)
    assert float((own(observation) - mean).square().mean().detach()) < 0.002


def test_actions_are_the_mean_or_drawn_and_within_their_bounds():
    own, observation = actor(), torch.randn(1000, 3)
    means = own(observation).detach()
    assert torch.equal(own.act(observation, explore=False), means.clamp(-1, 1))
    drawn = own.draw(observation, torch.Generator().manual_seed(0))
    torch.testing.assert_close((drawn - means).std(0), own.log_std.exp().detach(), rtol=0.1, atol=0)
    assert torch.equal(own.act(observation, torch.Generator().manual_seed(0)), drawn.clamp(-1, 1))
    assert bool((drawn.abs() > 1).any())


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="step_size: found 0, expected a positive number"):
        NaturalGradientOptions(step_size=0)
    with pytest.raises(ValueError, match="discount: found 1, expected a share below 1"):
        NaturalGradientOptions(discount=1)
    with pytest.raises(SpaceError, match="expected a Box with finite bounds for normal draws"):
        GaussianActor(NaturalGradientOptions(), 3, gym_spaces.Discrete(2))
