from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from seqwm.nn.transformer import Block, Transformer, attend, initialise, rotate


def network(**options):
    torch.manual_seed(0)
    made = Transformer(3, 2, 16, **options).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.eval()


def tokens(batch=3, length=7):
    return torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new"])
def test_a_block_is_torchs_own_pre_norm_layer(activation):
    torch.manual_seed(0)
    block = Block(2, 16, 0.0, activation, rotary=False).double()
    theirs = nn.TransformerEncoderLayer(
        16, 2, 64, 0.0, ACT2FN[activation],
        batch_first=True, norm_first=True, dtype=torch.float64,
    )  # fmt: skip
    pairs = {
        theirs.self_attn.in_proj_weight: block.qkv.weight, theirs.self_attn.in_proj_bias: block.qkv.bias,
        theirs.self_attn.out_proj.weight: block.out.weight, theirs.self_attn.out_proj.bias: block.out.bias,
        theirs.linear1.weight: block.up.weight, theirs.linear1.bias: block.up.bias,
        theirs.linear2.weight: block.down.weight, theirs.linear2.bias: block.down.bias,
    }  # fmt: skip
    with torch.no_grad():
        for target, source in pairs.items():
            target.copy_(source)
    x = tokens()
    mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    torch.testing.assert_close(block(x), theirs(x, src_mask=mask, is_causal=True), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("rotary", [False, True])
def test_no_token_sees_a_later_one(rotary):
    made, x = network(rotary=rotary), tokens().requires_grad_()
    for place in range(7):
        (gradient,) = torch.autograd.grad(made(x)[:, place].sum(), x)
        assert (gradient[:, place + 1 :] == 0).all()
        assert (gradient[:, : place + 1] != 0).any(-1).all()


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_reading_some_positions_gives_what_the_whole_gives_there(rotary, masked):
    made, x = network(rotary=rotary), tokens()
    mask = torch.zeros(7, 7, dtype=torch.float64).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
    mask = mask if masked else None
    whole = made(x, mask=mask)
    places = torch.tensor([1, 4, 6])
    torch.testing.assert_close(made(x, read=places, mask=mask), whole[:, places], atol=1e-10, rtol=1e-10)
    if not masked:
        each = torch.tensor([[2], [0], [6]])
        wanted = whole[torch.arange(3), each[:, 0]][:, None]
        torch.testing.assert_close(made(x, read=each), wanted, atol=1e-10, rtol=1e-10)


def test_a_mask_can_hide_a_column_as_a_key():
    made, x = network(), tokens().requires_grad_()
    mask = torch.zeros(7, 7, dtype=torch.float64).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
    mask[3:, 2] = -torch.inf
    (gradient,) = torch.autograd.grad(made(x, mask=mask)[:, 3:].sum(), x)
    assert (gradient[:, 2] == 0).all()


def test_rotary_products_depend_on_the_distance_alone():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 8, generator=generator, dtype=torch.float64)
    at = lambda x, place: rotate(x, torch.tensor([place]))  # noqa: E731
    products = [(at(q, place + 3) * at(k, place)).sum() for place in (0, 5, 100)]
    torch.testing.assert_close(products[1], products[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(products[2], products[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(at(q, 7).norm(), q.norm())
    assert torch.equal(at(q, 0), q)


def test_a_rotary_network_does_not_know_where_a_sequence_begins():
    """What makes cropping the front of a cache valid: only distances count."""
    block, x = network(rotary=True).blocks[0], tokens()
    q, k, _ = block.project(x)
    later_q, later_k, _ = block.project(x, torch.arange(40, 47))
    torch.testing.assert_close(later_q @ later_k.mT, q @ k.mT, atol=1e-5, rtol=1e-5)


def test_initial_weights_are_gpt2s():
    made = Transformer(2, 2, 64)
    initialise(made)
    linear = torch.cat([m.weight.flatten() for m in made.modules() if isinstance(m, nn.Linear)])
    assert linear.std().item() == pytest.approx(0.02, rel=0.02)
    assert all((m.bias == 0).all() for m in made.modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bfloat16_is_attention_with_its_rounding(masked):
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(2, 3, 9, 8, generator=generator, requires_grad=True) for _ in range(3)]
    rounded = [part.detach().bfloat16().requires_grad_() for part in exact]
    mask = torch.ones(9, 9, dtype=torch.bool).tril(2) if masked else None
    pairs = [(attend(*parts, mask, 0.0), parts) for parts in (exact, rounded)]
    torch.testing.assert_close(pairs[1][0].float(), pairs[0][0], atol=0.03, rtol=0.03)
    gradients = [torch.autograd.grad(out.float().square().sum(), parts) for out, parts in pairs]
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.05)
    added = torch.zeros(9, 9).masked_fill(~torch.ones(9, 9, dtype=torch.bool).tril(), -torch.inf).bfloat16()
    assert torch.equal(attend(*rounded, added, 0.0), attend(*rounded, None, 0.0))
