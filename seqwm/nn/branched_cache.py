"""Keys and values of many branches that share their past: the memory of a search over tokens.

A search asks for one more token in N branches of E environments, again and again. What branches have in common is kept
once, in levels that grow finer:

    prefix      one row an environment,
    history     one row a branch: what it had gathered when it was selected,
    recent      one row a branch: what it has gathered since,
    children    one row a child, while every branch is tried with M continuations.

Attention reads the levels as they are and puts the scores of all of them through one softmax, so it is exact; nothing
of the past is copied when branches fork, and the history once when the best children become the branches.

Heads stand before branches everywhere inside, so that the queries of all branches lie side by side for the keys that
they share, and no score is moved between the products. Prefix and history lie without gaps, which the products of
bfloat16 would close at every call; the others have room to grow, and stay in float32 where the past is in bfloat16, in
which so short products take longer.

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
        whole: whether everything is multiplied and what does not count is hidden then, which has to be finite for that:
            processors have a quick product of a row with 16 tokens, and a slow one with fewer.
        layers: of each layer the keys and values, [E * K * n, capacity, C]: views of the content, made once.
    """

    content: Tensor
    start: int
    stop: int
    mask: Tensor | None = None
    whole: bool = False
    layers: list[tuple[Tensor, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        self.layers = list(zip(*self.content, strict=True))

    @property
    def length(self) -> int:
        """Tokens that count."""
        return self.stop - self.start

    def append(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keys and values [E, K, n, C] behind the last token that counts."""
        for kept, new in zip(self.layers[layer], (key, value), strict=True):
            kept[:, self.stop].view(new.shape).copy_(new)

    def make_room(self) -> None:
        """Twice the capacity where it is used up."""
        if self.stop == self.content.shape[3]:
            self.content = torch.cat([self.content, torch.zeros_like(self.content)], 3)
            self.layers = list(zip(*self.content, strict=True))

    def gather(self, rows: Tensor) -> Level:
        """The named rows, int64 [rows], copied."""
        shape = (*self.content.shape[:2], len(rows), *self.content.shape[3:])
        level = Level(self.content.new_empty(shape), self.start, self.stop)
        self.copy_rows(rows, level.content[..., self.start : self.stop, :])
        return level

    def copy_rows(self, rows: Tensor, target: Tensor) -> None:
        """The tokens that count of the named rows, int64 [rows], to [2, L, rows, length, C]."""
        if not self.length:
            return
        source = self.content[..., self.start : self.stop, :].flatten(-2)
        if target.dtype is source.dtype:
            torch.index_select(source, 2, rows, out=target.flatten(-2))
        else:
            target.copy_(source.index_select(2, rows).view(target.shape))


@dataclass(slots=True)
class BranchedCache:
    """The levels, and how many environments, heads, branches and children they stand for.

    Attributes:
        levels: prefix, history, recent, and children where branches are forked; new tokens go to the last.
        environments, heads, branches, children: E, K, N, M.
        tokens: behind the prefix that there is room for at first.
        step: tokens between two selections that there is room for at first.
        dropped: tokens behind the prefix that are in no level any more.
        spare: the memory of the history before this one, flat, which the next one takes where it is large enough.
        used: the memory of this history.
    """

    levels: list[Level]
    environments: int
    heads: int
    branches: int
    children: int
    tokens: int
    step: int
    dropped: int = 0
    spare: Tensor | None = None
    used: Tensor | None = None

    @classmethod
    def root(cls, prefix: Level, heads: int, tokens: int, step: int) -> BranchedCache:
        """One branch an environment, with room for `tokens` behind the prefix, `step` of them between selections."""
        rows = prefix.content.shape[2]
        history, recent = _empty(prefix.content, rows, 0), _recent(_wide(prefix.content), rows, step)
        return cls([prefix, history, recent], rows // heads, heads, 1, 1, tokens, step)

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
        query = self._by_head(query * width**-0.5).contiguous()
        stops = [level.stop for level in self.levels]
        if key is not None and value is not None:
            newest.make_room()
            newest.append(layer, self._by_head(key), self._by_head(value))
            stops[-1] += 1
        read, scores = [], []
        for level, stop in zip(self.levels, stops, strict=True):
            if stop == level.start:
                continue
            span = slice(level.start, level.content.shape[3] if level.whole else stop)
            keys = level.layers[layer][0][:, span].transpose(1, 2)
            asked = query.to(keys.dtype).view(len(keys), -1, width)  # all queries of one row of the level
            score = torch.bmm(asked, keys) if level.mask is None else torch.baddbmm(level.mask[..., span], asked, keys)
            if span.stop > stop:
                score[..., stop - span.start :] = -torch.inf
            read.append((level, span))
            scores.append(score.view(-1, abreast, score.shape[2]))
        joined = torch.cat(scores, -1)
        shares = joined.softmax(-1, _wide(joined).dtype).split([score.shape[2] for score in scores], -1)
        out: Tensor | None = None
        for (level, span), share in zip(read, shares, strict=True):
            values = level.layers[layer][1][:, span]
            asked = share.to(values.dtype).view(len(values), -1, share.shape[2])
            if out is None:
                out = torch.bmm(asked, values)
            else:
                out = out.to(values.dtype)
                out.view(len(values), -1, width).baddbmm_(asked, values)
        assert out is not None  # the first token of an environment stands in the prefix
        return out.view(-1, heads, abreast, width).transpose(1, 2).reshape(rows, heads * width)

    def advance(self) -> None:
        """The token that all layers have appended now counts."""
        self.levels[-1].stop += 1

    def forget(self, tokens: int) -> None:
        """The first `tokens` tokens behind the prefix are read no longer."""
        gone = tokens - self.dropped
        for level in self.levels[1:]:
            level.start = min(max(gone, 0), level.stop)
            gone -= level.stop

    def fork(self, width: int, capacity: int) -> BranchedCache:
        """Every branch with `width` children that share its past, with room for `capacity` tokens each."""
        rows = self.rows * self.heads * width
        return replace(self, levels=[*self.levels, _empty(self.levels[-1].content, rows, capacity)], children=width)

    def keep(self, children: Tensor) -> BranchedCache:
        """Of the children of each branch those named, int64 [E, N, M']; one may be named more than once."""
        first = torch.arange(self.branches, device=children.device)[:, None] * self.children
        rows = self._rows_of_heads((first + children).flatten(1), self.branches * self.children)
        return replace(self, levels=[*self.levels[:-1], self.levels[-1].gather(rows)], children=children.shape[2])

    def select(self, branches: Tensor) -> BranchedCache:
        """The named branches or children, int64 [E, N'], as the branches; the cache before is used up by it."""
        prefix, *levels = self.levels
        both, layers, _, _, width = prefix.content.shape
        rows = branches.shape[1] * self.environments * self.heads
        length, size, memory = sum(level.length for level in levels), both * layers * rows * width, self.spare
        if memory is None or memory.numel() < size * length:
            memory = prefix.content.new_empty(size * max(self.tokens, length))
        history = Level(memory[: size * length].view(both, layers, rows, length, width), 0, 0)
        parents = self._rows_of_heads(branches // self.children, self.branches)
        themselves = self._rows_of_heads(branches, self.branches * self.children)
        for level, named in zip(levels, (parents, parents, themselves), strict=False):
            history.stop += level.length
            level.copy_rows(named, history.content[..., history.stop - level.length : history.stop, :])
        if rows == levels[1].content.shape[2]:  # its memory is free now
            recent = Level(levels[1].content, 0, 0, whole=True)
        else:
            recent = _recent(levels[1].content, rows, self.step)
        return replace(
            self,
            levels=[prefix, history, recent],
            branches=branches.shape[1],
            children=1,
            dropped=self.dropped + sum(level.start for level in levels),
            spare=self.used,
            used=memory,
        )

    def _by_head(self, each: Tensor) -> Tensor:
        """[R, K, C] as [E, K, N * M, C]."""
        return each.view(self.environments, -1, *each.shape[1:]).transpose(1, 2)

    def _rows_of_heads(self, chosen: Tensor, abreast: int) -> Tensor:
        """Where every head keeps the rows chosen [E, n] of `abreast` in each environment: [E * K * n]."""
        first = torch.arange(self.environments * self.heads, device=chosen.device) * abreast
        return (first.view(self.environments, self.heads, 1) + chosen[:, None]).flatten()


def _empty(like: Tensor, rows: int, capacity: int) -> Level:
    both, layers, _, _, width = like.shape
    return Level(like.new_empty(both, layers, rows, capacity, width), 0, 0)


def _recent(like: Tensor, rows: int, step: int) -> Level:
    both, layers, _, _, width = like.shape
    return Level(like.new_zeros(both, layers, rows, -(-step // 16) * 16, width), 0, 0, whole=True)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype is torch.bfloat16 else x
