"""Dyna: learn from what happens, and again and again from what a table remembers of it.

Sutton, "Integrated Architectures for Learning, Planning, and Reacting Based on Approximating Dynamic Programming",
1990, in the form of Sutton and Barto, "Reinforcement Learning: An Introduction", 2018, chapter 8. The oldest of world
models: for every state and action the table holds what followed last, and planning is Q-learning on what it says.

    Dyna-Q                  one update from each real transition, then `planning` from remembered ones drawn at random
    Dyna-Q+                 `bonus` kappa: in planning, an action not tried for t steps is worth kappa sqrt(t) more
    prioritised sweeping    `threshold` theta: updates in the order of how much they change, backwards from surprises

What is notable:

- A table of the last outcome is exact where the world is deterministic; `outcomes` keeps more of them, and planning
  draws one (sweeping averages them), which is what slippery worlds such as FrozenLake need.
- Dyna-Q+ also plans with actions that were never tried in a state it knows, which it takes to lead back there.
- Plain lists, not arrays: one update is some 0.4 microseconds, where indexing NumPy one number at a time takes 2.
- The table is a world like any other: dreams, planners and `check_world_model` take it.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium import spaces as gym_spaces
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from seqwm.control.gathering import Transitions
from seqwm.core.errors import SpaceError
from seqwm.core.protocols import Step
from seqwm.core.random import key
from seqwm.core.spaces import space_from_json, space_to_json
from seqwm.core.types import Batch, Metrics, Spaces, State, TensorTree
from seqwm.nn.logged_config import LoggedConfig

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore
    from seqwm.training.options import TrainOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe.

    Attributes:
        planning: updates from memory after each real one, n.
        step_size: of Q-learning, alpha.
        discount: gamma.
        exploration: share of random actions, epsilon.
        bonus: Dyna-Q+'s kappa; 0 is Dyna-Q.
        threshold: prioritised sweeping's theta, the least change that is worth an update; null draws at random.
        outcomes: the last so many of each state and action are remembered.
    """

    planning: int = 5
    step_size: float = 0.1
    discount: float = 0.95
    exploration: float = 0.1
    bonus: float = 0.0
    threshold: float | None = None
    outcomes: int = 1

    def __post_init__(self) -> None:
        if self.planning < 0 or self.outcomes < 1:
            found = f"{self.planning}, {self.outcomes}"
            raise ValueError(f"planning, outcomes: found {found}, expected at least 0 and at least 1")
        for name, least in (("step_size", 0.0), ("discount", 0.0), ("exploration", -1.0)):
            if not least < getattr(self, name) <= 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected a share of at most 1")
        if self.bonus < 0 or (self.threshold is not None and self.threshold < 0):
            raise ValueError(f"bonus, threshold: found {self.bonus}, {self.threshold}, expected none below zero")
        if self.bonus and self.threshold is not None:
            raise ValueError("bonus: found together with a threshold, expected one of them")


