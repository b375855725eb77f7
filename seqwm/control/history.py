"""What a lane has lived through, as the window that training would have drawn: for policies that act from `encode`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import Space
from torch import Tensor

from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.core.tree import flatten, unflatten
from seqwm.core.types import Batch, Spaces, State, TensorTree


class History:
    """The last rows of every lane, kept in a policy's state.

    State: row int64 [B] and step int64 [B], the place of the newest row in the window and in its episode; reward
    float32 [B, T]; observation/PATH and action/PATH [B, T, ...].

    Args:
        spaces: of what is observed and done.
        length: rows of a window, T.
        device: where the state is.
    """

    def __init__(self, spaces: Spaces, length: int, device: torch.device) -> None:
        assert spaces.action is not None
        self._length, self._device = length, device
        self._leaves = {f"observation/{path}": leaf for path, leaf in leaf_spaces(spaces.observation).items()}
        self._leaves |= {f"action/{path}": leaf for path, leaf in leaf_spaces(spaces.action).items()}

    def initial(self, lanes: int) -> State:
        """Nothing yet."""
        state: State = {"reward": torch.zeros(lanes, self._length, device=self._device)}
        for name in ("row", "step"):
            state[name] = torch.zeros(lanes, dtype=torch.int64, device=self._device)
        for name, leaf in self._leaves.items():
            shape = (lanes, self._length, *(leaf.shape or ()))
            state[name] = torch.zeros(shape, dtype=_dtype(leaf), device=self._device)
        return state

    def observe(self, state: State, observation: TensorTree, reward: Tensor, first: Tensor) -> State:
        """The state with a new row: the reward that followed the last action, and what is seen now."""
        first = first.to(self._device)
        lanes = torch.arange(len(first), device=self._device)
        step = torch.where(first, 0, state["step"] + 1)
        full = ~first & (state["row"] == self._length - 1)
        after = {name: window.clone() for name, window in state.items()}
        after["reward"][lanes, state["row"]] = reward.to(self._device)
        for name in ("reward", *self._leaves):
            window = after[name]
            shape = (-1, *[1] * (window.ndim - 1))
            window = torch.where(full.view(shape), window.roll(-1, dims=1), window)
            after[name] = window.masked_fill(first.view(shape), 0)
        row = step.clamp_max(self._length - 1)
        after["reward"][lanes, row] = 0.0
        for path, leaf in flatten(observation).items():
            window = after[f"observation/{path}"]
            window[lanes, row] = leaf.to(window)
        return after | {"row": row, "step": step}

    def act(self, state: State, action: TensorTree) -> State:
        """The state with the newest row's action in it."""
        lanes = torch.arange(len(state["row"]), device=self._device)
        after = dict(state)
        for path, leaf in flatten(action).items():
            window = after[f"action/{path}"].clone()
            window[lanes, state["row"]] = leaf.to(window)
            after[f"action/{path}"] = window
        return after

    def context(self, state: State) -> Batch:
        """The windows that end at the newest rows; their actions and rewards are yet to come."""
        rows = torch.arange(self._length, device=self._device)
        valid = rows <= state["row"][:, None]
        steps = (state["step"] - state["row"])[:, None] + rows
        nowhere = torch.zeros_like(valid)

        def tree(group: str) -> TensorTree:
            leaves = {name.partition("/")[2]: state[name] for name in self._leaves if name.startswith(f"{group}/")}
            found: TensorTree = unflatten(leaves)
            return found

        return Batch(
            observations=tree("observation"),
            actions=tree("action"),
            rewards=state["reward"],
            terminated=nowhere,
            truncated=nowhere,
            valid=valid,
            timesteps=torch.where(valid, steps, 0),
            returns_to_go=None,
        )


def _dtype(leaf: Space[Any]) -> torch.dtype:
    """That of a leaf in a `Batch`."""
    if is_image(leaf):
        return torch.uint8
    return torch.float32 if np.dtype(leaf.dtype).kind == "f" else torch.int64
