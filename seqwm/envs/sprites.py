"""A world of frames whose whole state can be read back from a frame: a sprite, walls, a ball and a coin.

The board has 16 x 16 tiles, each of `pixels / 16` pixels; sprite, ball, coin and walls are squares of 2 x 2 tiles. An
action moves the sprite by one tile unless a wall or the border is in the way. The ball flies on diagonally and comes
back from what it meets, axis by axis; it passes over the coin. Touching the coin gives 1, touching the ball -1; either
ends the episode. Walls, places and the floor's colour are drawn anew for every episode; nothing else is random, so two
frames and an action say what comes.

What a frame shows is what there is: `sprite_places` and `wall_tiles` read it back, and `moved` says where an action
leads, for any actions in any frames. So a generated frame can be judged exactly, and for actions that nobody took.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

TILES = 16
BODY = 2
"""Tiles along each side of sprite, ball, coin and wall."""

MOVES = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])
"""Rows and columns of the actions stay, up, down, left, right."""

_SPRITE, _BALL, _COIN, _WALL = (230, 60, 50), (70, 130, 240), (240, 210, 60), (150, 150, 150)
_FLOORS = np.array([(20, 20, 30), (30, 60, 40), (60, 40, 70), (70, 60, 40)], np.uint8)
_APART = 5  # tiles at least between the sprite and the ball, and the sprite and the coin, at first


class Sprite(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """Observations are frames uint8 [pixels, pixels, 3], actions the five MOVES.

    Args:
        pixels: height and width of a frame, a multiple of 16.
        walls: of 2 x 2 tiles, drawn at random; some may coincide.
        render_mode: 'rgb_array', or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(self, pixels: int = 32, walls: int = 6, render_mode: str | None = None) -> None:
        if pixels < TILES or pixels % TILES:
            raise ValueError(f"pixels: found {pixels}, expected a multiple of {TILES}")
        self.pixels, self.walls, self.render_mode = pixels, walls, render_mode
        self.observation_space = spaces.Box(0, 255, (pixels, pixels, 3), np.uint8)
        self.action_space = spaces.Discrete(len(MOVES))
        self._background = np.zeros((TILES, TILES, 3), np.uint8)
        self._blocked = np.zeros((TILES, TILES), np.bool_)
        self.sprite = self.ball = self.coin = self._flight = np.zeros(2, np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """A new board."""
        super().reset(seed=seed)
        draw = self.np_random
        tiles = np.zeros((TILES, TILES), np.bool_)
        for row, column in draw.integers(0, TILES // BODY, (self.walls, 2)) * BODY:
            tiles[row : row + BODY, column : column + BODY] = True
        self._blocked = blocked_places(tiles)
        self._background = np.where(tiles[..., None], np.array(_WALL, np.uint8), _FLOORS[draw.integers(len(_FLOORS))])
        free = np.argwhere(~self._blocked)
        self.sprite = draw.choice(free)
        away = free[np.abs(free - self.sprite).max(1) >= _APART]
        self.ball, self.coin = draw.choice(away, 2, replace=False)
        self._flight = draw.choice([-1, 1], 2)
        return self._frame(), {}

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """One tick."""
        self.sprite = moved(self.sprite, np.asarray(action), self._blocked)
        for axis in range(2):  # one axis after the other, so that it slides along what it meets
            ahead = self.ball.copy()
            ahead[axis] += self._flight[axis]
            if _free(ahead, self._blocked):
                self.ball = ahead
            else:
                self._flight = self._flight * np.where(np.arange(2) == axis, -1, 1)
        hit, found = _touch(self.sprite, self.ball), _touch(self.sprite, self.coin)
        return self._frame(), -1.0 if hit else float(found), hit or found, False, {}

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """The frame, where `render_mode` asks for it."""
        return self._frame() if self.render_mode else None

    def _frame(self) -> NDArray[np.uint8]:
        frame = self._background.copy()
        for (row, column), colour in ((self.coin, _COIN), (self.ball, _BALL), (self.sprite, _SPRITE)):
            frame[row : row + BODY, column : column + BODY] = colour
        scale = self.pixels // TILES
        return frame.repeat(scale, 0).repeat(scale, 1)


def moved(places: NDArray[Any], actions: NDArray[Any], blocked: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where actions int [...] lead from places int64 [..., 2] on boards of `blocked_places` [..., 15, 15]."""
    ahead = places + MOVES[actions]
    free = _free(ahead, blocked)
    return np.where(free[..., None], ahead, places)


def blocked_places(tiles: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where a body cannot be for the walls in its way, bool [..., 15, 15], given the tiles of walls [..., 16, 16]."""
    blocked: NDArray[np.bool_] = tiles[..., :-1, :-1] | tiles[..., 1:, :-1] | tiles[..., :-1, 1:] | tiles[..., 1:, 1:]
    return blocked


def wall_tiles(frames: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which tiles are walls, bool [..., 16, 16], in frames uint8 [..., H, W, 3]; what stands before them counts not."""
    return _distance(frames, _WALL) < 1500.0


def sprite_places(frames: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Row and column of the sprite's upper left tile, int64 [..., 2]: where a frame is most of its colour.

    The place of an exact frame is exact; of a blurred one it is the best guess.
    """
    distance = _distance(frames, _SPRITE)
    square = distance[..., :-1, :-1] + distance[..., 1:, :-1] + distance[..., :-1, 1:] + distance[..., 1:, 1:]
    flat = square.reshape(*square.shape[:-2], -1).argmin(-1)
    return np.stack(np.divmod(flat, TILES - 1), -1)


def _distance(frames: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.float64]:
    """The mean squared distance of each tile's mean colour from one, float64 [..., 16, 16]."""
    scale = frames.shape[-2] // TILES
    tiles = frames.reshape(*frames.shape[:-3], TILES, scale, TILES, scale, 3).mean((-4, -2))
    distance: NDArray[np.float64] = np.square(tiles - colour).mean(-1)
    return distance


def _free(places: NDArray[Any], blocked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inside = ((places >= 0) & (places <= TILES - BODY)).all(-1)
    held = places.clip(0, TILES - BODY)
    if blocked.ndim == 2:
        return np.asarray(inside & ~blocked[held[..., 0], held[..., 1]])
    taken = np.take_along_axis(
        blocked.reshape(*blocked.shape[:-2], -1), (held[..., 0] * (TILES - 1) + held[..., 1])[..., None], -1
    )
    return np.asarray(inside & ~taken[..., 0])


def _touch(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return bool((np.abs(one - other) < BODY).all())
