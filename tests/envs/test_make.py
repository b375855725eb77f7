from __future__ import annotations

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from seqwm.core.errors import RolloutError, UnfitEnvironmentError
from seqwm.core.types import Spaces
from seqwm.envs.make import make_vector
from tests.fakes import environments  # noqa: F401

FRAMES = Spaces(spaces.Box(0, 255, (64, 64, 3), np.uint8), spaces.Discrete(6))


def test_a_lane_that_has_ended_is_not_stepped_until_it_is_reset() -> None:
    vector = make_vector("seqwm-tests/Countdown-v0", 3)
    observation, _ = vector.reset(seed=[1, 2, 3])
    lengths = observation[:, 1].astype(int)
    actions = np.full((3, 1), 0.5, np.float32)
    for step in range(1, lengths.max() + 1):  # Countdown itself refuses a step after its end
        observation, rewards, terminated, truncated, _ = vector.step(actions)
        over = step >= lengths
        np.testing.assert_array_equal(terminated | truncated, over)
        np.testing.assert_array_equal(rewards, np.where(step <= lengths, step - 0.5, 0.0))
        np.testing.assert_array_equal(observation[:, 0], np.minimum(step, lengths))
    only = np.array([False, True, False])
    again, _ = vector.reset(seed=[None, 2, None], options={"reset_mask": only})
    np.testing.assert_array_equal(again[:, 0], np.where(only, 0, lengths))
    _, rewards, *_ = vector.step(actions)
    np.testing.assert_array_equal(rewards, np.where(only, 0.5, 0.0))


def test_a_lane_is_the_environment_that_gymnasium_makes() -> None:
    vector = make_vector("Pendulum-v1", 2)
    alone = gymnasium.make("Pendulum-v1")
    first, _ = vector.reset(seed=[5, 7])
    np.testing.assert_array_equal(first[1], alone.reset(seed=7)[0])
    for force in (0.3, -2.0, 1.0):
        together = vector.step(np.array([[0.0], [force]], np.float32))
        one = alone.step(np.array([force], np.float32))
        np.testing.assert_array_equal(together[0][1], one[0])
        assert together[1][1] == one[1]


def test_observations_handed_out_stay_as_they_were() -> None:
    vector = make_vector("CartPole-v1", 1)
    before, _ = vector.reset(seed=0)
    kept = before.copy()
    vector.step(np.array([1]))
    np.testing.assert_array_equal(before, kept)


def test_an_environment_that_raises_is_named_with_its_lane_and_step() -> None:
    vector = make_vector("seqwm-tests/Breaking-v0", 2)
    vector.reset(seed=0)
    actions = np.zeros((2, 1), np.float32)
    for _ in range(3):
        vector.step(actions)
    with pytest.raises(RolloutError, match=r"Breaking-v0: lane 0: step 3: .*RuntimeError: the motor is stuck"):
        vector.step(actions)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Hoper-v5", "did you mean 'Hopper-v5'"),
        ("CartPole", "did you mean 'CartPole-v1'"),
        ("os:CartPole-v1", "not a registered environment"),
        ("zzzz", "not a registered environment"),
    ],
)
def test_only_registered_ids_are_built(name: str, said: str) -> None:
    with pytest.raises(UnfitEnvironmentError, match=said):
        make_vector(name, 1)


def test_an_id_with_a_module_does_not_import_it(tmp_path, monkeypatch) -> None:
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnfitEnvironmentError):
        make_vector("planted:CartPole-v1", 1)
    assert "planted" not in sys.modules


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(UnfitEnvironmentError, match=r"'ale_py'.*pip install 'seqwm\[atari\]'"):
        make_vector("ALE/Pong-v5", 1)


def test_spaces_that_do_not_fit_are_refused_with_both() -> None:
    with pytest.raises(UnfitEnvironmentError, match=r"found observations Box.*\(4,\).*expected.*\(64, 64, 3\)"):
        make_vector("CartPole-v1", 1, spaces=FRAMES)


@pytest.mark.parametrize(
    ("observation", "action", "fits"),
    [
        (spaces.Box(-np.inf, np.inf, (4,), np.float64), spaces.Discrete(2), True),  # a log without bounds
        (spaces.Box(-np.inf, np.inf, (4,), np.float32), spaces.Discrete(1), True),  # one that never took action 1
        (spaces.Box(-np.inf, np.inf, (4,), np.float32), spaces.Discrete(3), False),
        (spaces.Box(-np.inf, np.inf, (5,), np.float32), spaces.Discrete(2), False),
        (spaces.Box(-9, 9, (4,), np.int64), spaces.Discrete(2), False),
        (spaces.Dict({"state": spaces.Box(-np.inf, np.inf, (4,), np.float32)}), spaces.Discrete(2), False),
    ],
)
def test_a_model_fits_where_it_knows_what_it_sees_and_its_actions_exist(observation, action, fits) -> None:
    if fits:
        assert make_vector("CartPole-v1", 2, spaces=Spaces(observation, action)).num_envs == 2
    else:
        with pytest.raises(UnfitEnvironmentError):
            make_vector("CartPole-v1", 2, spaces=Spaces(observation, action))


def test_atari_frames_are_resized_to_the_stored_size() -> None:
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    vector = make_vector("ALE/Pong-v5", 1, spaces=FRAMES, options={"repeat_action_probability": 0.0})
    observation, _ = vector.reset(seed=0)
    assert (observation.shape, observation.dtype) == ((1, 64, 64, 3), np.uint8)


def test_minigrid_is_seen_whole_from_above() -> None:
    pytest.importorskip("minigrid")
    vector = make_vector("BabyAI-GoToRedBall-v0", 1, spaces=Spaces(FRAMES.observation, spaces.Discrete(7)))
    observation, _ = vector.reset(seed=0)
    assert (observation.shape, observation.dtype) == ((1, 64, 64, 3), np.uint8)
