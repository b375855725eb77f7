"""Episode after episode in a batch of lanes, round by round, into a store: collecting with training between the rounds.

What is under way can be brought back in another process.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.vector.utils import create_empty_array
from numpy.typing import NDArray

from seqwm.control.lanes import Driver, Lanes, Restorable, reset_lanes
from seqwm.core.errors import DataError, RolloutError
from seqwm.core.protocols import Policy
from seqwm.core.random import key
from seqwm.core.tree import flatten, tree_map
from seqwm.core.types import Episode, State, Tree

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore


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
        self._driver: Driver | None = None
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
            self._observation = reset_lanes(self._vector, starting)
            for lane, own in starting.items():
                self._lanes[lane].reset(_row(self._observation, lane), seed=own)
        before = self._observation
        driver = self._driver = self._driver or Driver(self._vector, policy, self._vector.num_envs)
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
                self._observation = reset_lanes(self._vector, begun)
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


def _row(tree: Tree, lane: int) -> Tree:
    row: Tree = tree_map(lambda leaf: leaf[lane], tree)
    return row


def _equal(one: Tree, other: Tree) -> bool:
    return all(np.array_equal(leaf, flatten(other)[path]) for path, leaf in flatten(one).items())
