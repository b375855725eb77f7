"""How far a world model's predictions are from what happened: from logged contexts, under the logged actions.

The error at horizon h is that of the observation h steps behind the context: for a Box leaf the root of the mean square
in units of the data's standard deviation (1 is what predicting the mean gives), for images in shares of 255, for
categories the share that is wrong. `unchanged` is the same of repeating the last observation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium import spaces as gym_spaces
from numpy.typing import NDArray
from tqdm import tqdm

from seqwm.core.protocols import WorldModel
from seqwm.core.random import indices, torch_generator
from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.core.tree import flatten, unflatten
from seqwm.core.types import Array, State
from seqwm.data.store import TrajectoryStore
from seqwm.data.windows import Windows
from seqwm.evaluation.statistics import bootstrap_interval

_BATCH = 128


@dataclass(frozen=True, slots=True)
class Curve:
    """An error at horizons 1 to H.

    Attributes:
        unit: what 1 means.
        error, low, high: the model's, and the 95 % interval over contexts, [H].
        unchanged: that of the last observation, [H]; None for rewards.
    """

    unit: str
    error: list[float]
    low: list[float]
    high: list[float]
    unchanged: list[float] | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """Errors of every leaf of the observation, by its path, and of the reward where the logs have it.

    Attributes:
        contexts: how many of them reach each horizon before their log ends, [H].
        observations: by leaf.
        reward: in units of the data's standard deviation.
    """

    contexts: list[int]
    observations: dict[str, Curve]
    reward: Curve | None


@dataclass(frozen=True, slots=True)
class Rollouts:
    """N predictions beside what happened.

    Attributes:
        before: the last observation of each context, leaves [N, ...].
        predicted, happened: leaves [N, H, ...].
        predicted_rewards, happened_rewards: [N, H]; the latter None without rewards.
        there: bool [N, H], whether the log goes on that far.
    """

    before: dict[str, Array]
    predicted: dict[str, Array]
    happened: dict[str, Array]
    predicted_rewards: NDArray[np.float32]
    happened_rewards: NDArray[np.float32] | None
    there: NDArray[np.bool_]


def predict(
    world: WorldModel,
    windows: Windows,
    *,
    horizon: int,
    contexts: int,
    seed: int = 0,
    sample: bool = False,
) -> Rollouts:
    """Predictions of the logs behind contexts that are drawn from them.

    Args:
        world: to be measured.
        windows: of the logs, as long as the model reads.
        horizon: H.
        contexts: N.
        seed: names the contexts, and the draws where the world draws.
        sample: let the world draw; otherwise the likeliest happens.
    """
    store = windows.store
    rows = indices(seed, np.arange(contexts, dtype=np.uint64), store.rows)
    episodes = np.searchsorted(store.ends, rows, side="right")
    steps = rows - store.ends[episodes] + store.lengths[episodes]
    order = np.argsort(episodes, kind="stable")
    parts = []
    with tqdm(total=contexts * horizon, desc="predict", unit="step", disable=None) as bar:
        for number, some in enumerate(np.array_split(order, max(1, contexts // _BATCH))):
            generator = torch_generator(seed, number) if sample else None
            parts.append(_predicted(world, windows, episodes[some], steps[some], horizon, generator, bar))
    return Rollouts(**{name: _joined([getattr(part, name) for part in parts]) for name in Rollouts.__slots__})


def prediction_error(rollouts: Rollouts, store: TrajectoryStore) -> Prediction:
    """What predictions are worth at every horizon."""
    deviations = flatten(store.statistics.observation_std)
    curves = {}
    for path, space in leaf_spaces(store.spaces.observation).items():
        happened = rollouts.happened[path]
        unit, power = _unit(space), 1.0 if not isinstance(space, gym_spaces.Box) else 0.5
        errors = _errors(space, rollouts.predicted[path], happened, deviations.get(path))
        repeated = np.broadcast_to(rollouts.before[path][:, None], happened.shape)
        unchanged = _errors(space, repeated, happened, deviations.get(path))
        curves[path] = _curve(unit, errors, rollouts.there, power, unchanged)
    reward = None
    if rollouts.happened_rewards is not None:
        scale = store.statistics.reward_std or 1.0
        errors = ((rollouts.predicted_rewards - rollouts.happened_rewards).astype(np.float64) / scale) ** 2
        reward = _curve("standard deviations", errors, rollouts.there, 0.5, None)
    return Prediction(rollouts.there.sum(0).tolist(), curves, reward)


@torch.no_grad()
def _predicted(
    world: WorldModel,
    windows: Windows,
    episodes: NDArray[np.int64],
    steps: NDArray[np.int64],
    horizon: int,
    generator: torch.Generator | None,
    bar: tqdm[Any],
) -> Rollouts:
    device = torch.device(getattr(world, "device", "cpu"))
    state: State = world.encode(windows.gather(episodes, steps).to(device))
    logs = list(_logs(windows.store, episodes, steps, horizon))
    observations = {path: np.stack([log[0][path] for log in logs]) for path in logs[0][0]}
    actions = {path: np.stack([log[1][path] for log in logs]) for path in logs[0][1]}
    predicted, rewards = [], []
    for t in range(horizon):
        at = {path: leaf[:, t] for path, leaf in actions.items()}
        kinds = {path: leaf.astype(np.float32 if leaf.dtype.kind == "f" else np.int64) for path, leaf in at.items()}
        action = unflatten({path: torch.from_numpy(leaf).to(device) for path, leaf in kinds.items()})
        after = world.step(state, action, generator)
        state = after.state
        predicted.append({path: leaf.cpu().numpy() for path, leaf in flatten(world.decode(state)).items()})
        rewards.append(after.reward.cpu().numpy())
        bar.update(len(episodes))
    known = [log[2] for log in logs if log[2] is not None]
    return Rollouts(
        before={path: leaf[:, 0] for path, leaf in observations.items()},
        predicted={path: np.stack([one[path] for one in predicted], 1) for path in observations},
        happened={path: leaf[:, 1:] for path, leaf in observations.items()},
        predicted_rewards=np.stack(rewards, 1),
        happened_rewards=np.stack(known) if known else None,
        there=np.stack([log[3] for log in logs]),
    )


_Log = tuple[dict[str, Array], dict[str, Array], NDArray[np.float32] | None, NDArray[np.bool_]]


def _logs(
    store: TrajectoryStore, episodes: NDArray[np.int64], steps: NDArray[np.int64], horizon: int
) -> Iterator[_Log]:
    """Observations [H+1, ...], actions and rewards [H, ...] from each place on, the last repeated; what is there."""
    number, episode = -1, None
    for wanted, step in zip(episodes.tolist(), steps.tolist(), strict=True):
        if wanted != number or episode is None:
            number, episode = wanted, store.episode(wanted)
        last = len(episode) - 1
        acted = np.minimum(step + np.arange(horizon), last)
        seen = np.minimum(step + np.arange(horizon + 1), last + episode.final_observation)
        yield (
            {path: leaf[seen] for path, leaf in flatten(episode.observations).items()},
            {"": acted * 0}  # video without actions, which a world of it does not read
            if episode.actions is None
            else {path: leaf[acted] for path, leaf in flatten(episode.actions).items()},
            None if episode.rewards is None else episode.rewards[acted],
            step + 1 + np.arange(horizon) <= last + episode.final_observation,
        )


def _errors(space: Space[Any], found: Array, wanted: Array, deviation: Array | None) -> NDArray[np.float64]:
    """Squared errors, or whether a category is wrong, [N, H]; the mean over a leaf's entries."""
    if isinstance(space, gym_spaces.Box):
        scale = 255.0 if is_image(space) else np.asarray(1.0 if deviation is None else deviation, np.float64)
        errors = ((found.astype(np.float64) - wanted.astype(np.float64)) / scale) ** 2
    else:
        errors = (found != wanted).astype(np.float64)
    mean: NDArray[np.float64] = errors.reshape(*errors.shape[:2], -1).mean(-1)
    return mean


def _curve(
    unit: str,
    errors: NDArray[np.float64],
    there: NDArray[np.bool_],
    power: float,
    unchanged: NDArray[np.float64] | None,
) -> Curve:
    centre, low, high, still = [], [], [], []
    for h in np.flatnonzero(there.any(0)):
        here = errors[there[:, h], h]
        mean = float(here.mean())
        interval = bootstrap_interval(here) or (mean, mean)
        centre.append(mean**power)
        low.append(interval[0] ** power)
        high.append(interval[1] ** power)
        if unchanged is not None:
            still.append(float(unchanged[there[:, h], h].mean()) ** power)
    return Curve(unit, centre, low, high, still if unchanged is not None else None)


def _unit(space: Space[Any]) -> str:
    if is_image(space):
        return "shares of 255"
    return "standard deviations" if isinstance(space, gym_spaces.Box) else "share wrong"


def _joined(parts: list[Any]) -> Any:
    if parts[0] is None:
        return None
    if isinstance(parts[0], dict):
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)
