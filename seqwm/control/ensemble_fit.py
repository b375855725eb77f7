"""Fit an ensemble to the transitions of a store: holdout by episode, early stopping, elites by validation error.

An episode is held out or not for good, by its number, so what is validated on was never learned from however often a
growing store is fitted again. Members learn from resamplings of their own, which are drawn once for each fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seqwm.core.errors import DataError
from seqwm.core.random import indices, torch_generator
from seqwm.core.tree import tree_map
from seqwm.core.types import Metrics
from seqwm.data.problems import Problem
from seqwm.data.store import TrajectoryStore
from seqwm.data.windows import for_torch
from seqwm.nn.ensemble_world import EnsembleWorld

_BLOCK = 5  # one episode of so many is held out
_VALIDATED = 5000  # rows of the holdout that are looked at, as MBPO does
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


def held_out(episodes: int, seed: int) -> list[int]:
    """The numbers of the episodes that are never learned from: one in each five, one of the first two among them."""
    blocks = np.arange(-(-episodes // _BLOCK), dtype=np.uint64)
    drawn = indices(seed, blocks, _BLOCK)
    drawn[:1] = indices(seed, blocks[:1], 2)
    return [int(number) for number in blocks.astype(np.int64) * _BLOCK + drawn if number < episodes]


def fit(world: EnsembleWorld, store: TrajectoryStore, options: FitOptions, seed: int, step: int) -> Metrics:
    """Go on from the weights there are; `seed` names the holdout, and with `step` every draw.

    Raises:
        DataError: fewer than two episodes, one of which is held out.
    """
    device, ensemble = world.input_mean.device, world.ensemble
    if len(store) < 2:
        mend = "collect more first (collect.prefill, collect.lanes), or name a source with more"
        expected = "at least two, one to validate on"
        raise DataError([Problem("too-few-episodes", f"{len(store)} episodes", expected, mend, str(store.path))])
    outside = held_out(len(store), seed)
    inside = [number for number in range(len(store)) if number not in outside]
    x, y = (part.to(device) for part in _rows(world, store, inside))
    x_out, y_out = (part.to(device) for part in _rows(world, store, outside))
    world.input_mean.copy_(x.mean(0))
    world.input_std.copy_(_deviation(x))
    world.output_mean.copy_(y.mean(0))
    world.output_std.copy_(_deviation(y))
    x, x_out = ((part - world.input_mean) / world.input_std for part in (x, x_out))
    y, y_out = ((part - world.output_mean) / world.output_std for part in (y, y_out))
    every = max(1, len(x_out) // _VALIDATED)
    x_out, y_out = x_out[::every], y_out[::every]

    generator = torch_generator(seed, step, device=device.type)
    members = ensemble.options.members
    own = torch.randint(len(x), (members, len(x)), generator=generator, device=device)
    optimiser = torch.optim.Adam(ensemble.parameters(), options.learning_rate, weight_decay=options.weight_decay)
    parameters = [*ensemble.weights, *ensemble.biases]
    best, errors = [p.detach().clone() for p in parameters], _errors(world, x_out, y_out)
    looks, done = 0, 0
    a_round = max(_ROUND, len(x) // options.batch_size)
    while looks < options.patience and done < options.most_steps:
        for _ in range(min(a_round, options.most_steps - done)):
            place = torch.randint(len(x), (members, options.batch_size), generator=generator, device=device)
            drawn = own.gather(1, place)
            optimiser.zero_grad(set_to_none=True)
            ensemble.loss(x[drawn], y[drawn]).backward()
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
    return {"validation_error": float(errors[ensemble.elites].mean()), "gradient_steps": done, "rows": len(x)}


def _rows(world: EnsembleWorld, store: TrajectoryStore, episodes: list[int]) -> tuple[Tensor, Tensor]:
    """Inputs [N, F + A] and outputs [N, F + 2] of the transitions of these episodes, in their own units."""
    inputs, outputs = [], []
    for number in episodes:
        episode = store.episode(number)
        rows = len(episode) if episode.final_observation else len(episode) - 1
        if rows < 1:
            continue
        seen = world.features(tree_map(lambda leaf: torch.from_numpy(for_torch(leaf)), episode.observations))
        acted = world.actions.features(tree_map(lambda leaf: torch.from_numpy(for_torch(leaf)), episode.actions))
        reward, ended = torch.from_numpy(episode.rewards), torch.zeros(len(episode))
        ended[-1] = float(episode.terminated)
        inputs.append(torch.cat([seen[:rows], acted[:rows]], 1))
        outputs.append(torch.cat([seen[1 : rows + 1] - seen[:rows], reward[:rows, None], ended[:rows, None]], 1))
    return torch.cat(inputs), torch.cat(outputs)


@torch.no_grad()
def _errors(world: EnsembleWorld, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of each member on the holdout, [M]."""
    errors: Tensor = (world.ensemble(x).mean - y).square().mean((1, 2))
    return errors


def _deviation(values: Tensor) -> Tensor:
    """Of each column; 1 where it is constant."""
    std = values.std(0, correction=0)
    return torch.where(std > 1e-6 * values.abs().amax(0).clamp_min(1e-3), std, 1.0)
