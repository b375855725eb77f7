"""Gymnasium's CarRacing as World Models (Ha and Schmidhuber 2018) saw it: the road alone, in frames of 64 x 64 pixels.

The lowest twelve of 96 lines are instruments, which are cut off before the frame is made smaller by averaging. An
action is held for `action_repeat` frames and its rewards are added up: returns are those of CarRacing itself.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

PIXELS = 64
_ROAD = 84  # lines

Frame = NDArray[np.uint8]
Action = NDArray[np.float32]


class CarRacing(gymnasium.Wrapper[Frame, Action, Frame, Action]):
    """Observations uint8 [64, 64, 3]; actions float32 [3]: wheel in -1 .. 1, gas and brake in 0 .. 1.

    Args:
        action_repeat: frames that an action is held for.
        render_mode: 'rgb_array', or None.
    """

    def __init__(self, action_repeat: int = 1, render_mode: str | None = None) -> None:
        if action_repeat < 1:
            raise ValueError(f"action_repeat: found {action_repeat}, expected at least 1")
        super().__init__(gymnasium.make("CarRacing-v3", render_mode=render_mode, disable_env_checker=True))
        self._repeat = action_repeat
        self.observation_space = spaces.Box(0, 255, (PIXELS, PIXELS, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """A new track, the car at its start."""
        frame, info = self.env.reset(seed=seed, options=options)
        return _smaller(frame), info

    def step(self, action: Action) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Hold an action."""
        total, terminated, truncated = 0.0, False, False
        for _ in range(self._repeat):
            frame, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return _smaller(frame), total, terminated, truncated, info


def _smaller(frame: Frame) -> Frame:
    """The road of a frame [96, 96, 3], each pixel the mean of what it covers."""
    mixed = _ROWS @ frame[:_ROAD].astype(np.float32).reshape(_ROAD, -1)
    mixed = _COLUMNS @ mixed.reshape(PIXELS, frame.shape[1], 3)
    return (mixed + 0.5).astype(np.uint8)


def _shares(fine: int, coarse: int) -> NDArray[np.float32]:
    """How much each of `fine` pixels in a row has of each of `coarse` ones, [coarse, fine]; rows add up to 1."""
    edges = np.arange(coarse + 1) * fine / coarse
    begin, end = edges[:-1, None], edges[1:, None]
    place = np.arange(fine)
    covered = (np.minimum(end, place + 1) - np.maximum(begin, place)).clip(0)
    shares: NDArray[np.float32] = (covered * coarse / fine).astype(np.float32)
    return shares


_ROWS, _COLUMNS = _shares(_ROAD, PIXELS), _shares(96, PIXELS)
