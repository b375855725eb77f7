"""Measuring what a policy achieves: every target with every seed, side by side in one batch of environments.

    print(seqwm.evaluate(model, "CartPole-v1", targets=[100, 300, 500], episodes=20, seed=0))

Every episode is kept with its seed; figures are derived from the episodes and never the other way.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from seqwm.control.rollout import Outcome, play
from seqwm.core.protocols import Policy
from seqwm.core.spaces import space_from_json
from seqwm.core.types import Spaces
from seqwm.envs.make import make_vector
from seqwm.evaluation.references import Reference, reference
from seqwm.evaluation.statistics import bootstrap_interval, iqm

Target: TypeAlias = float | None


class Model(Protocol):
    """What the methods build, as far as acting goes."""

    return_conditioned: bool
    config: Any

    def policy(self, target_returns: Sequence[float] | None = None) -> Policy:
        """What acts, in lane i for target i."""
        ...


@dataclass(frozen=True, slots=True)
class Summary:
    """The episodes of one target.

    Attributes:
        target: the return that was asked for; None where the policy takes none.
        episodes: how many.
        mean, std, median, iqm, min, max: of their undiscounted returns; the std is that of the sample (n - 1).
        interval: 95 % of the mean, percentile bootstrap; None for one episode.
        score: of the mean, where a reference is named.
    """

    target: Target
    episodes: int
    mean: float
    std: float
    median: float
    iqm: float
    interval: tuple[float, float] | None
    min: float
    max: float
    score: float | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a policy achieved.

    Attributes:
        environment: its Gymnasium id.
        options: keyword arguments that it was made with.
        records: target and outcome of every episode, target by target, in the order of the seeds.
        reference: the pair of returns behind the scores, where one was named.
    """

    environment: str
    records: tuple[tuple[Target, Outcome], ...]
    options: Mapping[str, Any]
    reference: Reference | None = None

    @property
    def targets(self) -> list[Target]:
        """Each target once, in the order that they were asked for."""
        return list(dict.fromkeys(target for target, _ in self.records))

    def returns(self, target: Target) -> NDArray[np.float64]:
        """Undiscounted returns of the episodes of a target, [N]."""
        return np.array([outcome.achieved for own, outcome in self.records if own == target])

    def summary(self, target: Target) -> Summary:
        """What the episodes of a target say together."""
        achieved = self.returns(target)
        mean = float(achieved.mean())
        return Summary(
            target=target,
            episodes=len(achieved),
            mean=mean,
            std=float(achieved.std(ddof=1)) if len(achieved) > 1 else 0.0,
            median=float(np.median(achieved)),
            iqm=float(iqm(achieved)),
            interval=bootstrap_interval(achieved),
            min=float(achieved.min()),
            max=float(achieved.max()),
            score=self.reference.score(mean) if self.reference else None,
        )

    @property
    def summaries(self) -> list[Summary]:
        """One for each target."""
        return [self.summary(target) for target in self.targets]

    @property
    def calibration_error(self) -> float | None:
        """How far from the target the mean achieved return is, on average over targets; None without targets."""
        distances = [abs(one.mean - one.target) for one in self.summaries if one.target is not None]
        return float(np.mean(distances)) if distances else None

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON; `from_json` reads the episodes, and the rest is for people and other programs."""
        summaries = [{name: getattr(one, name) for name in Summary.__slots__} for one in self.summaries]
        return {
            "environment": self.environment,
            "options": dict(self.options),
            "reference": self.reference.name if self.reference else None,
            "calibration_error": self.calibration_error,
            "summaries": summaries,
            "episodes": [
                {
                    "target": target,
                    "seed": outcome.seed,
                    "return": outcome.achieved,
                    "length": outcome.length,
                    "terminated": outcome.terminated,
                    "truncated": outcome.truncated,
                }
                for target, outcome in self.records
            ],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Evaluation:
        """The evaluation that `to_json` was asked of."""
        records = tuple(
            (
                one["target"],
                Outcome(one["seed"], one["return"], one["length"], one["terminated"], one["truncated"]),
            )
            for one in value["episodes"]
        )
        named = value["reference"]
        return cls(value["environment"], records, value["options"], reference(named) if named else None)

    def save(self, path: str | Path) -> None:
        """Write the JSON to a file, whole or not at all."""
        from seqwm.core.files import write_atomically

        write_atomically(Path(path), (json.dumps(self.to_json(), indent=1) + "\n").encode())

    def __str__(self) -> str:
        """A table, one line a target."""
        named = f", scores by {self.reference.name}" if self.reference else ""
        lines = [f"{self.environment}, {len(self.records)} episodes{named}", _HEADER + " score" * bool(named)]
        for one in self.summaries:
            target = "-" if one.target is None else f"{one.target:g}"
            interval = f"[{one.interval[0]:.4g}, {one.interval[1]:.4g}]" if one.interval else "-"
            numbers = "".join(f"{value:>10.4g}" for value in (one.median, one.iqm, one.min, one.max))
            score = "" if one.score is None else f"{one.score:>6.1f}"
            lines.append(f"{target:>10}{one.mean:>10.4g} {interval:>20}{numbers}{score}")
        if self.calibration_error is not None:
            lines.append(f"calibration error {self.calibration_error:.4g} (mean distance from the target)")
        return "\n".join(lines)


_HEADER = f"{'target':>10}{'mean':>10} {'95 % interval':>20}{'median':>10}{'iqm':>10}{'min':>10}{'max':>10}"


def evaluate(
    model: Model | Policy,
    environment: str,
    *,
    targets: Sequence[float] | None = None,
    episodes: int = 20,
    seed: int = 0,
    lanes: int = 256,
    options: Mapping[str, Any] | None = None,
    reference: Reference | None = None,
    progress: bool = True,
) -> Evaluation:
    """Play `episodes` episodes for each target and keep what each of them achieved.

    Args:
        model: of one of the methods, or any policy.
        environment: a registered Gymnasium id.
        targets: target returns, in the data's units; not used where the model takes none.
        episodes: for each target; episode k is reset with seed + k, the same seeds for every target.
        seed: the first.
        lanes: the most environments side by side.
        options: keyword arguments of the environment.
        reference: gives normalised scores besides the raw returns.
        progress: show a bar.

    Raises:
        UnfitEnvironmentError: the environment cannot be built, or its spaces are not the model's.
        RolloutError: it raised, or an action was not a number.
        ValueError: no targets for a model that is conditioned on returns, or no episodes.
    """
    if episodes < 1:
        raise ValueError(f"episodes: found {episodes}, expected at least 1")
    asked = _targets(model, targets)
    jobs = list(itertools.product(asked, range(seed, seed + episodes)))
    vector = make_vector(environment, min(lanes, len(jobs)), spaces=model_spaces(model), options=options)
    records: list[tuple[Target, Outcome]] = []
    try:
        with tqdm(
            total=len(jobs), desc=f"evaluate {environment}", unit="episode", disable=None if progress else True
        ) as bar:
            for first in range(0, len(jobs), vector.num_envs):
                part = jobs[first : first + vector.num_envs]
                policy = acting(model, [target for target, _ in part])
                outcomes = play(vector, policy, [own for _, own in part], progress=bar)
                records += [(target, outcome) for (target, _), outcome in zip(part, outcomes, strict=True)]
    finally:
        vector.close()
    return Evaluation(environment, tuple(records), dict(options or {}), reference)


def acting(model: Model | Policy, targets: Sequence[Target]) -> Policy:
    """The policy of a model in lanes that have these targets; a policy is its own."""
    if isinstance(model, Policy):
        return model
    wanted = [target for target in targets if target is not None]
    return model.policy(target_returns=wanted) if model.return_conditioned else model.policy()


def spread_targets(returns: NDArray[np.float64], count: int = 5) -> tuple[float, ...]:
    """Target returns spread evenly over the upper half of a log's returns, from the median to the best."""
    spread = np.linspace(np.median(returns), np.max(returns), count)
    return tuple(dict.fromkeys(float(f"{target:.6g}") for target in spread))


def _targets(model: Model | Policy, targets: Sequence[float] | None) -> list[Target]:
    if isinstance(model, Policy) or not model.return_conditioned:
        return [None]
    if not targets:
        raise ValueError(
            "targets: found none, expected target returns, for this model acts by them (those of its data, for example)"
        )
    return [float(target) for target in dict.fromkeys(targets)]


def model_spaces(model: Model | Policy) -> Spaces | None:
    """The spaces that a model was trained on; None for a policy, which is taken to know its environment."""
    if isinstance(model, Policy):
        return None
    config = model.config
    return Spaces(space_from_json(config.observation_space), space_from_json(config.action_space))
