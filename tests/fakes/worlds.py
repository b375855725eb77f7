"""Worlds whose every step has a closed form."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces as gym_spaces

from seqwm.core.protocols import Step
from seqwm.core.types import Episode, Spaces
from seqwm.data.store import TrajectoryStore


class LinearWorld:
    """x' = A x + B u + noise w, reward -(x'Q x + u'R u), an end where |x| passes a limit; x is observed as it is."""

    window_length = 4

    def __init__(self, noise: float = 0.0, limit: float = torch.inf) -> None:
        self.A = torch.tensor([[1.0, 0.2], [-0.1, 0.9]])
        self.B = torch.tensor([[0.0], [0.5]])
        self.Q, self.R = torch.diag(torch.tensor([1.0, 0.1])), torch.tensor([[0.2]])
        self.noise, self.limit = noise, limit
        self.spaces = Spaces(
            gym_spaces.Box(-np.inf, np.inf, (2,), np.float32), gym_spaces.Box(-2.0, 2.0, (1,), np.float32)
        )

    def encode(self, context):
        last = context.valid.sum(1) - 1
        return {"x": context.observations[torch.arange(len(last)), last]}

    def step(self, state, action, generator):
        x = state["x"]
        reward = -(x @ self.Q * x).sum(-1) - (action @ self.R * action).sum(-1)
        following = x @ self.A.T + action @ self.B.T
        if generator is not None:
            following = following + self.noise * torch.randn(x.shape, generator=generator)
        return Step({"x": following}, reward, following.norm(dim=-1) > self.limit)

    def decode(self, state):
        return state["x"]

    def logs(self, episodes: int = 6, length: int = 9, seed: int = 0) -> TrajectoryStore:
        """Random actions, lived through without noise."""
        generator = np.random.default_rng(seed)
        store = TrajectoryStore.create(None, self.spaces)
        for _ in range(episodes):
            actions = generator.uniform(-1, 1, (length, 1)).astype(np.float32)
            x, rewards = torch.from_numpy(generator.normal(size=(1, 2)).astype(np.float32)), []
            states = [x]
            for action in torch.from_numpy(actions):
                step = self.step({"x": states[-1]}, action[None], None)
                states.append(step.state["x"])
                rewards.append(float(step.reward))
            store.append(
                Episode(torch.cat(states).numpy(), actions, np.array(rewards, np.float32), False, truncated=True)
            )
        return store


class CountingWorld:
    """Frames, categories and ends: counts the steps of an episode, and ends it with the step that the reward tells."""

    window_length = 3
    spaces = Spaces(
        gym_spaces.Dict({"frame": gym_spaces.Box(0, 255, (8, 8, 1), np.uint8), "count": gym_spaces.Discrete(200)}),
        gym_spaces.Discrete(3),
    )

    def encode(self, context):
        last = context.valid.sum(1) - 1
        return {"count": context.observations["count"][torch.arange(len(last)), last]}

    def step(self, state, action, generator):
        count = state["count"] + action
        return Step({"count": count}, count.float(), count >= 6)

    def decode(self, state):
        count = state["count"]
        frame = (count % 256).to(torch.uint8)[:, None, None, None].expand(-1, 8, 8, 1)
        return {"frame": frame, "count": count.clamp(0, 199)}

    def logs(self) -> TrajectoryStore:
        store = TrajectoryStore.create(None, self.spaces)
        for first in range(3):
            counts = np.arange(first, first + 5)
            frames = np.broadcast_to(counts[:, None, None, None], (5, 8, 8, 1)).astype(np.uint8)
            rewards = counts[1:].astype(np.float32)
            store.append(Episode({"frame": frames, "count": counts}, np.ones(4, np.int64), rewards, True, False))
        return store
