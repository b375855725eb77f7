"""Keys and values of many branches that share their past: the memory of a search over tokens.

A search asks for one more token in N branches of E environments, again and again. What branches have in common is kept
once, in levels that grow finer:

    prefix      one row an environment,
    history     one row a branch: what it has gathered since,
    children    one row a child, while every branch is tried with M continuations.

Attention reads the levels as they are and puts the scores of all of them through one softmax, so it is exact; nothing
is copied when branches fork, and the history once when the best children become the branches.

Heads stand before branches everywhere inside, so that the queries of all branches lie side by side for the keys that
they share, and no score is moved between the products.

Shapes: L layers, E environments, N branches of each, M children of each branch, R = E * N * M rows, K heads of width C,
T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(slots=True)
class Level:
    """Keys and values of the tokens start .. stop - 1, of n rows in each environment.

    Attributes:
        content: [2, L, E * K * n, capacity, C], keys first, rows in the order environment, head, row.
        start, stop: the tokens that count; those before `start` have been forgotten.
        mask: added to the scores, [E * K * n, 1, capacity]; minus infinity hides a token of one row.
        layers: of each layer the keys and values, [E * K * n, capacity, C]: views of the content, made once.
    """

    content: Tensor
    start: int
    stop: int
    mask: Tensor | None = None
    layers: list[tuple[Tensor, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        self.layers = list(zip(*self.content, strict=True))

    def append(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keys and values [E, K, n, C] behind the last token that counts."""
        for kept, new in zip(self.layers[layer], (key, value), strict=True):
            kept[:, self.stop].view(new.shape).copy_(new)

    def make_room(self) -> None:
        """Twice the capacity where it is used up."""
        if self.stop == self.content.shape[3]:
            self.content = torch.cat([self.content, torch.empty_like(self.content)], 3)
            self.layers = list(zip(*self.content, strict=True))

    def gather(self, rows: Tensor, into: Tensor | None = None) -> Level:
        """The named rows, int64 [rows], copied; into memory of the right shape where there is some."""
        shape = (*self.content.shape[:2], len(rows), *self.content.shape[3:])
        content = into if into is not None and into.shape == shape else self.content.new_empty(shape)
        _copy_rows(self.content[..., self.start : self.stop, :], rows, content[..., self.start : self.stop, :])
        return Level(content, self.start, self.stop)


@dataclass(slots=True)
class BranchedCache:
    """The levels, and how many environments, heads, branches and children they stand for.

    Attributes:
        levels: prefix, history, and children where branches are forked; new tokens go to the last.
        environments, heads, branches, children: E, K, N, M.
        spare: the memory of a history that was left, which the next one takes.
    """

    levels: list[Level]
    environments: int
    heads: int
    branches: int
    children: int
    spare: Tensor | None = None

    @classmethod
    def root(cls, prefix: Level, heads: int, capacity: int) -> BranchedCache:
        """One branch an environment, with room for `capacity` tokens behind the prefix."""
        rows = prefix.content.shape[2]
        return cls([prefix, _empty(prefix.content, rows, capacity)], rows // heads, heads, 1, 1)

    @property
    def rows(self) -> int:
        """Rows that a token is appended to, R."""
        return self.environments * self.branches * self.children

    def attend(self, layer: int, query: Tensor, key: Tensor | None, value: Tensor | None) -> Tensor:
        """What one new token of every row reads: [R, K * C].

        Args:
            layer: counted from 0.
            query: [R, K, C].
            key, value: [R, K, C] of the token itself, which is appended and read too; None for one that nobody reads.
        """
        rows, heads, width = query.shape
        newest, abreast = self.levels[-1], self.branches * self.children
        query = self._by_head(query * width**-0.5).to(newest.content.dtype).contiguous()
        stops = [level.stop for level in self.levels]
        if key is not None and value is not None:
            newest.make_room()
            newest.append(layer, self._by_head(key), self._by_head(value))
            stops[-1] += 1
        read = [(level, slice(level.start, stop)) for level, stop in zip(self.levels, stops, strict=True)]
        read = [(level, span) for level, span in read if span.stop > span.start]
        scores = []
        for level, span in read:
            keys = level.layers[layer][0][:, span].transpose(1, 2)
            asked = query.view(len(keys), -1, width)  # all queries of one row of the level
            score = torch.bmm(asked, keys) if level.mask is None else torch.baddbmm(level.mask[..., span], asked, keys)
            scores.append(score.view(-1, abreast, score.shape[2]))
        shares = torch.cat(scores, -1).softmax(-1).split([score.shape[2] for score in scores], -1)
        out: Tensor | None = None
        for (level, span), share in zip(read, shares, strict=True):
            values = level.layers[layer][1][:, span]
            asked = share.view(len(values), -1, share.shape[2])
            if out is None:
                out = torch.bmm(asked, values)
            else:
                out.view(len(values), -1, width).baddbmm_(asked, values)
        assert out is not None  # the first token of an environment stands in the prefix
        return out.view(-1, heads, abreast, width).transpose(1, 2).reshape(rows, heads * width)

    def advance(self) -> None:
        """The token that all layers have appended now counts."""
        self.levels[-1].stop += 1

    def fork(self, width: int, capacity: int) -> BranchedCache:
        """Every branch with `width` children that share its past, with room for `capacity` tokens each."""
        rows = self.rows * self.heads * width
        return replace(self, levels=[*self.levels, _empty(self.levels[0].content, rows, capacity)], children=width)

    def keep(self, children: Tensor) -> BranchedCache:
        """Of the children of each branch those named, int64 [E, N, M']; one may be named more than once."""
        first = torch.arange(self.branches, device=children.device)[:, None] * self.children
        rows = self._rows_of_heads((first + children).flatten(1), self.branches * self.children)
        return replace(self, levels=[*self.levels[:-1], self.levels[-1].gather(rows)], children=children.shape[2])

    def select(self, branches: Tensor) -> BranchedCache:
        """The named branches or children, int64 [E, N'], as the branches; the cache before is used up by it."""
        prefix, left, *forked = self.levels
        history = left.gather(self._rows_of_heads(branches // self.children, self.branches), self.spare)
        for level in forked:
            rows = self._rows_of_heads(branches, self.branches * self.children)
            grown = history.stop + level.stop
            _copy_rows(level.content[..., : level.stop, :], rows, history.content[..., history.stop : grown, :])
            history.stop = grown
        return BranchedCache([prefix, history], self.environments, self.heads, branches.shape[1], 1, left.content)

    def _by_head(self, each: Tensor) -> Tensor:
        """[R, K, C] as [E, K, N * M, C]."""
        return each.view(self.environments, -1, *each.shape[1:]).transpose(1, 2)

    def _rows_of_heads(self, chosen: Tensor, abreast: int) -> Tensor:
        """Where every head keeps the rows chosen [E, n] of `abreast` in each environment: [E * K * n]."""
        first = torch.arange(self.environments * self.heads, device=chosen.device) * abreast
        return (first.view(self.environments, self.heads, 1) + chosen[:, None]).flatten()


def _copy_rows(source: Tensor, rows: Tensor, target: Tensor) -> None:
    if source.shape[-2]:
        torch.index_select(source.flatten(-2), 2, rows, out=target.flatten(-2))


def _empty(like: Tensor, rows: int, capacity: int) -> Level:
    both, layers, _, _, width = like.shape
    return Level(like.new_empty(both, layers, rows, capacity, width), 0, 0)
