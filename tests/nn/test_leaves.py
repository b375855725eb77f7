from __future__ import annotations

import gymnasium.spaces as gym_spaces
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqwm.core.errors import SpaceError
from seqwm.core.spaces import leaf_spaces
from seqwm.core.tree import flatten
from seqwm.nn.leaves import ActionCodec, Camera, Leaf, ObservationEncoder
from tests.strategies import action_leaves, dicts_of, random_values

MIXED = gym_spaces.Dict(
    {
        "arm": gym_spaces.Box(np.array([-2, 0], np.float32), np.array([2, 10], np.float32)),
        "gear": gym_spaces.Discrete(3, start=-1),
        "keys": gym_spaces.MultiDiscrete([2, 3]),
        "push": gym_spaces.Box(-np.inf, np.inf, (1,), np.float32),
    }
)


def as_tensors(tree):
    tensors = {
        path: torch.from_numpy(np.asarray(leaf, np.float32 if leaf.dtype.kind == "f" else np.int64))
        for path, leaf in flatten(tree).items()
    }
    from seqwm.core.tree import unflatten

    return unflatten(tensors)


def test_features_are_what_stands_in_the_docstring():
    codec = ActionCodec(
        MIXED, mean={"arm": np.zeros(2), "push": np.array([5.0])}, std={"arm": np.ones(2), "push": np.array([2.0])}
    )
    action = {"arm": [[2.0, 5.0]], "gear": [1], "keys": [[1, 0]], "push": [[9.0]]}
    features = codec.features({name: torch.tensor(value) for name, value in action.items()})
    assert features.tolist() == [[1.0, 0.0, 0, 0, 1, 0, 1, 1, 0, 0, 2.0]]
    assert codec.size == 11


@settings(max_examples=60, deadline=None)
@given(st.one_of(action_leaves, dicts_of(action_leaves)), st.integers(0, 2**32 - 1))
def test_actions_come_back_from_their_features(space, seed):
    actions = as_tensors(random_values(space, 5, np.random.default_rng(seed)))
    codec = ActionCodec(space)
    back = flatten(codec.restore(codec.features(actions)))
    assert set(back) == set(leaf_spaces(space))
    for path, leaf in flatten(actions).items():
        assert back[path].shape == leaf.shape
        torch.testing.assert_close(back[path], leaf, atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.one_of(action_leaves, dicts_of(action_leaves)), st.integers(0, 2**32 - 1))
def test_whatever_a_network_says_is_an_action(space, seed):
    codec = ActionCodec(space)
    outputs = torch.randn(4, codec.size, generator=torch.Generator().manual_seed(seed)) * 3
    for path, leaf in flatten(codec.decode(outputs)).items():
        member = leaf_spaces(space)[path]
        for row in leaf.numpy().astype(member.dtype):
            assert member.contains(row if member.shape else member.dtype.type(row))


def test_the_loss_is_squared_error_and_cross_entropy_by_hand():
    codec = ActionCodec(MIXED)
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(1, 11, generator=generator)
    action = {"arm": [[1.0, 2.0]], "gear": [0], "keys": [[0, 2]], "push": [[0.5]]}
    arm = (outputs[0, :2].tanh() - torch.tensor([0.5, -0.6])).square().mean()
    entropy = lambda logits, code: -logits.log_softmax(-1)[code]  # noqa: E731
    categories = entropy(outputs[0, 2:5], 1) + entropy(outputs[0, 5:7], 0) + entropy(outputs[0, 7:10], 2)
    push = (outputs[0, 10] - 0.5).square()
    found = codec.loss(outputs, {name: torch.tensor(value) for name, value in action.items()})
    torch.testing.assert_close(found, (arm + categories + push)[None])


def test_constant_columns_and_padding_outside_the_categories_do_no_harm():
    leaf = Leaf.of("gear", gym_spaces.Discrete(3, start=5))
    assert leaf.features(torch.tensor([0, 5, 7])).tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    fixed = gym_spaces.Box(1.0, 1.0, (1,), np.float32)
    assert torch.isfinite(ActionCodec(fixed).features(torch.ones(2, 1))).all()


def test_an_encoder_standardises_numbers_and_takes_frames():
    space = gym_spaces.Dict(
        {"camera": gym_spaces.Box(0, 255, (16, 12, 3), np.uint8), "state": gym_spaces.Box(-np.inf, np.inf, (2,))}
    )
    torch.manual_seed(0)
    encoder = ObservationEncoder(space, 8, mean={"state": np.array([1.0, 2.0])}, std={"state": np.array([2.0, 4.0])})
    frames = torch.randint(256, (2, 5, 16, 12, 3), dtype=torch.uint8)
    state = torch.tensor([3.0, 6.0]).expand(2, 5, 2)
    out = encoder({"camera": frames, "state": state})
    assert out.shape == (2, 5, 8)
    wanted = encoder.linear(torch.ones(2, 5, 2)) + encoder.cameras[0](frames)
    torch.testing.assert_close(out, wanted)


@pytest.mark.parametrize("shape", [(16, 16, 3), (84, 84, 1), (5, 9, 4), (4, 4, 3), (210, 160, 3)])
def test_a_camera_takes_frames_of_any_size(shape):
    camera = Camera(shape, 7)
    frames = torch.randint(256, (2, 3, *shape), dtype=torch.uint8)
    assert camera(frames).shape == (2, 3, 7)
    torch.testing.assert_close(camera(frames)[1, 2], camera(frames[1, 2][None])[0], atol=1e-5, rtol=1e-5)


def test_a_space_without_features_is_named():
    with pytest.raises(SpaceError, match=r"'x'.*no features"):
        Leaf.of("x", gym_spaces.Text(2))
