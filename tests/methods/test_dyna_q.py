from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces

from seqwm.control.cem import CEMOptions, plan
from seqwm.control.dream import DreamEnv, imagine
from seqwm.control.policies import RandomPolicy
from seqwm.control.rollout import gather, play
from seqwm.core.errors import SpaceError
from seqwm.core.types import Episode, Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.envs.make import make_vector
from seqwm.envs.maze import MOVES, WIDTH, Maze
from seqwm.hub.load import load_model
from seqwm.methods.dyna_q import DynaLearner, DynaQ, Options, Table, learner
from seqwm.recipe import parse_recipe
from seqwm.run import evaluate_run, train
from seqwm.testing import check_policy, check_world_model
from seqwm.training.options import TrainOptions
from seqwm.training.tracking import read_metrics

SEEDS = range(30)


def shortest(maze: Maze) -> dict[int, int]:
    """Steps to the goal from every cell that reaches it, by breadth-first search."""
    distance, frontier = {maze.goal: 0}, [maze.goal]
    while frontier:
        cell = frontier.pop(0)
        for down, right in MOVES:
            row, column = cell // WIDTH - down, cell % WIDTH - right
            before = row * WIDTH + column
            inside = 0 <= row < 6 and 0 <= column < 9 and maze._rows[row][column] != "#"
            if inside and before not in distance:
                distance[before] = distance[cell] + 1
                frontier.append(before)
    return distance


def steps_of_episodes(options: Options, seed: int, episodes: int, maze: Maze | None = None) -> list[int]:
    maze, table, chance = maze or Maze(), Table(54, 4, options), random.Random(seed)
    lengths = []
    for _ in range(episodes):
        state, ended, steps = int(maze.reset()[0]), False, 0
        while not ended:
            action = table.act(state, chance)
            following, reward, ended, _, _ = maze.step(action)
            table.learn(state, action, reward, int(following), ended)
            table.plan(options.planning, chance)
            state, steps = int(following), steps + 1
        lengths.append(steps)
    return lengths


def cumulative_reward(options: Options, kind: str, steps: int, seed: int) -> np.ndarray:
    maze, table, chance = Maze(kind), Table(54, 4, options), random.Random(seed)
    state, rewards = int(maze.reset()[0]), []
    for _ in range(steps):
        action = table.act(state, chance)
        following, reward, ended, _, _ = maze.step(action)
        table.learn(state, action, reward, int(following), ended)
        table.plan(options.planning, chance)
        state = int(maze.reset()[0]) if ended else int(following)
        rewards.append(reward)
    return np.cumsum(rewards)


def test_the_mazes_are_the_books() -> None:
    assert shortest(Maze())[Maze().start] == 14
    assert len(shortest(Maze())) == 47
    for kind, before, after in (("blocking", 10, 16), ("shortcut", 16, 10)):
        maze = Maze(kind, change_after=1)
        assert shortest(maze)[maze.start] == before
        maze.step(0)
        assert shortest(maze)[maze.start] == after
    maze = Maze(render_mode="rgb_array")
    assert [int(maze.step(action)[0]) for action in (3, 2, 2, 0, 2, 1, 1, 2)] == [18, 19, 19, 10, 10, 19, 28, 28]
    assert maze.render().shape == (96, 144, 3)


def test_planning_makes_learning_as_much_faster_as_figure_8_2_says() -> None:
    """Mean steps of 30 seeds: near the 14 of the shortest way by the third episode with 50 planning steps."""
    curves = {n: np.mean([steps_of_episodes(Options(planning=n), s, 12) for s in SEEDS], 0) for n in (5, 50)}
    curves[0] = np.mean([steps_of_episodes(Options(planning=0), s, 4) for s in range(10)], 0)
    assert (curves[50][2:] < 25).all()
    assert 40 < curves[5][2] < 150
    assert (curves[5][8:] < 25).all()
    assert curves[0][3] > 200


