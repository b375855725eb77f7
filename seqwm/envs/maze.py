"""The grid mazes of Sutton and Barto, "Reinforcement Learning: An Introduction", 2018, chapter 8.

    dyna (Example 8.1)       blocking (8.2), then       shortcut (8.3), then
    . . . . . . . # G        . . . . . . . . G          . . . . . . . . G
    . . # . . . . # .        . . . . . . . . .          . . . . . . . . .
    S . # . . . . # .        . . . . . . . . .          . . . . . . . . .
    . . # . . . . . .        # # # # # # # # .          . # # # # # # # #
    . . . . . # . . .        . . . . . . . . .          . . . . . . . . .
    . . . . . . . . .        . . . S . . . . .          . . . S . . . . .

The reward is 1 for the step that reaches G, where the episode terminates, and 0 before. The blocking maze closes its
gap after 1000 steps and opens one at the other end; the shortcut maze opens a second one after 3000. Those steps are
counted over all episodes of an environment, so a maze that changes is no function of its seed: a run in it that is
stopped cannot be gone on with.
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Kind = Literal["dyna", "blocking", "shortcut"]

HEIGHT, WIDTH = 6, 9
MOVES = ((-1, 0), (1, 0), (0, 1), (0, -1))
"""Rows and columns of the actions up, down, right, left."""

_MAPS: dict[Kind, tuple[str, ...]] = {
    "dyna": (".......#G", "..#....#.", "S.#....#.", "..#......", ".....#...", "........."),
    "blocking": ("........G", ".........", ".........", "########.", ".........", "...S....."),
    "shortcut": ("........G", ".........", ".........", ".########", ".........", "...S....."),
}
_CHANGES: dict[Kind, tuple[int, str]] = {"blocking": (1000, ".########"), "shortcut": (3000, ".#######.")}
_WALL_ROW, _TILE_PIXELS = 3, 16
_COLOURS = {"#": (60, 60, 60), ".": (245, 245, 245), "S": (245, 245, 245), "G": (120, 190, 120)}


class Maze(gymnasium.Env[np.int64, np.int64]):
    """Observations number the cells row by row, Discrete(54); actions are the four MOVES. Walls and edges stop a move.

    Args:
        kind: which maze.
        change_after: steps after which the maze changes; the book's when None.
        render_mode: 'rgb_array', or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 - Gymnasium's own declaration
    observation_space = spaces.Discrete(HEIGHT * WIDTH)
    action_space = spaces.Discrete(len(MOVES))

    def __init__(self, kind: Kind = "dyna", change_after: int | None = None, render_mode: str | None = None) -> None:
        if kind not in _MAPS:
            raise ValueError(f"kind: found {kind!r}, expected one of {', '.join(_MAPS)}")
        self.kind, self.render_mode = kind, render_mode
        self._rows = list(_MAPS[kind])
        book, self._changed_row = _CHANGES.get(kind, (None, ""))
        self._change_after = book if change_after is None else change_after
        self._steps = 0
        flat = "".join(self._rows)
        self.start, self.goal, self._place = flat.index("S"), flat.index("G"), flat.index("S")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Back to S."""
        super().reset(seed=seed)
        self._place = self.start
        return np.int64(self._place), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One move."""
        row, column = divmod(self._place, WIDTH)
        down, right = MOVES[action]
        row, column = row + down, column + right
        if 0 <= row < HEIGHT and 0 <= column < WIDTH and self._rows[row][column] != "#":
            self._place = row * WIDTH + column
        self._steps += 1
        if self._steps == self._change_after and self._changed_row:
            self._rows[_WALL_ROW] = self._changed_row
        arrived = self._place == self.goal
        return np.int64(self._place), float(arrived), arrived, False, {}

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """The maze from above, uint8 [96, 144, 3], where `render_mode` asks for it."""
        if self.render_mode is None:
            return None
        tiles = np.array([[_COLOURS[cell] for cell in row] for row in self._rows], np.uint8)
        tiles[divmod(self._place, WIDTH)] = (200, 60, 60)
        return tiles.repeat(_TILE_PIXELS, 0).repeat(_TILE_PIXELS, 1)
