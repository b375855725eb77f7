from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces

from seqwm.control.actor_critic import lambda_returns
from seqwm.control.imagined_paths import Paths, imagine_paths
from seqwm.control.pessimism import Halt, apart
from seqwm.control.value_baseline import ValueBaseline
from seqwm.nn.ensemble import EnsembleOptions
from seqwm.nn.ensemble_world import EnsembleWorld

OBSERVATION = gym_spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTION = gym_spaces.Box(-1.0, 1.0, (1,), np.float32)


def drifting():
    """A world in which the first number grows by 1 a step and a step earns 2; it ends above 3."""
    sizes = EnsembleOptions(members=2, elites=2, layers=1, width=4)
    world = EnsembleWorld(sizes, "TS-1", OBSERVATION, ACTION, ends=lambda observation: observation[:, 0] > 3)
    with torch.no_grad():
        for p in world.ensemble.parameters():
            p.zero_()
        world.ensemble.least.fill_(-50.0)
        world.ensemble.biases[-1].copy_(torch.tensor([1.0, 0.0, 2.0, 0.0, *[-40.0] * 4]))
    return world


def paths(starts, horizon=5, halt=None, action=0.5, world=None):
    world = world or drifting()

    def act(observation):
        return torch.full((len(observation), 1), action)

    def doubt(said, reward, ended):
        return halt.amend(apart(world, said), reward, ended) if halt else (reward, ended)

    return imagine_paths(world, act, starts, horizon, torch.Generator().manual_seed(0), doubt)


def test_paths_go_on_to_their_end_or_to_the_horizon_and_hold_zeros_behind_it():
    made = paths(torch.tensor([[0.0, 7.0], [2.0, 8.0], [-9.0, 9.0]]))
    assert made.lived.sum(0).tolist() == [4, 2, 5]
    assert made.terminated.nonzero().tolist() == [[1, 1], [3, 0]]
    torch.testing.assert_close(made.reward.sum(0), torch.tensor([8.0, 4.0, 10.0]))
    first = torch.tensor([[0.0, 1, 2, 3, 0, 0], [2, 3, 0, 0, 0, 0], [-9, -8, -7, -6, -5, -4]])
    torch.testing.assert_close(made.observation[..., 0].T, first)
    torch.testing.assert_close(made.observation[-1], torch.tensor([[0.0, 0], [0, 0], [-4, 9]]))


def test_a_path_halts_where_members_disagree_and_ends_where_there_is_no_number():
    world = drifting()
    with torch.no_grad():  # the second member's word on the second number rises with the first, where silu is straight
        world.ensemble.weights[0][1, 0, 0] = 1.0
        world.ensemble.biases[0][1, 0, 0] = 30.0
        world.ensemble.weights[1][1, 1, 0] = 1.0
        world.ensemble.biases[1][1, 0, 1] = -30.0
    made = paths(torch.tensor([[0.0, 0.0]]), halt=Halt(0.5, -7.0, 0.5), world=world)
    assert made.lived[:, 0].tolist() == [True, True, False, False, False]
    torch.testing.assert_close(made.reward[:, 0], torch.tensor([2.0, -14.0, 0, 0, 0]))
    lost = paths(torch.tensor([[0.0, torch.nan]]))
    assert lost.lived[:, 0].tolist() == [True, False, False, False, False]
    assert bool(lost.terminated[0, 0])
    assert bool(lost.observation[1:].isfinite().all())


def test_the_world_takes_actions_within_their_bounds_and_paths_keep_what_was_drawn():
    world = drifting()
    with torch.no_grad():  # the second number moves by the action
        world.ensemble.weights[0][:, 0, 2] = 1.0
        world.ensemble.biases[0][:, 0, 0] = 30.0
        world.ensemble.weights[1][:, 1, 0] = 1.0
        world.ensemble.biases[1][:, 0, 1] = -30.0
    made = paths(torch.zeros(1, 2), horizon=1, action=-3.0, world=world)
    assert made.action[0].tolist() == [[-3.0]]
    torch.testing.assert_close(made.observation[1, 0], torch.tensor([1.0, -1.0]), rtol=0, atol=1e-3)


def test_advantages_are_those_of_lambda_returns_standardised_over_what_was_lived_and_values_are_learned():
    torch.manual_seed(0)
    steps, lanes = 40, 50
    position = torch.rand(steps + 1, lanes, 1) * 2 - 1
    reward = 3 * position[:-1, :, 0]
    terminated = torch.ones(steps, lanes, dtype=torch.bool)  # each step is its own task, worth its reward
    made = Paths(position, torch.zeros(steps, lanes, 1), reward, terminated, torch.ones_like(terminated))
    baseline = ValueBaseline(1, 0.9, 0.95)
    for turn in range(10):
        advantages, figures = baseline.advantages(made, position, torch.Generator().manual_seed(turn))
    assert float(advantages.mean()) == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(advantages.std(), torch.tensor(1.0))
    assert figures["explained"] > 0.99
    whole = lambda_returns(reward, torch.zeros_like(reward), torch.zeros_like(reward), 1.0)
    torch.testing.assert_close(baseline.unit, whole.abs().max())
    values = (baseline.network(position)[..., 0] * baseline.unit).detach()
    torch.testing.assert_close(values[:-1], reward, atol=0.3, rtol=0)
