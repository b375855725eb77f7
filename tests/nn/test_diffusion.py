"""Diffusion against the equations of Karras et al., brute-force sampling, closed forms and diffusers' schedulers."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import EDMEulerScheduler

from seqwm.nn.diffusion import (
    SIGMA_DATA,
    NoiseOptions,
    precondition,
    sample,
    sampling_sigmas,
    start_scale,
    training_sigmas,
)


@pytest.mark.parametrize("sigma", [0.002, 0.1, 0.5, 2.0, 20.0])
def test_input_and_target_of_the_network_have_unit_variance(sigma):
    generator = torch.Generator().manual_seed(0)
    clean = SIGMA_DATA * torch.randn(400_000, generator=generator)
    noisy = clean + sigma * torch.randn(400_000, generator=generator)
    c = precondition(torch.tensor(sigma))
    assert (c.into * noisy).var().item() == pytest.approx(1.0, abs=0.01)
    assert ((clean - c.skip * noisy) / c.out).var().item() == pytest.approx(1.0, abs=0.01)


def test_the_scales_are_those_of_diffusers():
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=5.0, sigma_data=SIGMA_DATA)
    for sigma in (0.01, 0.7, 4.0):
        c, x, said = precondition(torch.tensor(sigma)), torch.tensor([0.3]), torch.tensor([-1.2])
        torch.testing.assert_close(c.into * x, scheduler.precondition_inputs(x, sigma))
        torch.testing.assert_close(c.skip * x + c.out * said, scheduler.precondition_outputs(x, said, sigma))
        torch.testing.assert_close(c.noise, scheduler.precondition_noise(sigma)[0])


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_levels_and_euler_steps_equal_diffusers(steps):
    options = NoiseOptions()
    scheduler = EDMEulerScheduler(
        sigma_min=options.sigma_min, sigma_max=options.sigma_max, sigma_data=SIGMA_DATA, rho=options.rho
    )
    scheduler.set_timesteps(steps)
    grid = sampling_sigmas(steps, options)
    torch.testing.assert_close(torch.tensor(grid), scheduler.sigmas, rtol=1e-6, atol=1e-7)
    assert start_scale(options) == pytest.approx(float(scheduler.init_noise_sigma))

    def network(x, noise):
        return torch.tanh(x + noise)

    x = start_scale(options) * torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    theirs = x.clone()
    for time in scheduler.timesteps:
        said = network(scheduler.scale_model_input(theirs, time), time)
        theirs = scheduler.step(said, time, theirs).prev_sample

    def denoise(x, sigma):
        c = precondition(torch.tensor(sigma))
        return c.skip * x + c.out * network(c.into * x, c.noise)

    torch.testing.assert_close(sample(denoise, x, grid), theirs, rtol=1e-5, atol=1e-5)


def test_heun_follows_the_closed_form_of_a_gaussian_and_with_smaller_error_than_euler():
    """Of data N(0, SIGMA_DATA^2), D(x) = c_skip x, and x shrinks as sqrt(sigma^2 + SIGMA_DATA^2)."""
    options = NoiseOptions(sigma_max=5.0)
    x = torch.tensor([1.0, -3.0])
    exact = x * SIGMA_DATA / math.sqrt(options.sigma_max**2 + SIGMA_DATA**2)

    def error(steps, heun):
        grid = sampling_sigmas(steps, options)
        found = sample(lambda x, s: precondition(torch.tensor(s)).skip * x, x, grid, heun=heun)
        return (found - exact).abs().max().item()

    assert error(40, True) < 1e-3
    assert error(20, True) < error(20, False) / 5
    assert error(160, False) < error(20, False) / 4


def test_noise_levels_in_training_are_log_normal_within_their_bounds():
    torch.manual_seed(0)
    options = NoiseOptions(sigma_min=1e-9, sigma_max=1e9, log_mean=-0.4, log_deviation=1.2)
    logs = training_sigmas((200_000,), options, torch.device("cpu")).log()
    assert logs.mean().item() == pytest.approx(-0.4, abs=0.01)
    assert logs.std().item() == pytest.approx(1.2, abs=0.01)
    bounded = training_sigmas((1000,), NoiseOptions(sigma_min=0.5, sigma_max=0.9), torch.device("cpu"))
    assert bounded.min() >= 0.5
    assert bounded.max() <= 0.9


def test_levels_that_do_not_fall_are_refused():
    with pytest.raises(ValueError, match="sigma_max: found 1"):
        NoiseOptions(sigma_min=2.0, sigma_max=1.0)


def test_of_two_frames_that_may_follow_few_euler_steps_draw_some_mean_and_heun_draws_one():
    # The best denoiser of two points at +-a, equally likely, is a tanh(a x / sigma^2).
    apart, noise = 15.0, torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def share_at_a_point(lowest, heun):
        options = NoiseOptions(sigma_min=lowest, sigma_max=20.0)
        start, levels = start_scale(options) * noise, sampling_sigmas(2, options)
        drawn = sample(lambda x, sigma: apart * (apart * x / sigma**2).tanh(), start, levels, heun=heun)
        return (drawn.abs() > 0.99 * apart).double().mean().item()

    assert share_at_a_point(2.0, heun=False) < 0.96
    assert share_at_a_point(2.0, heun=True) > 0.999
