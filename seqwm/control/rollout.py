"""The only place that steps environments: a policy in a batch of lanes, for a record of each episode or into a store.

Two ways to run. `play` measures: a lane plays one episode and then stands still, so that short episodes are not counted
more often than long ones; the policy goes on with the lanes that still run. `gather` collects: a lane whose episode
ended begins the next, until there are enough transitions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from gymnasium import Space, spaces
from gymnasium.vector.utils import create_empty_array
from numpy.typing import NDArray

from seqwm.core.errors import DataError, RolloutError
from seqwm.core.protocols import Policy
from seqwm.core.random import key
from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.core.tree import flatten, tree_map, unflatten
from seqwm.core.types import State, TensorTree, Tree

if TYPE_CHECKING:
    from seqwm.data.lane import Lane
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


class Lanes(Protocol):
    """Environments side by side, each standing still from its end to its reset: real ones or dreams."""

    num_envs: int
    name: str
    single_observation_space: Space[Any]
    single_action_space: Space[Any]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tree, dict[str, Any]]:
        """Begin an episode in the lanes of `options['reset_mask']`; observations [B, ...]."""
        ...

    def step(
        self, actions: Tree
    ) -> tuple[Tree, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Observations (leaves [B, ...]), rewards, terminations, truncations [B]."""
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
    observation = _reset(vector, dict(enumerate(seeds)))
    if watch:
        watch()
    running = np.arange(lanes)
    driver = _Driver(vector, policy, lanes)
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
    everyone = np.arange(vector.num_envs)
    lanes = [store.lane() for _ in everyone]
    played = np.zeros(vector.num_envs, np.int64)
    first = np.ones(vector.num_envs, np.bool_)
    rewards = np.zeros(vector.num_envs)
    driver = _Driver(vector, policy, vector.num_envs)
    try:
        while steps > 0:
            if first.any():
                starting = {int(lane): key(seed, int(lane), int(played[lane])) >> 33 for lane in np.flatnonzero(first)}
                observation = _reset(vector, starting)
                for number, own in starting.items():
                    lanes[number].reset(_row(observation, number), seed=own)
            actions = driver.act(everyone, observation, rewards, first)
            observation, rewards, terminated, truncated, _ = vector.step(actions)
            recorded = min(steps, len(lanes))  # in the last round there may be more lanes than transitions wanted
            for i in range(recorded):
                end = bool(terminated[i]), bool(truncated[i])
                try:
                    lanes[i].step(_row(actions, i), float(rewards[i]), _row(observation, i), *end)
                except DataError as error:
                    raise RolloutError(f"{vector.name}: lane {i}: its episode was refused: {error}", lane=i) from error
            steps -= recorded
            first = terminated | truncated
            played += first
            if progress:
                progress.update(recorded)
                progress.set_postfix_str(f"{len(store)} episodes", refresh=False)
        for lane in lanes:
            lane.cut()
    except BaseException:
        _save_what_is_there(lanes)
        raise
    finally:
        store.flush()


class _Driver:
    """Carries observations to a policy and its actions to the environments, and the policy's state between them."""

    def __init__(self, vector: Lanes, policy: Policy, lanes: int) -> None:
        self._vector, self._policy = vector, policy
        self._state: State = policy.initial(lanes)
        self._device = next((tensor.device for tensor in self._state.values()), torch.device("cpu"))
        self._images = {path: is_image(leaf) for path, leaf in leaf_spaces(vector.single_observation_space).items()}

    def keep(self, going: NDArray[np.bool_]) -> None:
        """Go on with those lanes of the last `act` where `going` is True."""
        index = torch.from_numpy(np.flatnonzero(going)).to(self._device)
        self._state = {name: tensor.index_select(0, index) for name, tensor in self._state.items()}

    def act(
        self, running: NDArray[np.int64], observation: Tree, rewards: NDArray[np.float64], first: NDArray[np.bool_]
    ) -> Tree:
        """Actions for all lanes (zero in those that stand still) from what the running ones see.

        Args:
            running: numbers of the lanes that run, [R].
            observation: of all lanes, leaves [B, ...].
            rewards, first: of the running lanes, [R].
        """
        action, self._state = self._policy.act(
            self._state,
            self._tensors(observation, running),
            torch.from_numpy(rewards.astype(np.float32)).to(self._device),
            torch.from_numpy(first).to(self._device),
        )
        space = self._vector.single_action_space
        actions: Any = create_empty_array(space, self._vector.num_envs, fn=np.zeros)
        chosen, known = flatten(action), leaf_spaces(space)
        for path, leaf in flatten(actions).items():
            leaf[running] = self._usable(chosen[path].cpu().numpy(), known[path], running)
        tree: Tree = actions
        return tree

    def _tensors(self, observation: Tree, running: NDArray[np.int64]) -> TensorTree:
        """The leaves as a `Batch` has them: float32, int64, or uint8 for images."""
        leaves = {}
        for path, leaf in flatten(observation).items():
            own = leaf[running]
            if not self._images[path]:
                own = own.astype(np.float32 if own.dtype.kind == "f" else np.int64, copy=False)
            leaves[path] = torch.from_numpy(own).to(self._device)
        tree: TensorTree = unflatten(leaves)
        return tree

    def _usable(self, chosen: NDArray[Any], space: Any, running: NDArray[np.int64]) -> NDArray[Any]:
        """A leaf of actions that the environments take: numbers, and those of a Box within its bounds."""
        if not isinstance(space, spaces.Box):
            return chosen
        if not np.isfinite(chosen).all():
            lane = int(running[~np.isfinite(chosen).reshape(len(chosen), -1).all(1)][0])
            raise RolloutError(
                f"{self._vector.name}: lane {lane}: the policy's action is not finite; were the weights trained with "
                "losses that were, and are the observations of the kind that it was trained on?"
            )
        clipped: NDArray[Any] = np.clip(chosen, space.low, space.high)
        return clipped


def _reset(vector: Lanes, seeds: dict[int, int]) -> Tree:
    """Begin an episode in the lanes that are named, each with its seed; the observations of all lanes."""
    mask = np.zeros(vector.num_envs, np.bool_)
    mask[list(seeds)] = True
    observation, _ = vector.reset(seed=[seeds.get(i) for i in range(vector.num_envs)], options={"reset_mask": mask})
    return observation


def _row(tree: Tree, lane: int) -> Tree:
    row: Tree = tree_map(lambda leaf: leaf[lane], tree)
    return row


def _save_what_is_there(lanes: Sequence[Lane]) -> None:
    """Cut all lanes; one that holds what the store refuses (and so may be what failed) is left out."""
    for lane in lanes:
        with suppress(DataError):
            lane.cut()
