"""Small environments whose every step can be computed by hand, registered as seqwm-tests/NAME-v0."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces


class Countdown(gymnasium.Env):
    """Ends after 2 to 9 steps, drawn from the seed; the reward is the step plus the action.

    Observes [steps done, steps in all, noise]. Terminates on even lengths, is truncated on odd ones.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.done, self.length = 0, int(self.np_random.integers(2, 10))
        return self._observation(), {}

    def step(self, action):
        assert self.done < self.length, "stepped after its end"
        assert self.action_space.contains(action)
        reward = self.done + float(action[0])
        self.done += 1
        over = self.done == self.length
        return self._observation(), reward, over and self.length % 2 == 0, over and self.length % 2 == 1, {}

    def _observation(self):
        return np.array([self.done, self.length, self.np_random.normal()])


class Breaking(Countdown):
    """Raises in its fourth step."""

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        self.length = 100
        return observation, info

    def step(self, action):
        if self.done == 3:
            raise RuntimeError("the motor is stuck")
        return super().step(action)


class Blind(Countdown):
    """Observes NaN after its first step."""

    def _observation(self):
        return super()._observation() * (np.nan if self.done else 1.0)


class Rooms(gymnasium.Env):
    """Observations and actions of every kind in a dict; three steps long."""

    observation_space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (4, 4, 3), np.uint8),
            "body": spaces.Dict({"speed": spaces.Box(-1.0, 1.0, (2,), np.float32), "room": spaces.Discrete(5)}),
            "switches": spaces.MultiDiscrete([2, 3]),
        }
    )
    action_space = spaces.Dict({"push": spaces.Box(-2.0, 2.0, (2,), np.float32), "turn": spaces.Discrete(3)})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.done = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.done += 1
        return self.observation_space.sample(), 1.0, self.done == 3, False, {}


for _kind in (Countdown, Breaking, Blind, Rooms):
    gymnasium.register(f"seqwm-tests/{_kind.__name__}-v0", entry_point=_kind)
