"""Diffusion in the form of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (EDM),
2022.

What is diffused has standard deviation SIGMA_DATA. A network F sees it scaled by c_in and the noise level as c_noise;
what is denoised is D(x; sigma) = c_skip x + c_out F(c_in x; c_noise). The four make input and target of F have unit
variance at every sigma (their equation 7, and table 1).

`heun=False` in `sample` is Euler, one call of D for each step; with it there are two but in the last step. DIAMOND
(Alonso et al., 2024) takes three Euler steps from sigma 5; grid and Euler step equal diffusers' EDMEulerScheduler.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SIGMA_DATA = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseOptions:
    """Noise levels in training and in sampling.

    Attributes:
        sigma_min, sigma_max: of sampling, and the bounds in training.
        rho: how the levels of sampling lie between them, equation 5.
        log_mean, log_deviation: of ln sigma in training.
    """

    sigma_min: float = 2e-3
    sigma_max: float = 5.0
    rho: float = 7.0
    log_mean: float = -0.4
    log_deviation: float = 1.2

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_max: found {self.sigma_max}, expected more than sigma_min {self.sigma_min} > 0")


@dataclass(frozen=True, slots=True)
class Preconditioning:
    """The four scales at a noise level, each of its shape."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor


def precondition(sigma: Tensor, deviation: Tensor | float = SIGMA_DATA) -> Preconditioning:
    """c_skip, c_out, c_in and c_noise of noise levels on data of a standard deviation."""
    variance = deviation**2
    total = (sigma.square() + variance).sqrt()
    return Preconditioning(
        skip=variance / total.square(),
        out=sigma * deviation / total,
        into=1 / total,
        noise=sigma.log() / 4,
    )


def training_sigmas(shape: tuple[int, ...], options: NoiseOptions, device: torch.device) -> Tensor:
    """Log-normal noise levels within the bounds, drawn from torch's default generator."""
    drawn = (options.log_mean + options.log_deviation * torch.randn(shape, device=device)).exp()
    return drawn.clamp(options.sigma_min, options.sigma_max)


def sampling_sigmas(steps: int, options: NoiseOptions) -> list[float]:
    """The noise levels of `steps` steps from sigma_max to sigma_min, and 0 behind them."""
    high, low = options.sigma_max ** (1 / options.rho), options.sigma_min ** (1 / options.rho)
    shares = [i / (steps - 1) if steps > 1 else 0.0 for i in range(steps)]
    return [(high + share * (low - high)) ** options.rho for share in shares] + [0.0]


def start_scale(options: NoiseOptions) -> float:
    """What the noise that sampling starts from is multiplied by; diffusers' `init_noise_sigma`."""
    return math.sqrt(options.sigma_max**2 + 1)


def sample(denoise: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: list[float], *, heun: bool = False) -> Tensor:
    """Follow dx/dsigma = (x - D(x; sigma)) / sigma from the first noise level to the last.

    Args:
        denoise: D, of a sample and its noise level.
        x: the sample at sigmas[0].
        sigmas: falling; the last may be 0.
        heun: average the slopes at both ends of each step, but not where the last level is 0 (their algorithm 1).
    """
    for here, there in itertools.pairwise(sigmas):
        denoised = denoise(x, here)
        slope = (x - denoised) / here
        ahead = x + (there - here) * slope
        if heun and there > 0:
            slope = (slope + (ahead - denoise(ahead, there)) / there) / 2
            ahead = x + (there - here) * slope
        x = ahead
    return x
