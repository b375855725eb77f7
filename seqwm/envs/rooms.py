"""Two rooms with a door between them: point navigation that is small enough to know everything about.

    -1                        0                        1     x
     +------------------------+------------------------+     0.5
     |                        .  door                  |
     |                        +                        |     0.2
     |                        | wall                   |
     |  start                 |                  goal  |
     +------------------------+------------------------+    -0.5

A point is pushed by at most REACH along each axis. Walls stop it: what would carry it through one leaves it beside the
wall, at the height it would have had. The reward is 1 for the step that ends within RADIUS of the goal, where the
episode terminates, and 0 before. Episodes are truncated after 100 steps.

It is made for stitching: logs of a random walk that begins anywhere hold every step of the way from start to goal, but
hardly an episode that goes it.
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

REACH = 0.15
RADIUS = 0.15
GOAL = np.array([0.8, -0.3])
DOOR_SILL = 0.2
BESIDE = 1e-3

_PIXELS = 100  # of one unit of length
_WALL, _FLOOR, _GOAL, _POINT = (60, 60, 60), (245, 245, 245), (120, 190, 120), (200, 60, 60)

Start = Literal["anywhere", "far"]


class TwoRooms(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Observations are the place float32 [2], actions the push in shares of REACH, float32 [2] in -1 .. 1.

    Args:
        start: 'anywhere' draws from both rooms, the goal left out; 'far' from a square of side 0.2 in the corner that
            the wall parts from the goal.
        render_mode: 'rgb_array', or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(self, start: Start = "anywhere", render_mode: str | None = None) -> None:
        if start not in ("anywhere", "far"):
            raise ValueError(f"start: found {start!r}, expected 'anywhere' or 'far'")
        self.start, self.render_mode = start, render_mode
        low, high = np.array([-1.0, -0.5], np.float32), np.array([1.0, 0.5], np.float32)
        self.observation_space = spaces.Box(low, high, dtype=np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._place = np.zeros(2, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """A new episode."""
        super().reset(seed=seed)
        if self.start == "far":
            place = self.np_random.uniform([-0.9, -0.4], [-0.7, -0.2])
        else:
            place = np.asarray(GOAL)
            while at_goal(place):
                place = self.np_random.uniform([-1.0, -0.5], [1.0, 0.5])
        self._place = place.astype(np.float32)
        return self._place.copy(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One push."""
        self._place = moved(self._place, action).astype(np.float32)
        arrived = at_goal(self._place)
        return self._place.copy(), float(arrived), arrived, False, {}

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """The rooms from above, uint8 [100, 200, 3], where `render_mode` asks for it."""
        if self.render_mode is None:
            return None
        y, x = np.mgrid[0.5 : -0.5 : _PIXELS * 1j, -1.0 : 1.0 : 2 * _PIXELS * 1j]  # type: ignore[misc]
        picture = np.full((*x.shape, 3), _FLOOR, np.uint8)
        picture[np.hypot(x - GOAL[0], y - GOAL[1]) <= RADIUS] = _GOAL
        picture[(np.abs(x) < 2 / _PIXELS) & (y < DOOR_SILL)] = _WALL
        picture[np.hypot(x - self._place[0], y - self._place[1]) <= 3 / _PIXELS] = _POINT
        return picture


def moved(place: NDArray[Any], action: NDArray[Any]) -> NDArray[np.float64]:
    """Where a push leads to, [..., 2]: outer walls and the one between the rooms stop it."""
    place = np.asarray(place, np.float64)
    target = np.clip(place + REACH * np.clip(np.asarray(action, np.float64), -1.0, 1.0), [-1.0, -0.5], [1.0, 0.5])
    left = place[..., 0] < 0
    crosses = left != (target[..., 0] < 0)
    way = np.where(crosses, target[..., 0] - place[..., 0], 1.0)
    height = place[..., 1] - place[..., 0] * (target[..., 1] - place[..., 1]) / way
    stopped = np.where(left, -BESIDE, BESIDE)
    target[..., 0] = np.where(crosses & (height < DOOR_SILL), stopped, target[..., 0])
    return target


def at_goal(place: NDArray[Any]) -> bool:
    """Whether a place is within RADIUS of the goal."""
    return bool(np.hypot(*(np.asarray(place, np.float64) - GOAL)) <= RADIUS)
