from __future__ import annotations

import numpy as np
import pytest
import torch

from seqwm.core.errors import RecipeError
from seqwm.nn.goals import goal, upright_in_the_middle


def test_the_goal_of_a_pole_is_its_tip_above_the_middle_without_force():
    following = torch.tensor([[0.0, 0.0, 3.0, -3.0], [0.6, 0.0, 0.0, 0.0], [-0.3, np.pi / 6, 0.0, 0.0]])
    below = 0.6 * (1 - np.sqrt(0.75))  # the tip of the third is above the middle again, and lower
    expected = [1.0, np.exp(-1.0), np.exp(-((below / 0.6) ** 2))]
    found = upright_in_the_middle(torch.zeros(3, 4), torch.zeros(3, 1), following)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    pushed = upright_in_the_middle(torch.zeros(3, 4), torch.tensor([[-1.0], [0.5], [0.0]]), following)
    assert (found - pushed).tolist() == pytest.approx([0.09, 0.0225, 0.0], abs=1e-6)


def test_the_tip_is_where_mujoco_has_it():
    gymnasium = pytest.importorskip("gymnasium")
    mujoco = pytest.importorskip("mujoco", reason="an extra")
    with gymnasium.make("InvertedPendulum-v5") as real:
        real.reset(seed=0)
        task = real.unwrapped
        task.set_state(np.array([0.2, 0.15]), np.zeros(2))
        pole = mujoco.mj_name2id(task.model, mujoco.mjtObj.mjOBJ_GEOM, "cpole")
        half = 0.3 * task.data.geom_xmat[pole].reshape(3, 3)[:, 2]
        joint, tip = sorted((task.data.geom_xpos[pole] + sign * half for sign in (-1, 1)), key=lambda end: end[2])
        distance = np.linalg.norm(tip - (joint - [0.2, 0.0, 0.0]) - [0.0, 0.0, 0.6])
    following = torch.tensor([[0.2, 0.15, 0.0, 0.0]])
    found = upright_in_the_middle(following, torch.zeros(1, 1), following)
    assert float(found) == pytest.approx(np.exp(-((distance / 0.6) ** 2)), abs=2e-3)  # its axis: a millimetre aside


def test_an_environment_without_a_goal_is_named_with_those_that_have_one():
    with pytest.raises(RecipeError, match=r"no goal of 'Hopper-v5' was .*known: InvertedPendulum-v5; use 'reward'"):
        goal("Hopper-v5")
