"""A policy in a batch of lanes: for a record of each episode, or for transitions in a store.

`play` measures: a lane plays one episode and then stands still, so that short episodes are not counted more often than
long ones; the policy goes on with the lanes that still run. `gather` collects: a lane whose episode ended begins the
next, until there are enough transitions (`seqwm.control.gathering` does the same round by round).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from seqwm.control.gathering import Gathering
from seqwm.control.lanes import Driver, Lanes, reset_lanes
from seqwm.core.protocols import Policy

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore

_SHOW_SECONDS = 0.5


class Progress(Protocol):
    """What a progress bar of tqdm can do and a run needs."""

    def update(self, n: float | None = 1) -> Any:
        """Count n more."""
        ...

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Say something beside the bar."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one episode went.

    Attributes:
        seed: the environment was reset with it.
        achieved: undiscounted return, summed in float64.
        length: transitions.
        terminated, truncated: its end; a step that is both is a termination.
    """

    seed: int
    achieved: float
    length: int
    terminated: bool
    truncated: bool


@torch.inference_mode()
def play(
    vector: Lanes,
    policy: Policy,
    seeds: Sequence[int],
    *,
    progress: Progress | None = None,
    watch: Callable[[], None] | None = None,
) -> list[Outcome]:
    """One whole episode in each of the first len(seeds) lanes, the outcomes in that order.

    Args:
        vector: at least as many lanes as seeds.
        policy: acts in the lanes that still run.
        seeds: lane i is reset with seeds[i].
        progress: counts episodes.
        watch: called after the reset and after every step.

    Raises:
        RolloutError: an environment raised, or an action was not a number.
    """
    lanes = len(seeds)
    achieved, lengths = np.zeros(lanes), np.zeros(lanes, np.int64)
    terminated, truncated = np.zeros(lanes, np.bool_), np.zeros(lanes, np.bool_)
    observation = reset_lanes(vector, dict(enumerate(seeds)))
    if watch:
        watch()
    running = np.arange(lanes)
    driver = Driver(vector, policy, lanes)
    rewards, first = np.zeros(lanes), np.ones(lanes, np.bool_)
    steps, shown = 0, time.monotonic()
    while len(running):
        actions = driver.act(running, observation, rewards[running], first)
        observation, rewards, *ends, _ = vector.step(actions)
        if watch:
            watch()
        achieved[running] += rewards[running]
        lengths[running] += 1
        steps += len(running)
        terminated[running], truncated[running] = (end[running] for end in ends)
        going = ~(terminated[running] | truncated[running])
        if not going.all():
            driver.keep(going)
            running = running[going]
            if progress:
                progress.update(int((~going).sum()))
        if progress and time.monotonic() - shown > _SHOW_SECONDS:
            shown = time.monotonic()
            progress.set_postfix_str(f"{steps:,} steps", refresh=True)
        first = np.zeros(len(running), np.bool_)
    truncated &= ~terminated
    return [
        Outcome(seed, float(achieved[i]), int(lengths[i]), bool(terminated[i]), bool(truncated[i]))
        for i, seed in enumerate(seeds)
    ]


@torch.inference_mode()
def gather(
    vector: Lanes,
    policy: Policy,
    store: TrajectoryStore,
    steps: int,
    *,
    seed: int,
    progress: Progress | None = None,
) -> None:
    """Add `steps` transitions to a store, episode by episode as they end; those still open at the end are cut.

    Episode k of lane i is reset with a seed made of (seed, i, k), kept in the episode's meta. What was collected is
    flushed to the store however this ends.

    Raises:
        RolloutError: an environment raised or gave what a store refuses (NaN, say), or an action was not a number.
    """
    gathering = Gathering(vector, store, seed)
    try:
        while steps > 0:
            recorded = min(steps, vector.num_envs)  # in the last round there may be more lanes than transitions wanted
            gathering.round(policy, recorded)
            steps -= recorded
            if progress:
                progress.update(recorded)
                progress.set_postfix_str(f"{len(store)} episodes", refresh=False)
    finally:
        gathering.cut()
        store.flush()
