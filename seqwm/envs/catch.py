"""Catch: a ball falls, a paddle at the bottom has to be there. The smallest control task that is seen in pixels.

After the game of Mnih et al., "Recurrent Models of Visual Attention", 2014; 16 x 16 pixels here. The ball begins
anywhere in the first row and falls one row a step, drifting left, right or straight; walls turn it round. The reward
is 1 where the paddle, three pixels wide as the ball, is at most one column from it in the last row, and -1 where not;
the episode terminates there, after 15 steps.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

SIDE = 16
_SHOWN_TIMES = 8


class Catch(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """Observations are frames uint8 [16, 16, 1]; actions: 0 left, 1 stay, 2 right, by two columns.

    Args:
        render_mode: 'rgb_array', or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012 - Gymnasium's own declaration
    observation_space = spaces.Box(0, 255, (SIDE, SIDE, 1), np.uint8)
    action_space = spaces.Discrete(3)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self._row = self._column = self._drift = self._paddle = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """A new ball; the paddle stands anywhere."""
        super().reset(seed=seed)
        self._row, self._column = 0, int(self.np_random.integers(SIDE))
        self._drift, self._paddle = int(self.np_random.integers(-1, 2)), int(self.np_random.integers(1, SIDE - 1))
        return self._frame(), {}

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """One row."""
        self._paddle = min(max(self._paddle + 2 * (int(action) - 1), 1), SIDE - 2)
        if not 0 <= self._column + self._drift < SIDE:
            self._drift = -self._drift
        self._row, self._column = self._row + 1, self._column + self._drift
        ended = self._row == SIDE - 1
        reward = (1.0 if abs(self._column - self._paddle) <= 1 else -1.0) if ended else 0.0
        return self._frame(), reward, ended, False, {}

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """The frame, enlarged and grey, where `render_mode` asks for it."""
        if self.render_mode is None:
            return None
        return self._frame().repeat(3, 2).repeat(_SHOWN_TIMES, 0).repeat(_SHOWN_TIMES, 1)

    def _frame(self) -> NDArray[np.uint8]:
        frame = np.zeros((SIDE, SIDE, 1), np.uint8)
        frame[-1, self._paddle - 1 : self._paddle + 2] = 128
        row, column = self._row, self._column
        frame[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = 255
        return frame
