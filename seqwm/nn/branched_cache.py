"""Keys and values of many branches that share their past: the memory of a search over tokens.

A search asks for one more token in N branches of E environments, again and again. What branches have in common is kept
once, in levels that grow finer:

    prefix      one row an environment,
    history     one row a branch: what it has gathered since,
    children    one row a child, while every branch is tried with M continuations.

Attention reads the levels as they are and puts the scores of all of them through one softmax, so it is exact; nothing
is copied when branches fork, and the history once when the best children become the branches.

Shapes: L layers, E environments, N branches of each, M children of each branch, R = E * N * M rows, K heads of width C,
T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(slots=True)
class Level:
    """Keys and values of the tokens start .. stop - 1.

    Attributes:
        content: [2, L, rows, K, capacity, C], keys first.
        start, stop: the tokens that count; those before `start` have been forgotten.
        mask: added to the scores, [rows, 1, 1, capacity]; minus infinity hides a token of one row.
    """

    content: Tensor
    start: int
    stop: int
    mask: Tensor | None = None

    @property
    def rows(self) -> int:
        """Rows that keep their own tokens here."""
        return self.content.shape[2]

    def make_room(self) -> None:
        """Twice the capacity where it is used up."""
        if self.stop == self.content.shape[4]:
            self.content = torch.cat([self.content, torch.empty_like(self.content)], 4)

    def gather(self, rows: Tensor, into: Tensor | None = None) -> Level:
        """The named rows, int64 [rows], copied; into memory of the right shape where there is some."""
        shape = (*self.content.shape[:2], len(rows), *self.content.shape[3:])
        content = into if into is not None and into.shape == shape else self.content.new_empty(shape)
        _copy_rows(self.content[..., self.start : self.stop, :], rows, content[..., self.start : self.stop, :])
        return Level(content, self.start, self.stop)


@dataclass(slots=True)
class BranchedCache:
    """The levels, and how many environments, branches and children they stand for.

    Attributes:
        levels: prefix, history, and children where branches are forked; new tokens go to the last.
        environments, branches, children: E, N, M.
        spare: the memory of a history that was left, which the next one takes.
    """

    levels: list[Level]
    environments: int
    branches: int
    children: int
    spare: Tensor | None = None

    @classmethod
    def root(cls, prefix: Level, capacity: int) -> BranchedCache:
        """One branch an environment, with room for `capacity` tokens behind the prefix."""
        return cls([prefix, _empty(prefix.content, prefix.rows, capacity)], prefix.rows, 1, 1)

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
        query = query * width**-0.5
        newest = self.levels[-1]
        stops = [level.stop for level in self.levels]
        if key is not None and value is not None:
            newest.make_room()
            newest.content[0, layer, :, :, newest.stop] = key
            newest.content[1, layer, :, :, newest.stop] = value
            stops[-1] += 1
        read = [(level, slice(level.start, stop)) for level, stop in zip(self.levels, stops, strict=True)]
        read = [(level, span) for level, span in read if span.stop > span.start]
        scores = []
        for level, span in read:
            together = query.view(level.rows, rows // level.rows, heads, width).transpose(1, 2)
            score = together @ level.content[0, layer, :, :, span].transpose(-1, -2)
            if level.mask is not None:
                score = score + level.mask[..., span]
            scores.append(score.transpose(1, 2).reshape(rows, heads, -1))
        shares = torch.cat(scores, -1).softmax(-1).split([score.shape[-1] for score in scores], -1)
        out = query.new_zeros(())
        for (level, span), share in zip(read, shares, strict=True):
            together = share.reshape(level.rows, rows // level.rows, heads, -1).transpose(1, 2)
            read_here = together @ level.content[1, layer, :, :, span]
            out = out + read_here.transpose(1, 2).reshape(rows, heads * width)
        return out

    def advance(self) -> None:
        """The token that all layers have appended now counts."""
        self.levels[-1].stop += 1

    def fork(self, width: int, capacity: int) -> BranchedCache:
        """Every branch with `width` children that share its past, with room for `capacity` tokens each."""
        rows = self.rows * width
        return replace(self, levels=[*self.levels, _empty(self.levels[0].content, rows, capacity)], children=width)

    def keep(self, children: Tensor) -> BranchedCache:
        """Of the children of each branch those named, int64 [E, N, M']; one may be named more than once."""
        first = torch.arange(self.environments * self.branches, device=children.device) * self.children
        rows = (first.view(self.environments, self.branches, 1) + children).flatten()
        return replace(self, levels=[*self.levels[:-1], self.levels[-1].gather(rows)], children=children.shape[2])

    def select(self, branches: Tensor) -> BranchedCache:
        """The named branches or children, int64 [E, N'], as the branches; the cache before is used up by it."""
        first = torch.arange(self.environments, device=branches.device)[:, None]
        prefix, left, *forked = self.levels
        history = left.gather((first * self.branches + branches // self.children).flatten(), self.spare)
        for level in forked:
            rows = (first * self.branches * self.children + branches).flatten()
            grown = history.stop + level.stop
            _copy_rows(level.content[..., : level.stop, :], rows, history.content[..., history.stop : grown, :])
            history.stop = grown
        return BranchedCache([prefix, history], self.environments, branches.shape[1], 1, left.content)


def _copy_rows(source: Tensor, rows: Tensor, target: Tensor) -> None:
    if source.shape[-2]:
        torch.index_select(source, 2, rows, out=target)


def _empty(like: Tensor, rows: int, capacity: int) -> Level:
    both, layers, _, heads, _, width = like.shape
    return Level(like.new_empty(both, layers, rows, heads, capacity, width), 0, 0)
