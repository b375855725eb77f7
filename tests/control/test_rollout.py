from __future__ import annotations

import numpy as np
import pytest
import torch

from seqwm.control.collect import collect
from seqwm.control.gathering import Gathering
from seqwm.control.policies import RandomPolicy
from seqwm.control.rollout import gather, play
from seqwm.core.errors import DataError, RolloutError
from seqwm.core.tree import unflatten
from seqwm.core.types import Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.envs.make import make_vector
from tests.fakes import environments

COUNTDOWN = "seqwm-tests/Countdown-v0"


class Remembering:
    """Acts by its own past: the running sum of rewards and its lane's number, all in the state."""

    def __init__(self) -> None:
        self.lanes_seen: list[int] = []

    def initial(self, lanes):
        return {"sum": torch.zeros(lanes), "steps": torch.zeros(lanes, dtype=torch.int64)}

    def act(self, state, observation, reward, first):
        self.lanes_seen.append(len(first))
        total = torch.where(first, 0.0, state["sum"] + reward)
        steps = torch.where(first, 0, state["steps"] + 1)
        assert observation.dtype == torch.float32
        torch.testing.assert_close(observation[:, 0].long(), steps)  # each lane kept its own state
        action = torch.sin(total + observation[:, 2]).unsqueeze(1)
        return action, {"sum": total, "steps": steps}


def by_hand(seed: int) -> tuple[float, int, bool, bool]:
    """The episode of `Remembering` in `Countdown`, written out for one environment."""
    env = environments.Countdown()
    observation, _ = env.reset(seed=seed)
    achieved, length, total = 0.0, 0, torch.zeros(())
    while True:
        action = torch.sin(total + torch.tensor(observation[2], dtype=torch.float32))
        observation, reward, terminated, truncated, _ = env.step(action.numpy().reshape(1))
        achieved, length, total = achieved + reward, length + 1, total + torch.tensor(reward, dtype=torch.float32)
        if terminated or truncated:
            return achieved, length, terminated, truncated


def test_every_lane_plays_the_episode_that_it_would_play_alone() -> None:
    seeds = list(range(40, 56))
    outcomes = play(make_vector(COUNTDOWN, len(seeds)), Remembering(), seeds)
    found = [(one.achieved, one.length, one.terminated, one.truncated) for one in outcomes]
    assert found == [by_hand(seed) for seed in seeds]
    assert [one.seed for one in outcomes] == seeds
    assert {one.terminated for one in outcomes} == {True, False}


def test_the_policy_acts_only_in_lanes_that_still_run() -> None:
    policy, seeds = Remembering(), list(range(12))
    outcomes = play(make_vector(COUNTDOWN, 12), policy, seeds)
    lengths = np.array([one.length for one in outcomes])
    assert policy.lanes_seen == [int((lengths > step).sum()) for step in range(lengths.max())]


def test_more_lanes_than_seeds_leave_the_others_alone() -> None:
    vector = make_vector(COUNTDOWN, 4)
    both = play(vector, Remembering(), [7, 8, 9, 10])
    assert play(vector, Remembering(), [7, 8]) == both[:2]


def test_box_actions_are_clipped_and_those_that_are_no_numbers_refused() -> None:
    class Constant:
        def __init__(self, value: float) -> None:
            self.value = value

        def initial(self, lanes):
            return {}

        def act(self, state, observation, reward, first):
            return torch.full((len(first), 1), self.value), state

    [outcome] = play(make_vector(COUNTDOWN, 1), Constant(25.0), [3])
    assert outcome.achieved == sum(range(outcome.length)) + outcome.length * 1.0
    with pytest.raises(RolloutError, match="Countdown-v0: lane 0: the policy's action is not finite"):
        play(make_vector(COUNTDOWN, 2), Constant(float("nan")), [3, 4])


def test_watching_sees_the_first_observation_and_every_step() -> None:
    calls: list[int] = []
    [outcome] = play(make_vector(COUNTDOWN, 1), Remembering(), [5], watch=lambda: calls.append(1))
    assert len(calls) == outcome.length + 1


def test_a_store_gets_the_transitions_asked_for_and_each_episode_replays() -> None:
    store = collect(COUNTDOWN, Remembering(), 101, None, lanes=4, seed=3, progress=False)
    assert store.rows == 101
    whole = [episode for episode in store.episodes() if episode.observations[-1, 0] == episode.observations[0, 1]]
    assert len(store) - len(whole) <= 4  # those that were open at the end
    seeds = [episode.meta["seed"] for episode in store.episodes()]
    assert len(set(seeds)) == len(seeds)
    for episode in whole:
        achieved, length, terminated, truncated = by_hand(int(episode.meta["seed"]))
        assert (len(episode), episode.terminated, episode.truncated) == (length, terminated, truncated)
        assert float(episode.rewards.sum()) == pytest.approx(achieved, abs=1e-5)
    assert all(episode.truncated for episode in store.episodes() if not episode.terminated)


def test_collecting_again_with_the_same_seed_gives_the_same_store() -> None:
    first, again, other = (collect("CartPole-v1", None, 90, None, lanes=3, seed=s, progress=False) for s in (1, 1, 2))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint
    assert first.provenance["source"] == "collect:CartPole-v1"
    assert first.provenance["environment"] == "CartPole-v1"


