"""Fit an ensemble to the transitions of a store: holdout by episode, early stopping, elites by validation error.

An episode is held out or not for good, by its number, so what is validated on was never learned from however often a
growing store is fitted again. Outputs count by how much better they get, down to a hundredth of their deviation: in a
plain mean one that cannot be foretold (reward and end often cannot) would hide that the others are still being learned,
and the fit would stop. Members learn from resamplings of their own, which are drawn once for each fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from seqwm.control.experience import Experience, lived
from seqwm.core.errors import DataError, RecipeError
from seqwm.core.random import indices, torch_generator
from seqwm.core.types import Metrics
from seqwm.data.problems import Problem
from seqwm.data.store import TrajectoryStore
from seqwm.nn import ends, rewards
from seqwm.nn.ensemble_world import EnsembleWorld

if TYPE_CHECKING:
    from seqwm.training.options import TrainOptions

_BLOCK = 5  # one episode of so many is held out
_VALIDATED = 5000  # rows of the holdout that are looked at, as MBPO does
_EXACT = 1e-4  # squared error, in variances of the output, below which getting better counts no more
_ROUND = 50  # gradient steps between two looks, at least


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """How long a fit goes on.

    Attributes:
        patience: looks at the holdout without a gain of one percent for any member, before it stops.
        most_steps: gradient steps, at most.
        learning_rate, weight_decay, batch_size: of Adam, begun anew by each fit.
    """

    patience: int = 5
    most_steps: int = 5000
    learning_rate: float = 1e-3
    weight_decay: float = 5e-5
    batch_size: int = 256


def refuse_precision(train: TrainOptions, instead: str) -> None:
    """What learns with an ensemble has no use for `train.precision`; `instead` names what it has in its place.

    Raises:
        RecipeError: it is another than float32.
    """
    if train.precision != "float32":
        raise RecipeError(f"train.precision: found {train.precision}, expected none here; {instead}")


def held_out(episodes: int, seed: int) -> list[int]:
    """The numbers of the episodes that are never learned from: one in each five, one of the first two among them."""
    blocks = np.arange(-(-episodes // _BLOCK), dtype=np.uint64)
    drawn = indices(seed, blocks, _BLOCK)
    drawn[:1] = indices(seed, blocks[:1], 2)
    return [int(number) for number in blocks.astype(np.int64) * _BLOCK + drawn if number < episodes]


def fit(world: EnsembleWorld, store: TrajectoryStore, options: FitOptions, seed: int, step: int) -> Metrics:
    """Go on from the weights there are; `seed` names the holdout, and with `step` every draw.

    Raises:
        DataError: fewer than two episodes, one of which is held out; or more than one row in a hundred contradicts an
            end or a reward that is written by hand.
    """
    rows = [lived(world, episode) for episode in store.episodes()]
    numbers = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(one) for one in rows], dtype=torch.int64))
    return fit_rows(world, torch.cat([world.input_mean.new_zeros(0), *rows]), numbers, options, seed, step, store.path)


def fit_rows(
    world: EnsembleWorld,
    rows: Tensor,
    numbers: Tensor,
    options: FitOptions,
    seed: int,
    step: int,
    path: Path | None = None,
) -> Metrics:
    """As `fit`, to rows of a table (`seqwm.control.experience`), [N, ...], of episodes with these numbers, int64 [N].

    Raises:
        DataError: as `fit`; `path` stands in it.
    """
    device, ensemble = world.input_mean.device, world.ensemble
    episodes = int(numbers.max()) + 1 if len(numbers) else 0
    if episodes < 2:
        mend = "collect more first (collect.prefill, collect.lanes), or name a source with more"
        expected = "at least two, one to validate on"
        raise DataError([Problem("too-few-episodes", f"{episodes} episodes", expected, mend, str(path))])
    contradictions = _contradictions(world, rows)
    outside = torch.isin(numbers, torch.tensor(held_out(episodes, seed))).to(device)
    steps = Experience.unpacked(rows, world.size)
    inputs = torch.cat([steps.observation, steps.action], 1)
    earned = torch.stack([steps.reward, steps.terminated], 1)
    outputs = torch.cat([steps.following - steps.observation, earned], 1)
    x, y, x_out, y_out = inputs[~outside], outputs[~outside], inputs[outside], outputs[outside]
    world.input_mean.copy_(_centre(x))
    world.input_std.copy_(_deviation(x))
    world.output_mean.copy_(_centre(y))
    world.output_std.copy_(_deviation(y))
    world.output_mean[-1], world.output_std[-1] = 0.0, 1.0  # the end is a flag
    x, x_out = ((part - world.input_mean) / world.input_std for part in (x, x_out))
    y, y_out = ((part - world.output_mean) / world.output_std for part in (y, y_out))
    every = max(1, len(x_out) // _VALIDATED)
    x_out, y_out = x_out[::every], y_out[::every]

    generator = torch_generator(seed, step, device=device.type)
    members = ensemble.options.members
    own = torch.randint(len(x), (members, len(x)), generator=generator, device=device)
    rate, decay = options.learning_rate, options.weight_decay
    optimiser = torch.optim.Adam(ensemble.parameters(), rate, weight_decay=decay, fused=True)
    parameters = [*ensemble.weights, *ensemble.biases]
    best, errors = [p.detach().clone() for p in parameters], _errors(world, x_out, y_out)
    looks, done = 0, 0
    a_round = max(_ROUND, len(x) // options.batch_size)
    while looks < options.patience and done < options.most_steps:
        for _ in range(min(a_round, options.most_steps - done)):
            place = torch.randint(len(x), (members, options.batch_size), generator=generator, device=device)
            drawn = own.gather(1, place)
            ensemble.learn(x[drawn], y[drawn])
            optimiser.step()
            done += 1
        looked = _errors(world, x_out, y_out)
        better = looked < 0.99 * errors
        errors = torch.where(better, looked, errors)
        for saved, p in zip(best, parameters, strict=True):
            saved.copy_(torch.where(better[:, None, None], p.detach(), saved))
        looks = 0 if bool(better.any()) else looks + 1
    for saved, p in zip(best, parameters, strict=True):
        p.data.copy_(saved)
    ensemble.choose_elites(errors)
    return {
        "validation_error": float(errors[ensemble.elites].mean()),
        "gradient_steps": done,
        "rows": len(x),
        "constant_columns": int((x == 0).all(0).sum()),  # of observations and actions; the model cannot know them
        **contradictions,
    }


def _contradictions(world: EnsembleWorld, rows: Tensor) -> Metrics:
    """The shares of rows that speak against what is written by hand.

    Raises:
        DataError: one is above a hundredth.
    """
    steps, shares = Experience.unpacked(rows, world.size), {}
    if world.ends is not None:
        shares["ends_contradicted"] = ends.contradicted(world.ends, steps.following, steps.terminated > 0)
    if world.rewards is not None:
        parts = steps.observation, steps.action, steps.following, steps.reward
        shares["rewards_contradicted"] = rewards.contradicted(world.rewards, *parts)
    return shares


@torch.no_grad()
def _errors(world: EnsembleWorld, x: Tensor, y: Tensor) -> Tensor:
    """The geometric mean over outputs of each member's squared error on the holdout, [M]."""
    squared = (world.ensemble(x).expected() - y).square().mean(1)
    errors: Tensor = squared.clamp_min(_EXACT).log().mean(1).exp()
    return errors


def _centre(values: Tensor) -> Tensor:
    """The mean of each column; the value itself, not a rounded mean, where it is constant."""
    return torch.where((values == values[0]).all(0), values[0], values.mean(0))


def _deviation(values: Tensor) -> Tensor:
    """Of each column; 1 where it is constant."""
    std = values.std(0, correction=0)
    return torch.where(std > 1e-6 * values.abs().amax(0).clamp_min(1e-3), std, 1.0)