class Table:
    """Values and memory of S states and A actions, as plain lists; the algorithm itself.

    Attributes:
        q: values [S][A].
        memory: [S][A] lists of the last outcomes (reward, following state, whether the task ended), oldest first.
        updates: made so far, planning included.
    """

    def __init__(self, states: int, actions: int, options: Options) -> None:
        self.options, self.states, self.actions = options, states, actions
        self.q = [[0.0] * actions for _ in range(states)]
        self.memory: list[list[list[tuple[float, int, bool]]]] = [[[] for _ in range(actions)] for _ in range(states)]
        self.updates = 0
        self._time = 0
        self._tried_at = [[0] * actions for _ in range(states)]
        self._visited: list[int] = []  # states in the order in which they were first left
        self._tried: list[list[int]] = [
            [] for _ in range(states)
        ]  # actions in the order in which they were first taken
        self._before: list[dict[tuple[int, int], None]] = [{} for _ in range(states)]  # pairs that led to each state
        self._queue: list[tuple[float, int, int]] = []  # a heap of minus the change
        self._queued: dict[tuple[int, int], float] = {}

    def act(self, state: int, chance: random.Random) -> int:
        """Greedy up to the exploration; among equals, any."""
        if chance.random() < self.options.exploration:
            return chance.randrange(self.actions)
        row = self.q[state]
        best = max(row)
        equals = [action for action, value in enumerate(row) if value == best]
        return equals[0] if len(equals) == 1 else chance.choice(equals)

    def remember(self, state: int, action: int, reward: float, following: int, terminated: bool) -> None:
        """Take a real transition into the memory."""
        known = self.memory[state][action]
        if not known:
            if not self._tried[state]:
                self._visited.append(state)
            self._tried[state].append(action)
        elif len(known) == self.options.outcomes:
            del known[0]
        known.append((reward, following, terminated))
        self._before[following][state, action] = None
        self._time += 1
        self._tried_at[state][action] = self._time
        if self.options.threshold is not None:
            self._enqueue(state, action)

    def learn(self, state: int, action: int, reward: float, following: int, terminated: bool) -> None:
        """Take a real transition into the memory and, unless sweeping sees to it, into the values."""
        if self.options.threshold is None:
            self._update(state, action, reward, following, terminated)
        self.remember(state, action, reward, following, terminated)

    def plan(self, updates: int, chance: random.Random) -> None:
        """So many updates from the memory; sweeping stops where nothing is left to change."""
        if self.options.threshold is not None:
            self._sweep(updates)
        elif self.options.bonus:
            self._plan_curiously(updates, chance)
        elif self._visited:
            visited, tried, memory, update = self._visited, self._tried, self.memory, self._update
            draw = chance.random
            for _ in range(updates):
                state = visited[int(draw() * len(visited))]
                actions = tried[state]
                action = actions[int(draw() * len(actions))]
                outcomes = memory[state][action]
                update(state, action, *outcomes[int(draw() * len(outcomes)) if len(outcomes) > 1 else 0])

    def _plan_curiously(self, updates: int, chance: random.Random) -> None:
        for _ in range(updates if self._visited else 0):
            state = chance.choice(self._visited)
            action = chance.randrange(self.actions)
            outcomes = self.memory[state][action] or [(0.0, state, False)]
            reward, following, terminated = chance.choice(outcomes)
            bonus = self.options.bonus * math.sqrt(self._time - self._tried_at[state][action])
            self._update(state, action, reward + bonus, following, terminated)

    def _update(self, state: int, action: int, reward: float, following: int, terminated: bool) -> None:
        row = self.q[state]
        target = reward if terminated else reward + self.options.discount * max(self.q[following])
        row[action] += self.options.step_size * (target - row[action])
        self.updates += 1

    def _sweep(self, updates: int) -> None:
        while updates and self._queue:
            change, state, action = heapq.heappop(self._queue)
            if self._queued.get((state, action)) != -change:
                continue  # it stands further ahead with a greater change, or was dealt with
            del self._queued[state, action]
            self.q[state][action] += self.options.step_size * (self._expected(state, action) - self.q[state][action])
            self.updates += 1
            updates -= 1
            for pair in self._before[state]:
                if any(outcome[1] == state for outcome in self.memory[pair[0]][pair[1]]):
                    self._enqueue(*pair)

    def _expected(self, state: int, action: int) -> float:
        outcomes = self.memory[state][action]
        total = sum(r + (0.0 if end else self.options.discount * max(self.q[after])) for r, after, end in outcomes)
        return total / len(outcomes)

    def _enqueue(self, state: int, action: int) -> None:
        change = abs(self._expected(state, action) - self.q[state][action])
        assert self.options.threshold is not None
        if change > self.options.threshold and change > self._queued.get((state, action), 0.0):
            self._queued[state, action] = change
            heapq.heappush(self._queue, (-change, state, action))

    # -- to tensors and back ----------------------------------------------------------------------------------------

    def outcomes(self) -> dict[str, Tensor]:
        """The memory: count int64 [S, A]; reward, following, terminated [S, A, K], oldest first, zeros behind."""
        shape = (self.states, self.actions, self.options.outcomes)
        count = torch.tensor([[len(known) for known in row] for row in self.memory])
        reward, following = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.int64)
        terminated = torch.zeros(shape, dtype=torch.bool)
        for state in self._visited:
            for action in self._tried[state]:
                for place, (r, after, end) in enumerate(self.memory[state][action]):
                    reward[state, action, place], following[state, action, place] = r, after
                    terminated[state, action, place] = end
        return {"count": count, "reward": reward, "following": following, "terminated": terminated}

    def state_dict(self) -> dict[str, Any]:
        """All of it, in tensors and integers."""
        before = [(after, *pair) for after, pairs in enumerate(self._before) for pair in pairs]
        queued = [(state, action, change) for (state, action), change in self._queued.items()]
        return {
            **self.outcomes(),
            "q": torch.tensor(self.q, dtype=torch.float64),
            "tried_at": torch.tensor(self._tried_at),
            "tried": torch.tensor([(s, a) for s in self._visited for a in self._tried[s]]).reshape(-1, 2),
            "before": torch.tensor(before, dtype=torch.int64).reshape(-1, 3),
            "queued": torch.tensor(queued, dtype=torch.float64).reshape(-1, 3),
            "time": self._time,
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.__init__(self.states, self.actions, self.options)  # type: ignore[misc]
        self.q = state["q"].tolist()
        self._tried_at, self._time, self.updates = state["tried_at"].tolist(), state["time"], state["updates"]
        for s, a in state["tried"].tolist():
            if not self._tried[s]:
                self._visited.append(s)
            self._tried[s].append(a)
            places = range(int(state["count"][s, a]))
            parts = [state[name][s, a].tolist() for name in ("reward", "following", "terminated")]
            self.memory[s][a] = [(parts[0][k], parts[1][k], parts[2][k]) for k in places]
        for after, s, a in state["before"].tolist():
            self._before[after][s, a] = None
        for s, a, change in state["queued"].tolist():
            self._queued[int(s), int(a)] = change
            heapq.heappush(self._queue, (-change, int(s), int(a)))


def learner(options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> DynaLearner:
    """A learner that begins with what a store holds in its memory, and nothing in its values.

    Raises:
        SpaceError: states or actions that are not Discrete.
    """
    return DynaLearner(options, store, seed)


class DynaLearner:
    """Learns from every transition that it observes; an update is those since the last one, then planning."""

    def __init__(self, options: Options, store: TrajectoryStore, seed: int) -> None:
        self._observations, self._actions = discrete(store.spaces)
        self._options, self._seed = options, seed
        self._facts = {
            "observation_space": space_to_json(store.spaces.observation),
            "action_space": space_to_json(self._actions),
            "dataset": store.provenance.get("source"),
            "environment": store.provenance.get("environment"),
        }
        self.table = Table(int(self._observations.n), int(self._actions.n), options)
        self._pending: list[tuple[int, int, float, int, bool]] = []
        for episode in store.episodes():
            assert isinstance(episode.observations, np.ndarray)
            assert isinstance(episode.actions, np.ndarray)
            if episode.rewards is None or not episode.final_observation:
                raise SpaceError("dyna_q: found logs without rewards or without final observations, expected both")
            states = (episode.observations - int(self._observations.start)).tolist()
            actions = (episode.actions - int(self._actions.start)).tolist()
            for t, (action, reward) in enumerate(zip(actions, episode.rewards.tolist(), strict=True)):
                ended = episode.terminated and t == len(actions) - 1
                self.table.remember(states[t], action, reward, states[t + 1], ended)

    def observe(self, transitions: Transitions) -> None:
        """Keep what happened for the next update."""
        t = transitions
        states, following = (np.asarray(part) - int(self._observations.start) for part in (t.observations, t.following))
        actions = np.asarray(t.actions) - int(self._actions.start)
        parts = (states.tolist(), actions.tolist(), t.rewards.tolist(), following.tolist(), t.terminated.tolist())
        self._pending += zip(*parts, strict=True)

    def update(self, step: int) -> Metrics:
        """Learn what was observed, then plan."""
        for transition in self._pending:
            self.table.learn(*transition)
        self._pending.clear()
        self.table.plan(self._options.planning, random.Random(key(self._seed, step)))
        return {"table_updates": float(self.table.updates)}

    def policy(self, explore: bool) -> DynaPolicy:
        """Acts by the table as it is now."""
        return DynaPolicy(self.table.q, self._spaces(), self._options.exploration if explore else 0.0)

    def trained(self) -> DynaQ:
        """Values and memory as a model."""
        config = DynaQConfig(**self._facts, **dataclasses.asdict(self._options))
        model = DynaQ(config)
        model.q.copy_(torch.tensor(self.table.q))
        for name, tensor in self.table.outcomes().items():
            getattr(model, name).copy_(tensor)
        return model

    def state_dict(self) -> dict[str, Any]:
        """The table; and what was observed since the last update."""
        return {"table": self.table.state_dict(), "pending": [list(one) for one in self._pending]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.table.load_state_dict(state["table"])
        self._pending = [(s, a, r, after, end) for s, a, r, after, end in state["pending"]]

    def _spaces(self) -> Spaces:
        return Spaces(self._observations, self._actions)


class DynaPolicy:
    """Acts greedily by a table of values [S][A], up to a share of random actions; among equals, the first or, when it
    explores, any (torch's default generator draws).
    """

    def __init__(self, q: Sequence[Sequence[float]], spaces: Spaces, exploration: float) -> None:
        self._observations, self._actions = discrete(spaces)
        self._q, self._exploration = q, exploration

    def initial(self, lanes: int) -> State:
        """No memory."""
        return {}

    def act(self, state: State, observation: TensorTree, reward: Tensor, first: Tensor) -> tuple[TensorTree, State]:
        """Actions int64 [B] for states int64 [B]."""
        assert isinstance(observation, Tensor)
        values = torch.tensor([self._q[code] for code in (observation - int(self._observations.start)).tolist()])
        if not self._exploration:
            return values.argmax(-1) + int(self._actions.start), state
        equals = values == values.max(-1, keepdim=True).values
        greedy = (torch.rand(values.shape) * equals).argmax(-1)
        anything = torch.randint(values.shape[1], greedy.shape)
        chosen = torch.where(torch.rand(greedy.shape) < self._exploration, anything, greedy)
        return chosen + int(self._actions.start), state


class DynaQConfig(LoggedConfig):
    """The fields of `Options`, the spaces as JSON, and what the table was learned from."""

    model_type = "seqwm_dyna_q"

    planning: int = 5
    step_size: float = 0.1
    discount: float = 0.95
    exploration: float = 0.1
    bonus: float = 0.0
    threshold: float | None = None
    outcomes: int = 1


class DynaQ(PreTrainedModel):
    """Values `q` [S, A] to act by, and the memory as a world: `Table.outcomes`."""

    config_class = DynaQConfig
    return_conditioned = False
    window_length = 1
    count: Tensor
    reward: Tensor
    following: Tensor
    terminated: Tensor

    def __init__(self, config: DynaQConfig) -> None:
        super().__init__(config)
        spaces = Spaces(space_from_json(config.observation_space or {}), space_from_json(config.action_space or {}))
        self._spaces = spaces
        observations, actions = discrete(spaces)
        pairs = int(observations.n), int(actions.n)
        self._start, self._action_start = int(observations.start), int(actions.start)
        self.q = nn.Parameter(torch.zeros(pairs), requires_grad=False)
        self.register_buffer("count", torch.zeros(pairs, dtype=torch.int64))
        self.register_buffer("reward", torch.zeros(*pairs, config.outcomes))
        self.register_buffer("following", torch.zeros(*pairs, config.outcomes, dtype=torch.int64))
        self.register_buffer("terminated", torch.zeros(*pairs, config.outcomes, dtype=torch.bool))
        self.post_init()

    def policy(self, target_returns: Sequence[float] | None = None) -> DynaPolicy:
        """Greedy; takes no target returns."""
        return DynaPolicy(self.q.tolist(), self._spaces, 0.0)

    def encode(self, context: Batch) -> State:
        """State: code int64 [B]."""
        assert isinstance(context.observations, Tensor)
        last = context.valid.sum(1) - 1
        return {"code": context.observations[torch.arange(len(last)), last].to(self.q.device) - self._start}

    def step(self, state: State, action: TensorTree, generator: torch.Generator | None = None) -> Step:
        """One of the remembered outcomes, the last without a generator; what was never tried leads nowhere, for 0."""
        assert isinstance(action, Tensor)
        code, action = state["code"], action - self._action_start
        count = self.count[code, action]
        place = count - 1
        if generator is not None:
            drawn = torch.rand(count.shape, generator=generator, device=count.device)
            place = (drawn * count).long().minimum(place)
        index = code, action, place.clamp_min(0)
        known = count > 0
        following = torch.where(known, self.following[index], code)
        reward = torch.where(known, self.reward[index], 0.0)
        return Step({"code": following}, reward, self.terminated[index] & known)

    def decode(self, state: State) -> TensorTree:
        """The observation int64 [B]."""
        return state["code"] + self._start


def discrete(spaces: Spaces) -> tuple[gym_spaces.Discrete, gym_spaces.Discrete]:
    """Both spaces; SpaceError where one is not Discrete."""
    found: list[gym_spaces.Discrete] = []
    for name, space in (("observation", spaces.observation), ("action", spaces.action)):
        found.append(_discrete(name, space))
    return found[0], found[1]


def _discrete(name: str, space: Space[Any] | None) -> gym_spaces.Discrete:
    if isinstance(space, gym_spaces.Discrete):
        return space
    raise SpaceError(
        f"{name}: found {space}, expected Discrete: dyna_q is a table; dreamer takes vectors, images and numbers"
    )


AutoConfig.register(DynaQConfig.model_type, DynaQConfig)
AutoModel.register(DynaQConfig, DynaQ)