def test_curiosity_pays_where_the_maze_changes_as_figures_8_4_and_8_5_say() -> None:
    for kind, steps, changed in (("blocking", 3000, 1000), ("shortcut", 6000, 3000)):
        found = {}
        for bonus in (0.0, 1e-3):
            options = Options(planning=10, step_size=1.0, bonus=bonus)
            curves = [cumulative_reward(options, kind, steps, seed) for seed in range(12)]
            found[bonus] = np.array([curve[-1] - curve[changed - 1] for curve in curves])
        gain = found[1e-3].mean() - found[0.0].mean()
        error = np.sqrt(sum(np.var(one, ddof=1) / len(one) for one in found.values()))
        assert gain > 2 * error, f"{kind}: {gain} +/- {error}"
        if kind == "shortcut":  # 3000 steps on the longer way give about 150 ends, on the shorter about 240
            assert found[1e-3].mean() > 1.2 * found[0.0].mean()


def test_sweeping_finds_the_shortest_way_with_far_fewer_updates() -> None:
    """Updates until the greedy way is the shortest, as in example 8.4."""

    def updates(options: Options, seed: int) -> int:
        maze, table, chance = Maze(), Table(54, 4, options), random.Random(seed)
        distance = shortest(maze)
        state = int(maze.reset()[0])
        while True:
            action = table.act(state, chance)
            following, reward, ended, _, _ = maze.step(action)
            table.learn(state, action, reward, int(following), ended)
            table.plan(options.planning, chance)
            state = int(maze.reset()[0]) if ended else int(following)
            if ended and greedy_length(table) == distance[maze.start]:
                return table.updates

    def greedy_length(table: Table) -> int:
        maze, state = Maze(), Maze().start
        for step in range(60):
            state, _, ended, _, _ = maze.step(int(np.argmax(table.q[int(state)])))
            if ended:
                return step + 1
        return 60

    options = {"step_size": 0.5, "planning": 5}
    swept = [updates(Options(threshold=1e-4, **options), seed) for seed in range(10)]
    drawn = [updates(Options(**options), seed) for seed in range(10)]
    assert np.mean(swept) < np.mean(drawn) / 3


def test_values_are_those_of_the_optimal_policy() -> None:
    """Swept to the end with a full step, Q is gamma to the power of the steps still to go after each action."""
    maze, table = Maze(), Table(54, 4, Options(step_size=1.0, threshold=0.0, planning=10**6))
    distance = shortest(maze)
    for cell in distance:
        if cell != maze.goal:
            for action in range(4):
                maze._place = cell
                following, reward, ended, _, _ = maze.step(action)
                table.remember(cell, action, reward, int(following), ended)
    table.plan(10**6, random.Random(0))
    for cell, steps in distance.items():
        if cell != maze.goal:
            assert max(table.q[cell]) == pytest.approx(0.95 ** (steps - 1), rel=1e-9)


@pytest.mark.parametrize("options", [Options(outcomes=3), Options(bonus=1e-3), Options(threshold=1e-3)])
def test_a_table_is_the_same_after_being_saved_and_goes_on_the_same(options) -> None:
    def live(table: Table, chance: random.Random, steps: int) -> None:
        for _ in range(steps):
            transition = (chance.randrange(9), chance.randrange(2), chance.random(), chance.randrange(9), False)
            table.learn(*transition)
            table.plan(3, chance)

    table, chance = Table(9, 2, options), random.Random(1)
    live(table, chance, 60)
    other = Table(9, 2, options)
    other.load_state_dict(table.state_dict())
    again = random.Random()
    again.setstate(chance.getstate())
    live(table, chance, 60)
    live(other, again, 60)
    assert other.q == table.q
    assert other.memory == table.memory
    assert other.updates == table.updates


def maze_logs(steps: int = 3000) -> TrajectoryStore:
    vector = make_vector("seqwm/DynaMaze-v0", 4)
    spaces = Spaces(vector.single_observation_space, vector.single_action_space)
    store = TrajectoryStore.create(None, spaces, provenance={"environment": "seqwm/DynaMaze-v0"})
    gather(vector, RandomPolicy(spaces.action, 0), store, steps, seed=0)
    return store


def test_logs_alone_are_enough_to_plan_the_shortest_way() -> None:
    store = maze_logs()
    offline = learner(Options(planning=2000), store, TrainOptions(steps=1), 0)
    for step in range(40):
        offline.update(step)
    outcomes = play(make_vector("seqwm/DynaMaze-v0", 1), offline.policy(explore=False), [0])
    assert outcomes[0].length == 14


