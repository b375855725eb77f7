"""Conformance checks that anyone can call on a policy of their own, and what they need to do so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces as gym_spaces
from torch import Tensor

from seqwm.core.protocols import Policy, WorldModel
from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.core.tree import flatten, tree_map, unflatten
from seqwm.core.types import Batch, Spaces, State, TensorTree

_LANES, _STEPS = 4, 9


def check_policy(make: Callable[[Tensor], Policy], spaces: Spaces, *, tolerance: float = 1e-5) -> None:
    """Raise AssertionError unless lanes are independent, resettable, and the same in any batch.

    Three runs of the same observations are compared with a run of four lanes: the lanes in another order, each lane by
    itself, and lane 1 beginning anew in the middle, which must equal a fresh start.

    Args:
        make: a policy for the named lanes, int64 [B]; a return-conditioned one gives lane i the same target each time.
        spaces: of the observations to draw and the actions to expect.
        tolerance: of float actions; discrete ones must be equal.
    """
    generator = torch.Generator().manual_seed(0)
    observations = [_random(spaces, generator) for _ in range(_STEPS)]
    rewards = torch.randn(_STEPS, _LANES, generator=generator)
    lanes = torch.arange(_LANES)
    reference = _run(make, observations, rewards, lanes)

    order = torch.tensor([2, 0, 3, 1])
    _assert_equal(
        _run(make, observations, rewards, order), _chosen(reference, order), tolerance, "lanes in another order"
    )
    for lane in range(_LANES):
        alone = torch.tensor([lane])
        _assert_equal(
            _run(make, observations, rewards, alone), _chosen(reference, alone), tolerance, "a lane by itself"
        )

    middle = _STEPS // 2
    restarted = _run(make, observations, rewards, lanes, restart=(middle, 1))
    fresh = _run(make, observations[middle:], rewards[middle:], torch.tensor([1]))
    _assert_equal(_chosen(restarted[middle:], torch.tensor([1])), fresh, tolerance, "a lane reset by `first`")
    others = torch.tensor([0, 2, 3])
    _assert_equal(_chosen(restarted, others), _chosen(reference, others), tolerance, "the lanes beside a reset")


def _run(
    make: Callable[[Tensor], Policy],
    observations: list[TensorTree],
    rewards: Tensor,
    lanes: Tensor,
    restart: tuple[int, int] | None = None,
) -> list[TensorTree]:
    policy = make(lanes)
    state: State = policy.initial(len(lanes))
    actions = []
    for step, observation in enumerate(observations):
        first = torch.full((len(lanes),), step == 0)
        if restart is not None and step == restart[0]:
            first[restart[1]] = True
        before = {name: value.clone() for name, value in state.items()}
        seen = tree_map(lambda leaf: leaf[lanes], observation)
        action, following = policy.act(state, seen, rewards[step][lanes], first)
        for name, value in before.items():
            assert torch.equal(state[name], value), f"act changed the state '{name}' it was given; return a new one"
        state = following
        actions.append(action)
    return actions


def _random(spaces: Spaces, generator: torch.Generator) -> TensorTree:
    leaves: dict[str, Tensor] = {}
    for path, leaf in leaf_spaces(spaces.observation).items():
        shape = (_LANES, *(leaf.shape or ()))
        if is_image(leaf):
            leaves[path] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        elif hasattr(leaf, "low"):
            leaves[path] = torch.randn(shape, generator=generator)
        else:
            largest = torch.as_tensor(getattr(leaf, "nvec", None) if hasattr(leaf, "nvec") else getattr(leaf, "n", 1))
            leaves[path] = (torch.rand(shape, generator=generator) * largest).long() + torch.as_tensor(
                getattr(leaf, "start", 0)
            )
    tree: TensorTree = unflatten(leaves)
    return tree


def _chosen(actions: list[TensorTree], lanes: Tensor) -> list[Any]:
    return [tree_map(lambda leaf: leaf[lanes], action) for action in actions]


def _assert_equal(found: list[Any], expected: list[Any], tolerance: float, what: str) -> None:
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        for path, leaf in flatten(one).items():
            message = f"{what}: action '{path}' of step {step} differs"
            torch.testing.assert_close(leaf, flatten(other)[path], atol=tolerance, rtol=tolerance, msg=message)


def check_world_model(world: WorldModel, context: Batch, spaces: Spaces, *, tolerance: float = 1e-5) -> None:
    """Raise AssertionError unless a world is a pure function of explicit states in independent lanes.

    Held are: names, dtypes and shapes of states, rewards, ends and observations (those in their space); states that go
    in are left as they were; the same generator gives the same step; lanes in another order and by themselves do the
    same; what one lane does changes nothing in another, also where the world draws; what `encode` may not read (the
    last row's action and reward, rows that are not valid) changes nothing.

    Args:
        world: to be checked.
        context: at least three windows of logs, some of them shorter than the longest.
        spaces: of the logs.
        tolerance: of float values; others must be equal.
    """
    assert spaces.action is not None, "a world to act in needs an action space"
    lanes = len(context.valid)
    assert lanes >= 3, f"found {lanes} windows, expected at least three"
    spaces.action.seed(0)
    plan = [_stacked([spaces.action.sample() for _ in range(lanes)]) for _ in range(4)]
    state = world.encode(context)
    assert state, "the state is empty; what follows must depend on something"
    assert all(len(tensor) == lanes for tensor in state.values()), "every tensor of a state has the lane first"

    dream = _dream(world, state, plan, None)
    for observed in (world.decode(state), *(observed for observed, _, _ in dream)):
        _assert_in_space(observed, spaces, lanes)
    for seed in (1, 2):
        one, other = (_dream(world, state, plan, torch.Generator().manual_seed(seed)) for _ in range(2))
        _assert_same_dream(one, other, 0.0, "the same generator")

    order = torch.arange(lanes).flip(0)
    _assert_same_dream(
        _dream(world, _lanes_of(state, order), _lanes_of(plan, order), None),
        _lanes_of(dream, order), tolerance, "lanes in another order",
    )  # fmt: skip
    for lane in range(lanes):
        alone = torch.tensor([lane])
        _assert_same_dream(
            _dream(world, world.encode(_lanes_of_batch(context, alone)), _lanes_of(plan, alone), None),
            _lanes_of(dream, alone), tolerance, "a lane by itself",
        )  # fmt: skip

    elsewhere = [tree_map(lambda leaf: torch.cat([leaf[1:2], leaf[1:]]), action) for action in plan]
    first, others = torch.Generator().manual_seed(3), torch.arange(1, lanes)
    _assert_same_dream(
        _lanes_of(_dream(world, state, elsewhere, first), others),
        _lanes_of(_dream(world, state, plan, torch.Generator().manual_seed(3)), others),
        tolerance, "the lanes beside one that acts otherwise",
    )  # fmt: skip

    unread = world.encode(_with_unread_content(context))
    _assert_same_dream(_dream(world, unread, plan, None), dream, tolerance, "content that `encode` may not read")


_Dream = list[tuple[TensorTree, Tensor, Tensor]]


def _dream(world: WorldModel, state: State, plan: list[Any], generator: torch.Generator | None) -> _Dream:
    """Observation, reward and end of every step; the shapes of states are checked on the way."""
    dreamt = []
    kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
    for action in plan:
        before = {name: tensor.clone() for name, tensor in state.items()}
        step = world.step(state, action, generator)
        for name, tensor in before.items():
            assert torch.equal(state[name], tensor), f"step changed the state '{name}' it was given; return a new one"
        found = {name: (tensor.shape, tensor.dtype) for name, tensor in step.state.items()}
        assert found == kinds, f"a state of {found} follows one of {kinds}; expected the same names, shapes and dtypes"
        lanes = len(next(iter(before.values())))
        for name, tensor, dtype in (("reward", step.reward, torch.float32), ("end", step.terminated, torch.bool)):
            expected = torch.Size([lanes]), dtype
            assert (tensor.shape, tensor.dtype) == expected, f"{name}: {tensor.shape} {tensor.dtype}, not {expected}"
        state = step.state
        dreamt.append((world.decode(state), step.reward, step.terminated))
    return dreamt


def _assert_in_space(observed: TensorTree, spaces: Spaces, lanes: int) -> None:
    leaves, known = flatten(observed), leaf_spaces(spaces.observation)
    assert leaves.keys() == known.keys(), f"decode gave {list(leaves)}, expected {list(known)}"
    for path, space in known.items():
        box = isinstance(space, gym_spaces.Box)
        floating = np.dtype(space.dtype).kind == "f"
        dtype = torch.uint8 if is_image(space) else torch.float32 if floating else torch.int64
        found = leaves[path].shape, leaves[path].dtype
        expected = torch.Size([lanes, *(space.shape or ())]), dtype
        assert found == expected, f"decode: '{path}' is {found}, expected {expected}"
        values = leaves[path].detach().cpu()
        assert bool(torch.isfinite(values).all()), f"decode: '{path}' is not finite"
        if not box:  # a Box is clipped to its bounds where it is used; a category that does not exist means nothing
            cast = values.numpy().astype(space.dtype)
            assert all(space.contains(value) for value in cast), f"decode: '{path}' is outside {space}"


def _assert_same_dream(found: _Dream, expected: _Dream, tolerance: float, what: str) -> None:
    parts = ("observation", "reward", "end")
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        for name, found_part, expected_part in zip(parts, one, other, strict=True):
            for path, leaf in flatten(found_part).items():
                wanted = flatten(expected_part)[path]
                message = f"{what}: {name} {path!r} of step {step} differs".replace(" ''", "")
                exact = 0.0 if not leaf.is_floating_point() else tolerance
                torch.testing.assert_close(leaf, wanted, atol=exact, rtol=exact, msg=message)


def _with_unread_content(context: Batch) -> Batch:
    """The same windows with other content where none may be read: shuffled from what other rows hold."""
    lanes, length = context.valid.shape
    rows = torch.arange(length)
    last = (rows == (context.valid.sum(1) - 1)[:, None]) & context.valid
    source = torch.randint(lanes * length, (lanes, length), generator=torch.Generator().manual_seed(0))

    def put(leaf: Tensor, where: Tensor) -> Tensor:
        mixed = leaf.flatten(0, 1)[source.to(leaf.device)]
        mask = where.to(leaf.device).view(lanes, length, *[1] * (leaf.ndim - 2))
        return torch.where(mask, mixed, leaf)

    outside = ~context.valid.cpu()
    last = last.cpu()
    return replace(
        context,
        observations=tree_map(lambda leaf: put(leaf, outside), context.observations),
        actions=tree_map(lambda leaf: put(leaf, outside | last), context.actions),
        rewards=None if context.rewards is None else put(context.rewards, outside | last),
    )


def _lanes_of(tree: Any, lanes: Tensor) -> Any:
    """Those lanes of every tensor within lists, tuples and dicts."""
    if isinstance(tree, (list, tuple)):
        return type(tree)(_lanes_of(item, lanes) for item in tree)
    return tree_map(lambda leaf: leaf[lanes.to(leaf.device)], tree)


def _lanes_of_batch(batch: Batch, lanes: Tensor) -> Batch:
    return Batch(**{field.name: _lanes_of(getattr(batch, field.name), lanes) for field in fields(batch)})


def _stacked(samples: list[Any]) -> TensorTree:
    """Sampled actions as a batch has them: float32 and int64."""
    leaves = {}
    for path in flatten(samples[0]):
        stacked = np.stack([flatten(sample)[path] for sample in samples])
        leaves[path] = torch.from_numpy(stacked.astype(np.float32 if stacked.dtype.kind == "f" else np.int64))
    tree: TensorTree = unflatten(leaves)
    return tree
