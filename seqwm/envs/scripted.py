"""Players who know the rules of the built-in worlds: what experts' logs are made of.

A player reads frames as anybody could, so that it acts in the environment and in a dream of it alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqwm.core.errors import UnfitEnvironmentError
from seqwm.envs.catch import Catch


@dataclass(frozen=True, slots=True)
class Player:
    """How a world is played.

    Attributes:
        choose: the frames before (equal to the last where an episode begins) and the last ones, uint8 [B, H, W, C], to
            actions int64 [B].
        shape: of a frame.
    """

    choose: Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.int64]]
    shape: tuple[int, ...]


_PADDLE, _BALL = 128, 255  # the greys of Catch


def scripted_player(environment: str) -> Player:
    """The player of an environment.

    Raises:
        UnfitEnvironmentError: nobody has written one.
    """
    if environment not in _PLAYERS:
        known = ", ".join(_PLAYERS)
        raise UnfitEnvironmentError(f"{environment}: has no scripted player; expected {known}, or a trained policy")
    return _PLAYERS[environment]


def catch_player(before: NDArray[np.uint8], now: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Go where the ball of `seqwm.envs.catch` is about to be, and stay where that is at most a column away."""
    ball = _ball(now)
    drift = ball - _ball(before)
    ahead = ball + drift
    ahead = np.where((ahead < 0) | (ahead >= now.shape[2]), ball - drift, ahead)
    shown = now[:, -1, :, 0]
    paddle = _middle(shown > 0)
    # In the last row but one the ball hides some of the paddle; what sticks out says on which side it is.
    left, right = (shown == _PADDLE).argmax(1), shown.shape[1] - 1 - (shown == _PADDLE)[:, ::-1].argmax(1)
    beside = np.where(left < ball, left + 1, right - 1)
    hidden = np.where((shown == _PADDLE).any(1), beside, ball)
    away = ahead - np.where((shown == _BALL).any(1), hidden, paddle)
    return np.where(np.abs(away) <= 1, 1, 1 + np.sign(away)).astype(np.int64)


def _ball(frames: NDArray[np.uint8]) -> NDArray[np.int64]:
    return _middle((frames[..., 0] == _BALL).any(1))


def _middle(columns: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The middle of a body three columns wide that the walls may cut, int64 [B], of where it is, bool [B, W]."""
    width = columns.shape[1]
    first, last = columns.argmax(1), width - 1 - columns[:, ::-1].argmax(1)
    return np.asarray(np.where(first == 0, last - 1, first + 1))


_PLAYERS: dict[str, Player] = {"seqwm/Catch-v0": Player(catch_player, Catch.observation_space.shape)}
