"""Logs of frames in which what an action does is known exactly."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from seqwm.core.types import Episode, Spaces
from seqwm.data.store import TrajectoryStore

SHADES = 4


def shaded_logs(episodes=40, steps=12, pixels=8, seed=0, *, actions=True, rewards=True) -> TrajectoryStore:
    """The action chooses the shade of the next frame; the reward is the shade chosen, and shade 3 ends the task.

    An action that is one step too early or too late says nothing about a frame, so what is learned here proves the
    alignment of frames, actions, rewards and ends.
    """
    draw = np.random.default_rng(seed)
    image = spaces.Box(0, 255, (pixels, pixels, 3), np.uint8)
    known = Spaces(image, spaces.Discrete(SHADES) if actions else None)
    store = TrajectoryStore.create(None, known, rewards=rewards)
    for _ in range(episodes):
        chosen = draw.integers(0, SHADES - 1, steps)
        terminated = bool(draw.random() < 0.5)
        if terminated:
            chosen[-1] = SHADES - 1
        shades = np.concatenate([draw.integers(0, SHADES, 1), chosen])
        frames = np.broadcast_to(
            (40 + 50 * shades).astype(np.uint8)[:, None, None, None], (steps + 1, pixels, pixels, 3)
        )
        store.append(
            Episode(
                frames.copy(),
                chosen if actions else None,
                chosen.astype(np.float32) if rewards else None,
                terminated,
                not terminated,
            )
        )
    return store


def moving_logs(episodes=60, steps=20, pixels=12, seed=0) -> TrajectoryStore:
    """A square of two pixels goes up, down, left or right by one, or stays; what leaves on one side comes back."""
    draw = np.random.default_rng(seed)
    moves = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])
    image = spaces.Box(0, 255, (pixels, pixels, 3), np.uint8)
    store = TrajectoryStore.create(None, Spaces(image, spaces.Discrete(len(moves))), rewards=False)
    for _ in range(episodes):
        actions = draw.integers(0, len(moves), steps)
        places = draw.integers(0, pixels, 2) + np.concatenate([np.zeros((1, 2), np.int64), moves[actions].cumsum(0)])
        frames = np.full((steps + 1, pixels, pixels, 3), draw.integers(0, 120), np.uint8)
        for frame, (row, column) in zip(frames, places, strict=True):
            for down, across in np.ndindex(2, 2):
                frame[(row + down) % pixels, (column + across) % pixels] = 230, 60, 50
        store.append(Episode(frames, actions, None, False, True))
    return store
