from __future__ import annotations

import json

import gymnasium.spaces as gym_spaces
import numpy as np
import pytest
from hypothesis import given

from seqwm.core.errors import SpaceError
from seqwm.core.spaces import is_image, leaf_spaces, space_from_json, space_to_json
from tests.strategies import all_spaces


@given(all_spaces())
def test_a_space_comes_back_from_its_json_text_equal(spaces):
    for space in (spaces.observation, spaces.action):
        if space is not None:
            text = json.dumps(space_to_json(space))
            assert space_from_json(text) == space
            assert space_from_json(json.loads(text)) == space


def test_bounds_of_every_entry_survive():
    box = gym_spaces.Box(np.array([-1, -np.inf], np.float32), np.array([np.inf, 2], np.float32))
    back = space_from_json(json.dumps(space_to_json(box)))
    np.testing.assert_array_equal(back.low, box.low)
    np.testing.assert_array_equal(back.high, box.high)


def test_equal_bounds_are_written_once():
    frames = gym_spaces.Box(0, 255, (64, 64, 3), np.uint8)
    assert space_to_json(frames)["low"] == 0
    assert len(json.dumps(space_to_json(frames))) < 200


@pytest.mark.parametrize(
    "space", [gym_spaces.Text(3), gym_spaces.Tuple([gym_spaces.Discrete(2)]), gym_spaces.MultiBinary(3)]
)
def test_a_space_that_cannot_be_stored_is_refused_with_the_mend(space):
    for function in (space_to_json, leaf_spaces):
        with pytest.raises(SpaceError, match="FlattenObservation"):
            function(space)


def test_a_kind_that_nobody_knows_is_refused():
    with pytest.raises(SpaceError, match="'Graph': expected Box"):
        space_from_json({"type": "Graph"})


def test_leaves_are_named_by_path_and_names_with_a_slash_refused():
    inner = gym_spaces.Dict({"front": gym_spaces.Discrete(2)})
    assert list(leaf_spaces(gym_spaces.Dict({"camera": inner, "goal": gym_spaces.Discrete(3)}))) == [
        "camera/front",
        "goal",
    ]
    for name in ("a/b", ""):
        with pytest.raises(SpaceError, match="empty or contains '/'"):
            leaf_spaces(gym_spaces.Dict({name: gym_spaces.Discrete(2)}))


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 8, 1), (8, 8, 4)])
def test_an_image_is_a_uint8_box_with_channels_last(shape):
    assert is_image(gym_spaces.Box(0, 255, shape, np.uint8))
    assert not is_image(gym_spaces.Box(0, 255, shape, np.float32))


@pytest.mark.parametrize("shape", [(8, 8, 2), (3, 8, 8), (8, 8)])
def test_other_shapes_are_no_images(shape):
    assert not is_image(gym_spaces.Box(0, 255, shape, np.uint8))
