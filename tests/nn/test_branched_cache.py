from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqwm.nn.branched_cache import BranchedCache, Level

LAYERS, HEADS, WIDTH = 2, 2, 4


class Plain:
    """The same branches with a whole copy of keys and values each, and attention written out."""

    def __init__(self, content: Tensor, hidden: Tensor | None) -> None:
        self.rows = [(content[:, :, r], None if hidden is None else hidden[r]) for r in range(content.shape[2])]

    def append(self, keys: Tensor, values: Tensor) -> None:  # [L, R, K, C]
        new = torch.stack([keys, values])
        self.rows = [
            (torch.cat([content, new[:, :, r, :, None]], -2), hidden) for r, (content, hidden) in enumerate(self.rows)
        ]

    def attend(self, layer: int, query: Tensor) -> Tensor:
        out = []
        for (content, hidden), q in zip(self.rows, query, strict=True):
            scores = torch.einsum("kc,ktc->kt", q, content[0, layer]) / WIDTH**0.5
            if hidden is not None:
                scores[:, : len(hidden)] = scores[:, : len(hidden)].masked_fill(hidden, -torch.inf)
            out.append(torch.einsum("kt,ktc->kc", scores.softmax(-1), content[1, layer]).flatten())
        return torch.stack(out)

    def take(self, rows: list[int]) -> None:
        self.rows = [self.rows[r] for r in rows]


def append(cache: BranchedCache, plain: Plain, generator: torch.Generator) -> None:
    rows = cache.rows
    query, key, value = torch.randn(3, LAYERS, rows, HEADS, WIDTH, generator=generator, dtype=torch.float64)
    plain.append(key, value)
    for layer in range(LAYERS):
        read = cache.attend(layer, query[layer], key[layer], value[layer])
        assert torch.allclose(read, plain.attend(layer, query[layer]), atol=1e-12)
    cache.advance()
    aside = torch.randn(rows, HEADS, WIDTH, generator=generator, dtype=torch.float64)
    assert torch.allclose(cache.attend(0, aside, None, None), plain.attend(0, aside), atol=1e-12)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), environments=st.integers(1, 3), padded=st.booleans(), data=st.data())
def test_branches_that_share_their_past_read_what_whole_copies_read(
    seed: int, environments: int, padded: bool, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)
    content = torch.randn(2, LAYERS, environments, HEADS, 5, WIDTH, generator=generator, dtype=torch.float64)
    hidden = torch.rand(environments, 5, generator=generator) < 0.5 if padded else None
    mask = None
    if hidden is not None:
        hidden[:, 0] = False
        mask = torch.zeros(hidden.shape, dtype=torch.float64).masked_fill(hidden, -torch.inf)
        mask = mask.repeat_interleave(HEADS, 0)[:, None]
    cache = BranchedCache.root(Level(content.flatten(2, 3), 0, 5, mask), HEADS, tokens=12, step=2)
    plain = Plain(content, hidden)
    for _ in range(data.draw(st.integers(1, 3))):
        for _ in range(data.draw(st.integers(0, 2))):
            append(cache, plain, generator)
        if data.draw(st.booleans()):
            width = data.draw(st.integers(2, 3))
            branches = cache.rows
            cache = cache.fork(width, capacity=3)
            plain.take([r for r in range(branches) for _ in range(width)])
            append(cache, plain, generator)
            if data.draw(st.booleans()):
                kept = torch.randint(0, width, (environments, cache.branches, 2), generator=generator)
                flat = kept.view(-1, 2)
                plain.take([r * width + int(child) for r in range(branches) for child in flat[r]])
                cache = cache.keep(kept)
                append(cache, plain, generator)
        many = cache.branches * cache.children
        chosen = torch.randint(0, many, (environments, data.draw(st.integers(1, 4))), generator=generator)
        plain.take([e * many + int(b) for e in range(environments) for b in chosen[e]])
        cache = cache.select(chosen)
    append(cache, plain, generator)


def test_forgotten_tokens_are_not_read() -> None:
    content = torch.randn(2, LAYERS, 1, HEADS, 5, WIDTH)
    whole = BranchedCache.root(Level(content.flatten(2, 3), 2, 5), HEADS, tokens=1, step=1)
    later = BranchedCache.root(Level(content[..., 2:, :].flatten(2, 3), 0, 3), HEADS, tokens=1, step=1)
    query = torch.randn(1, HEADS, WIDTH)
    assert torch.equal(whole.attend(1, query, None, None), later.attend(1, query, None, None))


def test_a_past_in_bfloat16_is_read_as_one_in_float32_but_for_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    content = torch.randn(2, LAYERS, 2, HEADS, 5, WIDTH, generator=generator)
    caches = [
        BranchedCache.root(Level(content.flatten(2, 3).to(dtype), 0, 5), HEADS, tokens=12, step=2)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    chosen, kept = torch.tensor([[0, 2, 1], [1, 1, 0]]), torch.tensor([[[0, 0]], [[2, 1]]])
    changes = [
        lambda cache: cache,
        lambda cache: cache.fork(3, capacity=2),
        lambda cache: cache.keep(kept),
        lambda cache: cache.select(chosen[:, :2] % 2),
        lambda cache: cache,
        lambda cache: cache.fork(2, capacity=2),
        lambda cache: cache.select(chosen),
    ]
    for change in changes:
        caches = [change(cache) for cache in caches]
        query, key, value = torch.randn(3, caches[0].rows, HEADS, WIDTH, generator=generator)
        for layer in range(LAYERS):
            exact, near = (cache.attend(layer, query, key, value) for cache in caches)
            assert torch.allclose(near, exact, atol=0.03)
        for cache in caches:
            cache.advance()
    assert [level.content.dtype for level in caches[1].levels] == [torch.bfloat16, torch.bfloat16, torch.float32]
