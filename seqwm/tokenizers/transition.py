"""A transition as a row of codes: the order and the vocabulary of a Trajectory Transformer's tokens.

A transition is one row of D = O + A + 2 codes, always in this order:

    o_0 ... o_{O-1}    the observation, leaf by leaf as in its space, each flattened in C order
    a_0 ... a_{A-1}    the action, likewise
    r                  the reward that follows the action
    v                  the discounted sum of the rewards after that one; it excludes r

Every column has a vocabulary of its own: the codes 0 .. K-1 of its bins (`seqwm.tokenizers.discretizer`) or of its
discrete space, K at most V. One more token, told as number V, is *stop*: it stands only in place of an o_0, behind a
transition that ended the task.

Where a termination penalty is set, it takes the place of the last reward of episodes that terminated (not of those
that were cut), has a bin to itself, and is part of every value before it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import gymnasium.spaces
import numpy as np
import torch
from torch import Tensor, nn

from seqwm.core.errors import DataError, RecipeError, SpaceError
from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.core.strict_yaml import nearest
from seqwm.core.tree import flatten, unflatten
from seqwm.core.types import Batch, Spaces, TensorTree
from seqwm.data.problems import Problem
from seqwm.tokenizers.discretizer import Column, Discretizer

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore

_CHUNK = 1 << 16

Bins = Literal["quantile", "uniform"]


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Where the columns of a transition stand.

    Attributes:
        observation, action: columns of each, O and A.
        discount: of rewards in the value.
    """

    observation: int
    action: int
    discount: float

    @property
    def reward(self) -> int:
        """The reward's column."""
        return self.observation + self.action

    @property
    def value(self) -> int:
        """The value's column, the last."""
        return self.observation + self.action + 1

    @property
    def columns(self) -> int:
        """Columns of a transition, D."""
        return self.observation + self.action + 2