def test_the_memory_is_a_world_to_dream_and_plan_in() -> None:
    store = maze_logs()
    model = learner(Options(), store, TrainOptions(steps=1), 0).trained()
    assert isinstance(model, DynaQ)
    context = store.windows(1, 5).batch(0)
    check_world_model(model, context, store.spaces)
    check_policy(lambda lanes: model.policy(), store.spaces)
    dream = DreamEnv(model, store.spaces, store.windows(1, 1), lanes=3, horizon=40)
    real = make_vector("seqwm/DynaMaze-v0", 3)
    (seen, _), (lived, _) = dream.reset(seed=0), real.reset(seed=0)
    generator = np.random.default_rng(0)
    for _ in range(40):
        np.testing.assert_array_equal(seen, lived)
        actions = generator.integers(4, size=3)
        seen, lived = dream.step(actions)[0], real.step(actions)[0]
    options = CEMOptions(horizon=8, candidates=2000, elites=50, iterations=4, discount=0.9)
    near = {"code": torch.tensor([4 * WIDTH + 6])}  # two to the right, four up
    found = plan(model, near, store.spaces.action, options, torch.tensor([0]))
    imagined = imagine(model, near, found.actions, 8)
    assert imagined.terminated[0].nonzero()[0].item() == 5


def test_slippery_worlds_are_drawn_from_as_they_were() -> None:
    spaces = Spaces(gym_spaces.Discrete(3), gym_spaces.Discrete(2))
    store = TrajectoryStore.create(None, spaces)
    for following in (1, 1, 2, 1):
        store.append(Episode(np.array([0, following]), np.array([1]), np.ones(1, np.float32), True, False))
    model = learner(Options(outcomes=4), store, TrainOptions(steps=1), 0).trained()
    state = {"code": torch.zeros(4000, dtype=torch.int64)}
    step = model.step(state, torch.ones(4000, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert float((step.state["code"] == 2).float().mean()) == pytest.approx(0.25, abs=0.03)
    untried = model.step(state, torch.zeros(4000, dtype=torch.int64), None)
    assert not untried.terminated.any()
    assert not untried.state["code"].any()


def maze_recipe(**model):
    description = {
        "method": "dyna_q",
        "collect": {"environment": "seqwm/DynaMaze-v0", "prefill": 1},
        "model": {"planning": 50, **model},
        "train": {"steps": 1200, "track": [], "log_every": 100, "checkpoint_every": 500},
        "evaluate": {"episodes": 1, "replay": False},
    }
    return parse_recipe(json.dumps(description), "r")


def test_a_run_learns_the_maze_saves_it_and_goes_on_after_a_kill(tmp_path, monkeypatch) -> None:
    whole = train(maze_recipe(), tmp_path / "whole")
    assert evaluate_run(whole).records[0][1].length <= 16  # 14 are the fewest
    assert float(load_model(whole).q.detach().max()) > 0.9
    update = DynaLearner.update

    def killed(self, step):
        if step == 777:
            raise KeyboardInterrupt
        return update(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(DynaLearner, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            train(maze_recipe(), tmp_path / "killed")
    resumed = train(maze_recipe(), tmp_path / "killed", resume=True)
    assert torch.equal(load_model(resumed).q, load_model(whole).q)
    found, wanted = (
        [line["environment_steps"] for line in read_metrics(run / "metrics.jsonl")] for run in (resumed, whole)
    )
    assert found == wanted


def test_what_is_no_table_is_refused() -> None:
    spaces = Spaces(gym_spaces.Box(-1, 1, (2,), np.float32), gym_spaces.Discrete(2))
    store = TrajectoryStore.create(None, spaces)
    with pytest.raises(SpaceError, match=r"observation: found Box.*expected Discrete: dyna_q is a table"):
        learner(Options(), store, TrainOptions(steps=1), 0)
    with pytest.raises(ValueError, match="bonus: found together with a threshold"):
        Options(bonus=1.0, threshold=0.1)
