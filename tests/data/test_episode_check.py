"""Every class of bad episode that a store refuses, each built by breaking a good one in one place."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces as gym_spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from seqwm.core.tree import flatten
from seqwm.core.types import Episode, Spaces
from seqwm.data.episode_check import check_episode, check_final_observation
from tests.strategies import episode_sets, random_episode

BOXES = Spaces(gym_spaces.Box(-np.inf, np.inf, (3,), np.float32), gym_spaces.Box(-1, 1, (2,), np.float32))
FRAMES = Spaces(
    gym_spaces.Dict(
        {"camera": gym_spaces.Box(0, 255, (6, 5, 3), np.uint8), "pose": gym_spaces.Box(-2, 2, (2,), np.float64)}
    ),
    gym_spaces.Discrete(4, start=1),
)
PAIRS = Spaces(gym_spaces.Discrete(7), gym_spaces.MultiDiscrete([3, 5]))


def episode(spaces=BOXES, length=5, **options):
    """A good one: actions lie in the space, too."""
    made = random_episode(spaces, length, np.random.default_rng(0), **options)
    if isinstance(spaces.action, gym_spaces.Box):
        made = replace(made, actions=np.clip(made.actions, -1, 1))
    if spaces is FRAMES:
        made.observations["pose"].clip(-2, 2, out=made.observations["pose"])
    return made


def problems_of(broken, spaces=BOXES, *, rewards=True):
    return check_episode(broken, spaces, rewards=rewards, number=7, file="logs.hdf5")


def put(array, place, value):
    """A copy with one entry changed."""
    changed = array.copy()
    changed[place] = value
    return changed


def with_observation(made, name, leaf):
    return replace(made, observations={**made.observations, name: leaf})


GOOD, FRAME, PAIR = episode(), episode(FRAMES), episode(PAIRS)
VECTOR = GOOD.observations

# name: (broken episode, spaces, check, step, column, severity)
BROKEN = {
    "NaN in an observation": (
        replace(GOOD, observations=put(VECTOR, (3, 1), np.nan)), BOXES, "not-finite", 3, "observations[1]", "error",
    ),
    "infinity in the final observation": (
        replace(GOOD, observations=put(VECTOR, (5, 0), -np.inf)), BOXES, "not-finite", 5, "observations[0]", "error",
    ),
    "NaN in an action": (
        replace(GOOD, actions=put(GOOD.actions, (4, 1), np.nan)), BOXES, "not-finite", 4, "actions[1]", "error",
    ),
    "infinite reward": (
        replace(GOOD, rewards=put(GOOD.rewards, 2, np.inf)), BOXES, "not-finite", 2, "rewards", "error",
    ),
    "return that float32 cannot hold": (
        replace(GOOD, rewards=np.full(5, 1e38, np.float32)), BOXES, "not-finite", 1, "rewards", "error",
    ),
    "float64 that float32 cannot hold": (
        replace(GOOD, observations=put(VECTOR.astype(np.float64), (1, 2), 1e39)),
        BOXES, "not-finite", 1, "observations[2]", "error",
    ),
    "fewer actions than rewards": (
        replace(GOOD, actions=GOOD.actions[:4]), BOXES, "ragged-episode", 4, "actions", "error",
    ),
    "fewer rewards than actions": (
        replace(GOOD, rewards=GOOD.rewards[:3]), BOXES, "ragged-episode", 3, "rewards", "error",
    ),
    "one part of the observation shorter": (
        with_observation(FRAME, "pose", FRAME.observations["pose"][:5]),
        FRAMES, "ragged-episode", 5, "observations/pose", "error",
    ),
    "T observations where T+1 are promised": (
        replace(GOOD, observations=VECTOR[:5]), BOXES, "observation-length", 5, "observations", "error",
    ),
    "T+5 observations": (
        replace(GOOD, observations=np.concatenate([VECTOR, VECTOR[:4]])),
        BOXES, "observation-length", 6, "observations", "error",
    ),
    "float64 for float32": (
        replace(GOOD, observations=VECTOR.astype(np.float64)), BOXES, "narrowing-cast", None, "observations", "warning",
    ),
    "int for float": (
        replace(GOOD, actions=GOOD.actions.astype(np.int8)), BOXES, "wrong-type", None, "actions", "error",
    ),
    "float for an index": (
        replace(PAIR, observations=PAIR.observations.astype(np.float32)),
        PAIRS, "wrong-type", None, "observations", "error",
    ),
    "an int that the dtype cannot hold": (
        with_observation(FRAME, "camera", put(FRAME.observations["camera"].astype(np.int64), (2, 1, 4, 0), 256)),
        FRAMES, "wrong-type", 2, "observations/camera[1, 4, 0]", "error",
    ),
    "objects": (
        replace(GOOD, observations=VECTOR.astype(object)), BOXES, "wrong-type", None, "observations", "error",
    ),
    "a list": (replace(GOOD, actions=GOOD.actions.tolist()), BOXES, "wrong-type", None, "actions", "error"),
    "wrong last dimension": (
        replace(GOOD, observations=VECTOR[:, :2]), BOXES, "wrong-shape", None, "observations", "error",
    ),
    "indices with a dimension too many": (
        replace(FRAME, actions=FRAME.actions[:, None]), FRAMES, "wrong-shape", None, "actions", "error",
    ),
    "images of another size": (
        with_observation(FRAME, "camera", FRAME.observations["camera"][:, :4]),
        FRAMES, "image-shape", None, "observations/camera", "error",
    ),
    "channel first": (
        with_observation(FRAME, "camera", FRAME.observations["camera"].transpose(0, 3, 1, 2)),
        FRAMES, "channel-order", None, "observations/camera", "error",
    ),
    "float images": (
        with_observation(FRAME, "camera", FRAME.observations["camera"] / np.float32(255)),
        FRAMES, "image-dtype", None, "observations/camera", "error",
    ),
    "terminated and truncated": (
        replace(GOOD, terminated=True, truncated=True), BOXES, "contradicting-flags", None, None, "error",
    ),
    "index beyond the space": (
        replace(FRAME, actions=put(FRAME.actions, 3, 5)), FRAMES, "outside-space", 3, "actions", "error",
    ),
    "index before the space": (
        replace(FRAME, actions=put(FRAME.actions, 1, 0)), FRAMES, "outside-space", 1, "actions", "error",
    ),
    "one of several indices beyond": (
        replace(PAIR, actions=put(PAIR.actions, (2, 0), 3)), PAIRS, "outside-space", 2, "actions[0]", "error",
    ),
    "action beyond its bound": (
        replace(GOOD, actions=put(GOOD.actions, (0, 1), 1.0001)), BOXES, "outside-space", 0, "actions[1]", "error",
    ),
    "observation beyond its bound": (
        with_observation(FRAME, "pose", put(FRAME.observations["pose"], (4, 1), 2.5)),
        FRAMES, "outside-space", 4, "observations/pose[1]", "warning",
    ),
    "observed index beyond the space": (
        replace(PAIR, observations=put(PAIR.observations, 5, 7)), PAIRS, "outside-space", 5, "observations", "warning",
    ),
    "no step": (
        replace(GOOD, observations=VECTOR[:1], actions=GOOD.actions[:0], rewards=GOOD.rewards[:0]),
        BOXES, "empty-episode", None, None, "error",
    ),
    "one step without a final observation": (
        Episode(VECTOR[:1], GOOD.actions[:1], GOOD.rewards[:1], True, False, final_observation=False),
        BOXES, "no-transition", None, None, "error",
    ),
    "no rewards in a set that has them": (
        replace(GOOD, rewards=None), BOXES, "missing-column", None, "rewards", "error",
    ),
    "no actions in a set that has them": (
        replace(GOOD, actions=None), BOXES, "missing-column", None, "actions", "error",
    ),
    "a part of the observation missing": (
        replace(FRAME, observations={"camera": FRAME.observations["camera"]}),
        FRAMES, "missing-column", None, "observations/pose", "error",
    ),
    "a part that the space does not name": (
        with_observation(FRAME, "depth", FRAME.observations["pose"]),
        FRAMES, "unknown-column", None, "observations/depth", "error",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_episode_is_named_with_check_file_episode_step_and_column(name):
    broken, spaces, check, step, column, severity = BROKEN[name]
    told = problems_of(broken, spaces)
    found = [problem for problem in told if problem.severity == "error"] or told
    assert [(p.check, p.step, p.column, p.severity) for p in found] == [(check, step, column, severity)]
    assert (found[0].file, found[0].episode) == ("logs.hdf5", 7)
    assert found[0].found
    assert found[0].expected
    assert found[0].mend


def test_rewards_in_a_set_without_them_are_refused():
    (problem,) = problems_of(GOOD, rewards=False)
    assert (problem.check, problem.column) == ("missing-column", "rewards")


@settings(max_examples=150, deadline=None)
@given(episode_sets())
def test_no_good_episode_is_accused(content):
    spaces, rewards, episodes = content
    for number, good in enumerate(episodes):
        assert check_episode(good, spaces, rewards=rewards, number=number) == []


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_single_nan_is_found_wherever_it_is(data):
    spaces, _, episodes = data.draw(episode_sets())
    kinds = {"observations": flatten(episodes[0].observations)}
    if episodes[0].actions is not None:
        kinds["actions"] = flatten(episodes[0].actions)
    floats = [(kind, path) for kind, leaves in kinds.items() for path in leaves if leaves[path].dtype.kind == "f"]
    if not floats:
        return
    kind, path = data.draw(st.sampled_from(floats))
    leaf = kinds[kind][path]
    place = tuple(data.draw(st.integers(0, extent - 1)) for extent in leaf.shape)
    leaf[place] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    (problem,) = check_episode(episodes[0], spaces, rewards=episodes[0].rewards is not None, number=0)
    column = f"{kind}/{path}" if path else kind
    entry = f"{column}[{', '.join(map(str, place[1:]))}]" if len(place) > 1 else column
    assert (problem.check, problem.step, problem.column) == ("not-finite", place[0], entry)


def test_bounds_forgive_the_rounding_of_a_float32_log():
    bound = np.nextafter(np.float32(1), np.float32(2))
    assert problems_of(replace(GOOD, actions=put(GOOD.actions, (0, 0), bound))) == []


def test_narrower_numbers_of_the_same_kind_are_taken_without_a_word():
    small = replace(PAIR, observations=PAIR.observations.astype(np.uint8), actions=PAIR.actions.astype(np.int16))
    assert problems_of(small, PAIRS) == []
    assert problems_of(with_observation(FRAME, "pose", FRAME.observations["pose"].astype(np.float32)), FRAMES) == []


def test_all_problems_of_an_episode_are_told_at_once():
    broken = replace(
        GOOD, actions=put(put(GOOD.actions, (1, 0), 3), (2, 1), np.nan), rewards=put(GOOD.rewards, 0, np.nan)
    )
    found = [(p.check, p.column, p.step) for p in problems_of(broken)]
    assert found == [("not-finite", "actions[1]", 2), ("outside-space", "actions[0]", 1), ("not-finite", "rewards", 0)]


def test_the_number_of_further_places_is_told():
    (problem,) = problems_of(replace(GOOD, observations=np.full_like(VECTOR, np.nan)))
    assert problem.found == "nan (and 17 more)"


def test_a_set_that_keeps_final_observations_keeps_them_in_every_ended_episode():
    without = replace(GOOD, observations=VECTOR[:5], final_observation=False)
    (problem,) = check_final_observation(without, True, number=3, file="logs.hdf5")
    assert (problem.check, problem.episode, problem.step, problem.column) == (
        "mixed-final-observation", 3, 5, "observations",
    )  # fmt: skip
    assert check_final_observation(without, False, number=3) == []
    assert [p.check for p in check_final_observation(GOOD, False, number=3)] == ["mixed-final-observation"]
    assert check_final_observation(replace(without, terminated=False, truncated=False), True, number=3) == []


def test_a_good_episode_of_a_thousand_steps_costs_tens_of_microseconds():
    spaces = Spaces(gym_spaces.Box(-np.inf, np.inf, (17,), np.float32), gym_spaces.Box(-9, 9, (6,), np.float32))
    good = random_episode(spaces, 1000, np.random.default_rng(0))
    seconds = []
    for _ in range(200):
        start = time.perf_counter()
        assert check_episode(good, spaces, rewards=True, number=0) == []
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 60e-6