def test_spaces_of_every_kind_are_collected_as_they_are(tmp_path) -> None:
    collect("seqwm-tests/Rooms-v0", None, 10, tmp_path / "store", lanes=2, seed=0, progress=False).close()
    store = TrajectoryStore.open(tmp_path / "store")
    assert store.spaces == Spaces(environments.Rooms.observation_space, environments.Rooms.action_space)
    assert sorted(store.lengths.tolist()) == [2, 2, 3, 3]
    episode = store.episode(0)
    assert episode.observations["camera"].shape == (4, 4, 4, 3)
    assert set(episode.actions) == {"push", "turn"}


def test_what_was_collected_before_an_environment_raised_is_in_the_store(tmp_path) -> None:
    with pytest.raises(RolloutError, match=r"Breaking-v0: lane 0: step 3"):
        collect("seqwm-tests/Breaking-v0", None, 100, tmp_path / "store", lanes=2, seed=0, progress=False)
    store = TrajectoryStore.open(tmp_path / "store")
    assert store.lengths.tolist() == [3, 3]
    assert store.truncated.all()
    assert store.verify() == []


def test_an_episode_that_the_store_refuses_is_named_with_its_environment_and_lane() -> None:
    with pytest.raises(RolloutError, match=r"Blind-v0: lane \d: .*step 1, column 'observations\[0\]': \[not-finite\]"):
        collect("seqwm-tests/Blind-v0", None, 50, None, lanes=2, seed=0, progress=False)


def test_more_lanes_than_steps_collect_no_more_than_was_asked() -> None:
    store = collect(COUNTDOWN, None, 3, None, lanes=8, seed=0, progress=False)
    assert store.lengths.tolist() == [1, 1, 1]


def test_an_interrupted_collection_keeps_its_store(tmp_path) -> None:
    class Interrupting(RandomPolicy):
        calls = 0

        def act(self, state, observation, reward, first):
            self.calls += 1
            if self.calls > 20:
                raise KeyboardInterrupt
            return super().act(state, observation, reward, first)

    vector = make_vector(COUNTDOWN, 2)
    store = TrajectoryStore.create(tmp_path / "s", Spaces(vector.single_observation_space, vector.single_action_space))
    with pytest.raises(KeyboardInterrupt):
        gather(vector, Interrupting(vector.single_action_space, 0), store, 1000, seed=0)
    assert TrajectoryStore.open(tmp_path / "s").rows == 40


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="a folder with files in it"):
        collect("CartPole-v1", None, 10, tmp_path, progress=False)


def test_random_play_is_uniform_and_a_lane_draws_the_same_beside_others() -> None:
    space = environments.Countdown.action_space
    policy = RandomPolicy(space, seed=4)
    state = policy.initial(500)
    nothing = torch.zeros(500)
    drawn = torch.stack([policy.act(state, nothing, nothing, nothing)[0] for _ in range(20)])
    assert abs(float(drawn.mean())) < 0.02
    assert abs(float(drawn.var()) - 1 / 3) < 0.02
    state = policy.initial(500)
    some = {"lane": state["lane"][[3, 200]]}
    assert torch.equal(policy.act(some, nothing, nothing, nothing)[0], drawn[0, [3, 200]])


@pytest.mark.parametrize("environment", ["CartPole-v1", "Pendulum-v1", "InvertedPendulum-v5", "FrozenLake-v1"])
def test_episodes_under_way_go_on_in_another_process_as_they_would_have(environment) -> None:
    """Environments keep no state between processes: what they did is played again from its seed."""

    def gathering():
        vector = make_vector(environment, 3)
        store = TrajectoryStore.create(None, Spaces(vector.single_observation_space, vector.single_action_space))
        return Gathering(vector, store, seed=5), store, Hashing(vector.single_action_space)

    whole, expected, policy = gathering()
    for _ in range(70):
        whole.round(policy)
    begun, first, policy = gathering()
    for _ in range(33):
        begun.round(policy)
    state = begun.state_dict()
    state["policy"] = unflatten(state["policy"])  # as a checkpoint gives back names with slashes
    resumed, second, policy = gathering()
    assert resumed.load_state_dict(state) == []
    for _ in range(37):
        resumed.round(policy)
    whole.cut()
    resumed.cut()
    found = [*first.episodes(), *second.episodes()]
    assert len(found) == len(expected)
    for one, other in zip(found, expected.episodes(), strict=True):
        np.testing.assert_array_equal(one.observations, other.observations)
        np.testing.assert_array_equal(one.rewards, other.rewards)
        assert one.meta == other.meta


class Hashing:
    """Acts by a number that depends on everything it has seen."""

    def __init__(self, space) -> None:
        self.space = space

    def initial(self, lanes):
        return {"seen/sum": torch.zeros(lanes, dtype=torch.float64)}

    def act(self, state, observation, reward, first):
        seen = observation.reshape(len(first), -1).double().sum(1) + torch.where(first, 0.0, reward)
        total = torch.where(first, 0.0, 0.9 * state["seen/sum"]) + seen
        if hasattr(self.space, "n"):
            return (total * 1000).long() % int(self.space.n), {"seen/sum": total}
        return torch.sin(1000 * total)[:, None].float() * float(self.space.high[0]), {"seen/sum": total}
