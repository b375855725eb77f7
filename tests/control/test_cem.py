from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces

from seqwm.control.cem import CEMOptions, CEMPolicy, plan
from seqwm.control.dream import DreamEnv, imagine
from seqwm.control.rollout import play
from seqwm.core.errors import SpaceError
from seqwm.core.protocols import Step
from seqwm.core.types import Spaces
from seqwm.testing import check_policy
from tests.fakes.worlds import LinearWorld

WORLD = LinearWorld()


def least_costs(world: LinearWorld, horizon: int) -> list[np.ndarray]:
    """Riccati's recursion: x'P x is the least cost of `horizon` steps, and of fewer; P of 0 steps first."""
    A, B, Q, R = (part.double().numpy() for part in (world.A, world.B, world.Q, world.R))
    costs = [np.zeros((2, 2))]
    for _ in range(horizon):
        P = costs[-1]
        gain = np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
        costs.append(Q + A.T @ P @ (A - B @ gain))
    return costs


def test_plans_in_linear_dynamics_cost_what_riccati_says() -> None:
    starts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.7, 0.9], [0.3, 0.3]])
    options = CEMOptions(horizon=10, candidates=400, elites=40, iterations=15)
    found = plan(WORLD, {"x": starts}, WORLD.spaces.action, options, torch.arange(4))
    cost = -imagine(WORLD, {"x": starts}, found.actions, 10).rewards.sum(1).double().numpy()
    least = np.einsum("bi,ij,bj->b", starts, least_costs(WORLD, 10)[-1], starts)
    assert (cost >= least * (1 - 1e-5)).all()
    np.testing.assert_allclose(cost, least, rtol=2e-3)
    np.testing.assert_allclose(-found.value, cost, rtol=1e-2)


def test_the_planner_acts_nearly_as_well_as_the_best_controller() -> None:
    """Replanning with a horizon of 8 for 30 steps, against the least cost of those 30 steps."""
    store = WORLD.logs()
    policy = CEMPolicy(WORLD, store.spaces, WORLD.window_length, CEMOptions(horizon=8, iterations=6))
    dream = DreamEnv(WORLD, store.spaces, store.windows(4, 1), lanes=40, horizon=30, begin="anywhere")
    first, _ = dream.reset(seed=0)
    least = np.einsum("bi,ij,bj->b", first, least_costs(WORLD, 30)[-1], first)
    costs = -np.array([one.achieved for one in play(dream, policy, range(40))])
    assert (costs >= least * (1 - 1e-5)).all()
    assert costs.mean() == pytest.approx(least.mean(), rel=0.02)


class Keypad:
    """The reward of step h is that of the pair of keys, by tables; a wrong turn ends it."""

    spaces = Spaces(gym_spaces.Box(-1, 1, (1,), np.float32), gym_spaces.Discrete(3, start=-1))

    def __init__(self, seed: int) -> None:
        self.rewards = torch.randn(6, 3, 3, generator=torch.Generator().manual_seed(seed))

    def step(self, state, action, generator):
        code = action + 1
        reward = self.rewards[state["h"], state["last"], code]
        return Step({"h": (state["h"] + 1).clamp(max=5), "last": code}, reward, (code == 2) & (state["last"] == 2))

    def best(self) -> float:
        def value(codes):
            total, last = 0.0, 0
            for h, code in enumerate(codes):
                total += float(self.rewards[h, last, code])
                if code == last == 2:
                    break
                last = code
            return total

        return max(value(codes) for codes in itertools.product(range(3), repeat=6))


def test_discrete_plans_are_the_best_of_all() -> None:
    options = CEMOptions(horizon=6, candidates=800, elites=80, iterations=8)
    for seed in range(8):
        world, state = Keypad(seed), {"h": torch.zeros(1, dtype=torch.int64), "last": torch.zeros(1, dtype=torch.int64)}
        found = plan(world, state, world.spaces.action, options, torch.tensor([seed]))
        assert set(found.actions.unique().tolist()) <= {-1, 0, 1}
        imagined = imagine(world, state, found.actions, 6)
        alive = torch.cat([torch.ones(1, 1), (~imagined.terminated).cumprod(1)[:, :-1]], 1)
        assert float((imagined.rewards * alive).sum()) == pytest.approx(world.best(), rel=1e-4)


def test_actions_of_every_kind_are_planned_together() -> None:
    space = gym_spaces.Dict(
        {"push": gym_spaces.Box(-1.0, 3.0, (2,), np.float32), "gear": gym_spaces.MultiDiscrete([2, 4])}
    )

    class Target:
        def step(self, state, action, generator):
            miss = (action["push"] - torch.tensor([2.5, -0.5])).square().sum(-1)
            return Step(state, -miss + (action["gear"] == torch.tensor([1, 3])).float().sum(-1), state["x"][:, 0] > 9)

    options = CEMOptions(horizon=2, candidates=200, elites=20, iterations=12)
    found = plan(Target(), {"x": torch.zeros(3, 1)}, space, options, torch.arange(3))
    torch.testing.assert_close(found.actions["push"], torch.tensor([2.5, -0.5]).expand(3, 2, 2), atol=0.02, rtol=0)
    assert (found.actions["gear"] == torch.tensor([1, 3])).all()


def test_lanes_plan_alone_as_they_do_among_others() -> None:
    options = CEMOptions(horizon=4, candidates=32, elites=4, iterations=3)
    check_policy(lambda lanes: CEMPolicy(WORLD, WORLD.spaces, 4, options), WORLD.spaces, tolerance=1e-4)


def test_particles_average_over_what_a_world_draws() -> None:
    """A gamble of mean 0.5 and deviation 5 against a sure reward of 1, told apart by many particles."""

    class Gamble:
        def step(self, state, action, generator):
            drawn = 0.5 + 5 * torch.randn(len(action), generator=generator)
            return Step(state, torch.where(action == 0, drawn, 1.0), torch.zeros(len(action), dtype=torch.bool))

    space = gym_spaces.Discrete(2)
    state, keys = {"x": torch.zeros(20, 1)}, torch.arange(20)

    def sure(particles: int) -> float:
        options = CEMOptions(horizon=1, candidates=20, elites=5, iterations=2, particles=particles, sample=True)
        return float(plan(Gamble(), state, space, options, keys).actions.float().mean())

    assert sure(1) < 0.2
    assert sure(400) > 0.8


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"action '': Box.* cannot be searched; expected .* a Box with bounds"):
        plan(WORLD, {"x": torch.zeros(1, 2)}, gym_spaces.Box(-np.inf, np.inf, (1,)), CEMOptions(), torch.zeros(1))
    with pytest.raises(ValueError, match="elites: found 300, expected at most the 256 candidates"):
        CEMOptions(elites=300)
