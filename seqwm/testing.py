"""Conformance checks that anyone can call on a policy of their own, and what they need to do so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from seqwm.core.protocols import Policy
from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.core.tree import flatten, tree_map, unflatten
from seqwm.core.types import Spaces, State, TensorTree

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
