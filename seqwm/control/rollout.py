"""The only place that steps environments: a policy in a batch of lanes, for a record of each episode or into a store.

Two ways to run. `play` measures: a lane plays one episode and then stands still, so that short episodes are not counted
more often than long ones; the policy goes on with the lanes that still run. `gather` collects: a lane whose episode
ended begins the next, until there are enough transitions. `Gathering` is the same round by round, for training between
them, and can be brought back in another process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

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
from seqwm.core.types import Episode, State, TensorTree, Tree

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


@runtime_checkable
class Restorable(Protocol):
    """Environments whose state can be saved."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors in nested dicts, and JSON scalars."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Tree:
        """Go on from there; the observations of all lanes."""
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


@dataclass(frozen=True, slots=True)
class Transitions:
    """What happened in all lanes in one round, lane first.

    Attributes:
        observations, following: leaves [B, ...], before and after the action.
        actions: leaves [B, ...], as the environments took them.
        rewards: float64 [B].
        terminated, truncated: bool [B]; where both, the task ended.
        first: bool [B], where `observations` begin an episode.
    """

    observations: Tree
    actions: Tree
    rewards: NDArray[np.float64]
    following: Tree
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    first: NDArray[np.bool_]


class Gathering:
    """Episode after episode in every lane, into a store as they end, for as long as rounds are asked for.

    Episode k of lane i is reset with a seed made of (seed, i, k). So what is under way can be brought back in another
    process, where an environment's own state cannot be: by resetting it with the same seed and taking the same actions
    again (`load_state_dict`). Environments that tell their state (`Restorable`, a dream) are given it back.
    """

    def __init__(self, vector: Lanes, store: TrajectoryStore, seed: int) -> None:
        self._vector, self._seed = vector, seed
        self._everyone = np.arange(vector.num_envs)
        self._lanes = [store.lane() for _ in self._everyone]
        self._played = np.zeros(vector.num_envs, np.int64)
        self._first = np.ones(vector.num_envs, np.bool_)
        self._rewards = np.zeros(vector.num_envs)
        self._observation: Tree = {}
        self._driver: _Driver | None = None
        self._policy_state: State | None = None

    @torch.inference_mode()
    def round(self, policy: Policy, recorded: int | None = None) -> Transitions:
        """One step of every lane, those at an end beginning anew first; the first `recorded` lanes go into the store.

        A policy that is another than the last round's goes on with the state of that one.

        Raises:
            RolloutError: an environment raised or gave what a store refuses, or an action was not a number.
        """
        first = self._first.copy()
        if first.any():
            starting = {lane: self._episode_seed(lane) for lane in np.flatnonzero(first).tolist()}
            self._observation = _reset(self._vector, starting)
            for lane, own in starting.items():
                self._lanes[lane].reset(_row(self._observation, lane), seed=own)
        before = self._observation
        driver = self._driver = self._driver or _Driver(self._vector, policy, self._vector.num_envs)
        state = self._policy_state or driver.state
        driver.policy, driver.state = policy, {name: tensor.to(driver.device) for name, tensor in state.items()}
        actions = driver.act(self._everyone, before, self._rewards, first)
        following, rewards, terminated, truncated, _ = self._vector.step(actions)
        self._observation, self._rewards, self._policy_state = following, rewards, driver.state
        self._first = terminated | truncated
        self._played += self._first
        refused: tuple[int, DataError] | None = None
        for lane in range(self._vector.num_envs if recorded is None else recorded):
            end = bool(terminated[lane]), bool(truncated[lane])
            try:
                self._lanes[lane].step(_row(actions, lane), float(rewards[lane]), _row(following, lane), *end)
            except DataError as error:
                refused = lane, error
        if refused:
            lane, cause = refused
            raise RolloutError(f"{self._vector.name}: lane {lane}: its episode was refused: {cause}", lane) from cause
        return Transitions(before, actions, rewards, following, terminated, truncated, first)

    def cut(self, lane: int | None = None) -> None:
        """End the episodes under way, or that of one lane, which goes on with the next one.

        One that holds what the store refuses (and so may be what failed) is left out.
        """
        for number in self._everyone.tolist() if lane is None else [lane]:
            with suppress(DataError):
                self._lanes[number].cut()
            self._played[number] += not self._first[number] or lane is not None
            self._first[number] = True

    def state_dict(self) -> dict[str, Any]:
        """The episodes under way and how many were before them, and the policy's state."""
        lanes = {}
        for number, lane in enumerate(self._lanes):
            episode = lane.running()
            if episode is not None:
                parts = {"observations": episode.observations, "actions": episode.actions, "rewards": episode.rewards}
                lanes[str(number)] = {
                    **{name: tree_map(torch.from_numpy, tree) for name, tree in parts.items()},
                    "last_reward": float(self._rewards[number]),
                }
        state = {"played": self._played.tolist(), "lanes": lanes, "policy": dict(self._policy_state or {})}
        return state | ({"environments": self._vector.state_dict()} if isinstance(self._vector, Restorable) else {})

    def load_state_dict(self, state: dict[str, Any]) -> list[int]:
        """Go on from what `state_dict` gave: every episode under way is played again, as it was logged.

        Returns the lanes whose environments did not do again what they had done: they are not functions of seed and
        actions. Their episodes are cut where they were, and the next ones begin.
        """
        self._played = np.array(state["played"], np.int64)
        self._first[:] = True
        self._policy_state = flatten(state.get("policy", {})) or None  # names with slashes came back as trees
        logs = {}
        for number, parts in state.get("lanes", {}).items():
            observations, actions, rewards = (
                tree_map(lambda leaf: leaf.numpy(), parts[name]) for name in ("observations", "actions", "rewards")
            )
            lane, meta = int(number), {"seed": self._episode_seed(int(number))}
            logs[lane] = Episode(observations, actions, rewards, False, False, meta=meta)
            self._lanes[lane].resume(logs[lane])
            self._rewards[lane], self._first[lane] = parts["last_reward"], False
        if isinstance(self._vector, Restorable):
            self._observation = self._vector.load_state_dict(state["environments"])
            return []
        strayed = self._replay(logs)
        for lane in strayed:
            self.cut(lane)
        return strayed

    def _replay(self, logs: Mapping[int, Episode]) -> list[int]:
        """Play the logs so that all end at the same time; the lanes in which something else happened."""
        strayed = set()
        longest = max((len(log) for log in logs.values()), default=0)
        for time_left in range(longest, -1, -1):
            begun = {lane: self._episode_seed(lane) for lane, log in logs.items() if len(log) == time_left}
            if begun:
                self._observation = _reset(self._vector, begun)
            for lane, log in logs.items():
                at = len(log) - time_left
                if at >= 0 and not _equal(_row(self._observation, lane), _row(log.observations, at)):
                    strayed.add(lane)
            if not time_left:
                break
            actions: Any = create_empty_array(self._vector.single_action_space, self._vector.num_envs, fn=np.zeros)
            running = [lane for lane, log in logs.items() if len(log) >= time_left]
            for lane in running:
                for path, leaf in flatten(actions).items():
                    leaf[lane] = flatten(logs[lane].actions)[path][len(logs[lane]) - time_left]
            self._observation, rewards, *ends, _ = self._vector.step(actions)
            for lane in running:
                wanted = logs[lane].rewards
                assert wanted is not None
                if np.float32(rewards[lane]) != wanted[len(logs[lane]) - time_left] or ends[0][lane] or ends[1][lane]:
                    strayed.add(lane)
        return sorted(strayed)

    def _episode_seed(self, lane: int) -> int:
        return key(self._seed, lane, int(self._played[lane])) >> 33


