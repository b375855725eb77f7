"""Hypothesis strategies for arbitrary spaces and episodes, shared by the tests of store, windows and export."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces as gym_spaces
from hypothesis import strategies as st

from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.core.tree import unflatten
from seqwm.core.types import Episode, Spaces

NAMES = st.sampled_from(["position", "camera", "goal", "x1", "hand"])


@st.composite
def boxes(draw):
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return gym_spaces.Box(-np.inf, np.inf, shape, dtype)


@st.composite
def images(draw):
    height, width, channels = draw(st.integers(2, 5)), draw(st.integers(2, 5)), draw(st.sampled_from([1, 3]))
    return gym_spaces.Box(0, 255, (height, width, channels), np.uint8)


discretes = st.builds(lambda n, start: gym_spaces.Discrete(n, start=start), st.integers(1, 5), st.integers(-1, 2))
multi_discretes = st.builds(gym_spaces.MultiDiscrete, st.lists(st.integers(1, 4), min_size=1, max_size=3))
observation_leaves = st.one_of(boxes(), images(), discretes, multi_discretes)
action_leaves = st.one_of(boxes(), discretes, multi_discretes)


def dicts_of(leaves):
    inner = st.dictionaries(NAMES, leaves, min_size=1, max_size=2).map(gym_spaces.Dict)
    return st.dictionaries(NAMES, st.one_of(leaves, inner), min_size=1, max_size=3).map(gym_spaces.Dict)


@st.composite
def all_spaces(draw):
    observation = draw(st.one_of(observation_leaves, dicts_of(observation_leaves)))
    action = draw(st.one_of(st.none(), action_leaves, dicts_of(action_leaves)))
    return Spaces(observation, action)


def random_values(space, rows, rng):
    """`rows` random elements of a space, as a tree with the rows first."""
    leaves = {}
    for path, leaf in leaf_spaces(space).items():
        shape = (rows, *(leaf.shape or ()))
        if is_image(leaf):
            leaves[path] = rng.integers(0, 256, shape, dtype=np.uint8)
        elif isinstance(leaf, gym_spaces.Box):
            bounded = leaf.is_bounded()
            drawn = rng.uniform(leaf.low, leaf.high, shape) if bounded else rng.standard_normal(shape)
            leaves[path] = drawn.astype(leaf.dtype)
        elif isinstance(leaf, gym_spaces.Discrete):
            leaves[path] = rng.integers(leaf.start, leaf.start + leaf.n, shape, dtype=np.int64)
        else:
            leaves[path] = (rng.random(shape) * leaf.nvec).astype(np.int64) + leaf.start
    return unflatten(leaves)


def random_episode(spaces, length, rng, *, rewards=True, final_observation=True, end="terminated", meta=None):
    """An episode of `length` transitions with random content; `end` is 'terminated', 'truncated' or 'open'."""
    return Episode(
        observations=random_values(spaces.observation, length + final_observation, rng),
        actions=random_values(spaces.action, length, rng) if spaces.action is not None else None,
        rewards=rng.standard_normal(length).astype(np.float32) if rewards else None,
        terminated=end == "terminated",
        truncated=end == "truncated",
        final_observation=final_observation,
        meta=meta or {},
    )


@st.composite
def episode_sets(draw, max_episodes=5, max_length=7):
    """(spaces, rewards, episodes) with every kind of end, with and without final observations."""
    spaces = draw(all_spaces())
    rewards, final = draw(st.booleans()), draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    episodes = []
    for length in draw(st.lists(st.integers(1, max_length), min_size=1, max_size=max_episodes)):
        meta = draw(
            st.dictionaries(st.sampled_from(["seed", "agent"]), st.one_of(st.integers(0, 9), st.text(max_size=3)))
        )
        end = draw(st.sampled_from(["terminated", "truncated", "open"]))
        if length == 1 and not final:
            length = 2  # an observation alone is no transition
        episodes.append(
            random_episode(spaces, length, rng, rewards=rewards, final_observation=final, end=end, meta=meta)
        )
    return spaces, rewards, episodes


def assert_same_episode(one, other):
    """Every field equal, arrays to the last bit and of the same dtype."""
    from seqwm.core.tree import flatten

    for name in ("observations", "actions"):
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None)
        if left is None:
            continue
        left, right = flatten(left), flatten(right)
        assert set(left) == set(right)
        for path in left:
            assert left[path].dtype == right[path].dtype
            np.testing.assert_array_equal(left[path], right[path])
    assert (one.rewards is None) == (other.rewards is None)
    if one.rewards is not None:
        np.testing.assert_array_equal(one.rewards, other.rewards)
    ends = [(e.terminated, e.truncated, e.final_observation, dict(e.meta)) for e in (one, other)]
    assert ends[0] == ends[1]
