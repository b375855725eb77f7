from __future__ import annotations

import sys

import gymnasium
import numpy as np
import pytest

from seqwm.core.errors import UnfitEnvironmentError
from seqwm.envs.make import make_vector
from seqwm.envs.racing import CarRacing, _smaller

GAS = np.array([0.0, 1.0, 0.0], np.float32)


def test_a_held_action_earns_what_its_frames_earn_one_by_one() -> None:
    held, alone = CarRacing(action_repeat=4), gymnasium.make("CarRacing-v3")
    first, _ = held.reset(seed=3)
    shown, _ = alone.reset(seed=3)
    np.testing.assert_array_equal(first, _smaller(shown))
    for _ in range(5):
        frame, reward, *_ = held.step(GAS)
        steps = [alone.step(GAS) for _ in range(4)]
        np.testing.assert_array_equal(frame, _smaller(steps[-1][0]))
        assert reward == pytest.approx(sum(float(step[1]) for step in steps))


def test_a_smaller_frame_keeps_the_mean_of_the_road_and_leaves_the_instruments_out() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    smaller = _smaller(frame)
    assert (smaller.shape, smaller.dtype) == ((64, 64, 3), np.uint8)
    np.testing.assert_allclose(smaller.mean((0, 1)), frame[:84].mean((0, 1)), atol=0.6)
    frame[84:] = 0
    np.testing.assert_array_equal(_smaller(frame), smaller)


def test_a_pixel_is_the_mean_of_what_it_covers() -> None:
    flat = np.full((96, 96, 3), 77, np.uint8)
    assert (_smaller(flat) == 77).all()
    left = flat.copy()
    left[:, 0] = 177  # the first pixel of a row covers one column and a half of the frame
    assert _smaller(left)[5, 0, 0] == pytest.approx(77 + 100 / 1.5, abs=1)
    assert (_smaller(left)[:, 1:] == 77).all()


def test_without_box2d_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Box2D", None)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d.car_racing", raising=False)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d.car_dynamics", raising=False)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d", raising=False)
    with pytest.raises(UnfitEnvironmentError, match=r"seqwm\[racing\]"):
        make_vector("seqwm/CarRacing-v0", 1)