class _Driver:
    """Carries observations to a policy and its actions to the environments, and the policy's state between them."""

    def __init__(self, vector: Lanes, policy: Policy, lanes: int) -> None:
        self._vector, self.policy = vector, policy
        self.state: State = policy.initial(lanes)
        self.device = next((tensor.device for tensor in self.state.values()), torch.device("cpu"))
        self._images = {path: is_image(leaf) for path, leaf in leaf_spaces(vector.single_observation_space).items()}

    def keep(self, going: NDArray[np.bool_]) -> None:
        """Go on with those lanes of the last `act` where `going` is True."""
        index = torch.from_numpy(np.flatnonzero(going)).to(self.device)
        self.state = {name: tensor.index_select(0, index) for name, tensor in self.state.items()}

    def act(
        self, running: NDArray[np.int64], observation: Tree, rewards: NDArray[np.float64], first: NDArray[np.bool_]
    ) -> Tree:
        """Actions for all lanes (zero in those that stand still) from what the running ones see.

        Args:
            running: numbers of the lanes that run, [R].
            observation: of all lanes, leaves [B, ...].
            rewards, first: of the running lanes, [R].
        """
        action, self.state = self.policy.act(
            self.state,
            self._tensors(observation, running),
            torch.from_numpy(rewards.astype(np.float32)).to(self.device),
            torch.from_numpy(first).to(self.device),
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
            leaves[path] = torch.from_numpy(own).to(self.device)
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


def _equal(one: Tree, other: Tree) -> bool:
    return all(np.array_equal(leaf, flatten(other)[path]) for path, leaf in flatten(one).items())