class TransitionTokenizer(nn.Module):
    """Batches, observations, actions and rewards to codes, and back; its bins are saved with the model."""

    def __init__(self, spaces: Spaces, codes: int, discount: float) -> None:
        """An unfitted one of the right shape, to load weights into.

        Args:
            spaces: of the data; with an action space.
            codes: the most codes that any column has, V.
            discount: of the value.

        Raises:
            SpaceError: a leaf that has no place among tokens.
        """
        super().__init__()
        self.observation = _leaves("observation", spaces.observation)
        self.action = _leaves("action", spaces.action)
        observation, action = (sum(leaf.columns for leaf in leaves) for leaves in (self.observation, self.action))
        self.layout = TokenLayout(observation, action, discount)
        self.discretizer = Discretizer(self.layout.columns, codes)

    @classmethod
    def fit(
        cls,
        store: TrajectoryStore,
        *,
        bins: int,
        binning: Bins,
        binning_of: Mapping[str, Bins],
        discount: float,
        end_reward: float | None,
    ) -> TransitionTokenizer:
        """Fitted on every transition of a store.

        Args:
            store: the training data.
            bins: the most codes of a column that is not discrete.
            binning: how their edges are chosen.
            binning_of: columns ('observation[3]') or groups ('action', 'reward') that are binned otherwise.
            discount: of the value.
            end_reward: the termination penalty, or None.

        Raises:
            DataError: no actions, values that cannot be binned, or one reward and one value everywhere.
            SpaceError: a leaf that has no place among tokens.
            RecipeError: `binning_of` names a column that there is not.
        """
        path = str(store.path) if store.path else None
        if not store.has_actions:
            mend = "name data with actions; without them there is nothing to choose"
            raise DataError([Problem("no-actions", "no actions", "an action in every row", mend, path)])
        tokenizer = cls(store.spaces, 2, discount)
        columns = list(tokenizer._columns(binning, binning_of, end_reward))
        windows = store.windows(1, 1, discount=discount, end_reward=end_reward)
        chunks = []
        for first in range(0, store.rows, _CHUNK):
            rows = np.arange(first, min(first + _CHUNK, store.rows))
            episodes = np.searchsorted(store.ends, rows, side="right")
            batch = windows.gather(episodes, rows - store.ends[episodes] + store.lengths[episodes])
            chunks.append(tokenizer.numbers(batch)[:, 0].numpy())
        data = np.concatenate(chunks)
        tokenizer.discretizer = Discretizer.fit(columns, (data[:, index] for index in range(len(columns))), bins)
        fitted = tokenizer.discretizer
        if store.has_rewards and bool((fitted.counts[-2:] == 1).all()):
            found = f"the reward {float(fitted.low[-2]):g} and the value {float(fitted.low[-1]):g} in every row"
            mend = "no plan is better than another: log rewards that differ, or leave them out"
            raise DataError([Problem("constant-column", found, "at least two values", mend, path, column="reward")])
        return tokenizer

    @property
    def codes(self) -> int:
        """The most codes that any column has, V; also the number of the stop token."""
        return self.discretizer.values.shape[1]

    def numbers(self, batch: Batch) -> Tensor:
        """The columns of a batch before they are binned, float32 [B, T, D]; zeros where there are no rewards.

        The batch's returns-to-go are discounted (`store.windows(discount=...)`): R_t = r_t + g v_t.
        """
        columns = [_flat(batch.observations, self.observation), _flat(batch.actions, self.action)]
        if batch.rewards is None or batch.returns_to_go is None:
            columns.append(columns[0].new_zeros(*columns[0].shape[:2], 2))
        else:
            value = (batch.returns_to_go - batch.rewards) / self.layout.discount
            columns.append(torch.stack([batch.rewards, value], -1))
        return torch.cat(columns, -1)

    def encode_observation(self, observation: TensorTree) -> tuple[Tensor, Tensor]:
        """Codes int64 [..., O] of observations (leaves [..., *shape]), and which were clipped, bool [..., O]."""
        values, columns = _flat(observation, self.observation), slice(self.layout.observation)
        values = values.to(self.discretizer.edges.device)
        return self.discretizer.encode(values, columns), self.discretizer.outside(values, columns)

    def encode_action(self, action: TensorTree) -> Tensor:
        """Codes int64 [..., A] of actions (leaves [..., *shape])."""
        values, columns = _flat(action, self.action), slice(self.layout.observation, self.layout.reward)
        return self.discretizer.encode(values.to(self.discretizer.edges.device), columns)

    def encode_reward(self, reward: Tensor) -> Tensor:
        """Codes int64 [B] of rewards float32 [B]."""
        columns = slice(self.layout.reward, self.layout.value)
        return self.discretizer.encode(reward[:, None].to(self.discretizer.edges.device), columns)[:, 0]

    def decode_observation(self, codes: Tensor) -> TensorTree:
        """Observations (leaves [..., *shape]) of codes int64 [..., O]."""
        return _tree(self.discretizer.decode(codes, slice(self.layout.observation)), self.observation)

    def decode_action(self, codes: Tensor) -> TensorTree:
        """Actions (leaves [..., *shape]) of codes int64 [..., A]."""
        columns = slice(self.layout.observation, self.layout.reward)
        return _tree(self.discretizer.decode(codes, columns), self.action)

    def decode_reward(self, codes: Tensor) -> Tensor:
        """Rewards float32 [B] of codes int64 [B]."""
        return self.discretizer.decode(codes[:, None], slice(self.layout.reward, self.layout.value))[:, 0]

    def distance(self, codes: Tensor, goal: Tensor) -> Tensor:
        """Euclidean distance [E, N] of observations [E, N, O] to goals [E, O], each column in units of its range."""
        columns = slice(self.layout.observation)
        scale = (self.discretizer.high - self.discretizer.low)[columns].clamp(min=1e-12)
        apart = (self.discretizer.decode(codes, columns) - goal[:, None]) / scale
        return apart.square().nan_to_num(0.0).sum(-1).sqrt()

    def goal(self, wanted: Mapping[str, float]) -> Tensor:
        """A goal float32 [O] from values by column ('observation[0]'), NaN in those that are not named.

        Raises:
            RecipeError: a column that there is not.
        """
        names = [column.name for leaf in self.observation for column in leaf.token_columns()]
        for name in wanted:
            if name not in names:
                raise RecipeError(f"goal: {name}: unknown column; {nearest(name, names)}")
        return torch.tensor([wanted.get(name, torch.nan) for name in names])

    def _columns(self, binning: Bins, binning_of: Mapping[str, Bins], end_reward: float | None) -> Iterator[Column]:
        """How each column is binned, in the order of the tokens."""
        columns = [column for leaf in (*self.observation, *self.action) for column in leaf.token_columns()]
        columns += [Column("reward", "quantile", alone=end_reward), Column("value", "quantile")]
        groups = {column.name: (column.name, column.name.partition("[")[0]) for column in columns}
        for name in binning_of:
            if not any(name in names for names in groups.values()):
                raise RecipeError(f"model.binning_of.{name}: unknown column; {nearest(name, groups)}")
        for column in columns:
            chosen = [binning_of[name] for name in groups[column.name] if name in binning_of]
            kind = "discrete" if column.binning == "discrete" else [*chosen, binning][0]
            yield dataclasses.replace(column, binning=kind)


