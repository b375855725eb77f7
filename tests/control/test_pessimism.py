from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces

from seqwm.control.experience import Experience
from seqwm.control.pessimism import Halt, disagreement, known_up_to, priced, spread
from seqwm.control.soft_actor_critic import SoftActorCritic, SoftActorCriticOptions
from seqwm.nn.ensemble import EnsembleOptions
from seqwm.nn.ensemble_world import EnsembleWorld

OBSERVATION = gym_spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTION = gym_spaces.Box(-1.0, 1.0, (1,), np.float32)
NOTHING = torch.zeros(3, 2), torch.zeros(3, 1)


def saying(means, deviations, slope=0.0):
    """A world whose members, of which the last is no elite, say the same everywhere; outputs in twice their units.

    With a slope the first member's first output also rises by that much a unit of the first observed number.
    """
    members = len(means)
    sizes = EnsembleOptions(members=members, elites=members - 1, layers=1, width=4)
    world = EnsembleWorld(sizes, "TS-1", OBSERVATION, ACTION)
    ensemble = world.ensemble
    with torch.no_grad():
        for p in ensemble.parameters():
            p.zero_()
        ensemble.most.fill_(50.0)  # so far away that they do not bend what is in between
        ensemble.least.fill_(-50.0)
        said = [[*mean, *(2 * math.log(d) for d in own)] for mean, own in zip(means, deviations, strict=True)]
        ensemble.biases[-1].copy_(torch.tensor(said)[:, None])
        ensemble.weights[0][0, 0, 0] = 1.0
        ensemble.biases[0][0, 0, 0] = 30.0  # where silu is the identity
        ensemble.weights[1][0, 0, 0] = slope
        ensemble.biases[1][0, 0, 0] -= 30.0 * slope
    world.output_std.fill_(2.0)
    return world


MEANS = [[0.0, 0.0, 9.0, 9.0], [3.0, 0.0, 0.0, 0.0], [0.0, 4.0, 5.0, 5.0], [100.0, 100.0, 0.0, 0.0]]
DEVIATIONS = [[1.0, 2.0, 2.0, 50.0], [0.1, 0.1, 0.1, 0.1], [3.0, 0.1, 0.1, 0.1], [90.0, 90.0, 90.0, 90.0]]


def test_the_price_is_of_the_largest_deviation_of_observation_and_reward_that_an_elite_predicts():
    world = saying(MEANS, DEVIATIONS)
    largest = 2 * max(3.0, math.sqrt(9 + 0.01 + 0.01))  # of the first elite and of the third, the end left out
    torch.testing.assert_close(spread(world, *NOTHING), torch.full((3,), largest), rtol=1e-4, atol=0)
    ends = torch.tensor([True, False, False])
    reward, terminated = priced(world, 0.5)(*NOTHING, torch.tensor([1.0, 2.0, 3.0]), ends)
    torch.testing.assert_close(reward, torch.tensor([1.0, 2.0, 3.0]) - 0.5 * largest, rtol=0, atol=1e-4)
    assert torch.equal(terminated, ends)


def test_disagreement_is_the_largest_distance_between_two_elites_about_the_observation():
    torch.testing.assert_close(disagreement(saying(MEANS, DEVIATIONS), *NOTHING), torch.full((3,), 5.0))


def test_one_member_alone_never_disagrees():
    world = saying(MEANS[:2], DEVIATIONS[:2])
    assert disagreement(world, *NOTHING).tolist() == [0, 0, 0]


def test_the_world_halts_above_the_threshold_and_not_at_it():
    world = saying(MEANS, DEVIATIONS)
    exactly = float(disagreement(world, *NOTHING)[0])
    reward, ends = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, False, False])
    distance = disagreement(world, *NOTHING)
    at = Halt(exactly, -0.5, 0.9).amend(distance, reward, ends)
    assert torch.equal(at[0], reward)
    assert torch.equal(at[1], ends)
    above = Halt(math.nextafter(exactly, 0) - 1e-6, -0.5, 0.9).amend(distance, reward, ends)
    torch.testing.assert_close(above[0], torch.full((3,), -5.0))
    assert above[1].tolist() == [True, True, True]
    assert Halt(1.0, -0.5, 0.9).amend(torch.full((3,), torch.nan), reward, ends)[1].tolist() == [True, True, True]


def test_what_a_halt_is_worth_is_the_sum_of_its_rewards_for_ever_whatever_critics_say():
    discount, reward = 0.97, -1.5
    paid, ended = Halt(0.0, reward, discount).amend(torch.ones(3), torch.zeros(3), torch.zeros(3).bool())
    torch.manual_seed(0)
    agent = SoftActorCritic(SoftActorCriticOptions(width=8, discount=discount), 2, ACTION)
    rows = Experience(*NOTHING, paid, torch.randn(3, 2), ended.float())
    with torch.no_grad():
        target = agent.targets(rows, torch.randn(3, 1), torch.randn(3))
    for_ever = sum(reward * discount**t for t in range(2000))
    torch.testing.assert_close(target, torch.full((3,), for_ever), rtol=1e-5, atol=0)


def test_the_threshold_is_the_quantile_of_the_datas_own_disagreement():
    world = saying([[0.0] * 4] * 3, DEVIATIONS[:3], slope=0.5)
    observation = torch.linspace(-4, 4, 101)[:, None].expand(-1, 2)
    rows = Experience(observation, torch.zeros(101, 1), torch.zeros(101), observation, torch.zeros(101)).packed()
    expected = np.quantile(np.abs(observation[:, 0].numpy()) / 2, 0.9)
    assert known_up_to(world, rows, 0.9, seed=0) == pytest.approx(expected, rel=1e-4)
    many = rows.repeat(300, 1)
    assert known_up_to(world, many, 0.9, seed=0) == pytest.approx(expected, rel=0.05)
    assert known_up_to(world, many, 0.9, seed=0) == known_up_to(world, many, 0.9, seed=0)