@dataclass(frozen=True, slots=True)
class _Leaf:
    """One leaf of a space, as columns.

    Attributes:
        name: 'observation' or 'observation/NAME'; its columns are name[0], name[1], ...
        path: within the tree.
        space: of the leaf.
    """

    name: str
    path: str
    space: gymnasium.spaces.Space[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.space.shape or ())

    @property
    def columns(self) -> int:
        return math.prod(self.shape)

    def token_columns(self) -> list[Column]:
        match self.space:
            case gymnasium.spaces.Discrete():
                return [Column(self.name, "discrete", int(self.space.start), int(self.space.n))]
            case gymnasium.spaces.MultiDiscrete():
                ranges = zip(self.space.start.flatten().tolist(), self.space.nvec.flatten().tolist(), strict=True)
                return [Column(f"{self.name}[{i}]", "discrete", *each) for i, each in enumerate(ranges)]
        return [Column(f"{self.name}[{i}]", "quantile") for i in range(self.columns)]


def _leaves(kind: str, space: gymnasium.spaces.Space[Any] | None) -> list[_Leaf]:
    leaves = []
    for path, leaf in leaf_spaces(space).items() if space is not None else ():
        name = f"{kind}/{path}" if path else kind
        if is_image(leaf):
            raise SpaceError(
                f"{name}: found images {leaf.shape}, expected numbers that are worth a token each: "
                "log states, or use a method that encodes images"
            )
        leaves.append(_Leaf(name, path, leaf))
    return leaves


def _flat(tree: Any, leaves: Sequence[_Leaf]) -> Tensor:
    """Leaves [..., *shape] side by side, float32 [..., columns]."""
    named = flatten(tree)
    parts = [(named[leaf.path], leaf) for leaf in leaves]
    flat = [part.reshape(*part.shape[: part.ndim - len(leaf.shape)], leaf.columns).float() for part, leaf in parts]
    return torch.cat(flat, -1)


def _tree(values: Tensor, leaves: Sequence[_Leaf]) -> TensorTree:
    """The inverse of `_flat`: float32 for Box, int64 for the others."""
    tree: dict[str, Tensor] = {}
    for leaf, part in zip(leaves, values.split([leaf.columns for leaf in leaves], -1), strict=True):
        shaped = part.reshape(*part.shape[:-1], *leaf.shape)
        tree[leaf.path] = shaped if isinstance(leaf.space, gymnasium.spaces.Box) else shaped.round().long()
    nested: TensorTree = unflatten(tree)
    return nested
