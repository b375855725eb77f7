from __future__ import annotations

import pytest
import torch

from seqwm.nn import rssm as module
from seqwm.nn.dense import BlockLinear, Linear
from seqwm.nn.rssm import RSSM, RSSMOptions, kl_losses

B, T, A, E = 3, 7, 2, 5
KINDS = {
    "v3": RSSMOptions(deterministic=16, stochastic=3, classes=4, hidden=8, blocks=4),
    "v2": RSSMOptions(deterministic=16, stochastic=3, classes=4, hidden=8, recurrence="gru", norm="layer", uniform=0.0),
    "v1": RSSMOptions(
        deterministic=16, stochastic=3, classes=0, hidden=8, recurrence="gru", norm="none", activation="elu"
    ),
}


def cell(kind):
    torch.manual_seed(0)
    return RSSM(KINDS[kind], A, E)


def inputs(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, T, E, generator=generator), torch.randn(B, T, A, generator=generator)


def nowhere(*places):
    first = torch.zeros(B, T, dtype=torch.bool)
    for place in places:
        first[place] = True
    return first


@pytest.mark.parametrize("kind", KINDS)
def test_rows_observed_at_once_are_the_states_of_one_row_after_another(kind):
    rssm, (embedded, actions) = cell(kind), inputs()
    first = nowhere((0, 0), (1, 3), (2, 6))
    noise = rssm.noise(B, T, generator=torch.Generator().manual_seed(0))
    rows, end = rssm.observe(embedded, actions, first, rssm.initial(B), noise)
    state = rssm.initial(B)
    for t in range(T):
        state = rssm.update(state, embedded[:, t], actions[:, t], first[:, t], noise[:, t])
        torch.testing.assert_close(state["deterministic"], rows.deterministic[:, t])
        torch.testing.assert_close(state["stochastic"], rows.stochastic[:, t])
    torch.testing.assert_close(end["deterministic"], state["deterministic"])
    torch.testing.assert_close(rssm.prior(rows.deterministic), rows.prior)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_in_the_middle_equals_a_fresh_start_and_forgets_the_action_before(kind):
    rssm, (embedded, actions) = cell(kind), inputs()
    noise = rssm.noise(B, T, generator=torch.Generator().manual_seed(0))
    rows, _ = rssm.observe(embedded, actions, nowhere((0, 4), (1, 4), (2, 4)), rssm.initial(B), noise)
    start = nowhere((0, 0), (1, 0), (2, 0))[:, : T - 4]
    fresh, _ = rssm.observe(embedded[:, 4:], 9 * actions[:, 4:], start, rssm.initial(B), noise[:, 4:])
    again, _ = rssm.observe(embedded[:, 4:], actions[:, 4:], start, rssm.initial(B), noise[:, 4:])
    torch.testing.assert_close(rows.features[:, 4:], again.features)
    torch.testing.assert_close(fresh.features[:, 0], again.features[:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_depends_on_what_was_seen_five_rows_before_and_never_on_what_comes(kind):
    rssm, (embedded, actions) = cell(kind), inputs()
    embedded.requires_grad_()
    rows, _ = rssm.observe(embedded, actions, nowhere(), rssm.initial(B), None)
    (gradient,) = torch.autograd.grad(rows.deterministic[:, 5].sum(), embedded)
    assert float(gradient[:, 0].abs().sum()) > 0
    assert float(gradient[:, 5:].abs().sum()) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_without_looking_is_the_recurrence_and_a_draw_from_the_prior(kind):
    rssm, (embedded, actions) = cell(kind), inputs()
    noise = rssm.noise(B, T, generator=torch.Generator().manual_seed(0))
    rows, _ = rssm.observe(embedded, actions, nowhere(), rssm.initial(B), noise)
    state = {"deterministic": rows.deterministic[:, 2], "stochastic": rows.stochastic[:, 2]}
    after = rssm.step(state, actions[:, 3], noise[:, 3])
    torch.testing.assert_close(after["deterministic"], rows.deterministic[:, 3])
    assert after["stochastic"].shape == (B, rssm.size)


def test_the_cells_recurrence_is_its_equation_with_dense_weights_made_of_the_blocks():
    rssm, o = cell("v3"), KINDS["v3"]
    gru = rssm.recurrence
    generator = torch.Generator().manual_seed(2)
    h, z, a = (torch.randn(B, n, generator=generator) for n in (16, 12, A))
    shared = torch.cat([gru.state_in(h), gru.stochastic_in(z), gru.action_in(a / a.abs().clamp_min(1))], -1)
    update, reset, candidate = (torch.empty(B, 16) for _ in range(3))
    parts = []
    for k in range(o.blocks):
        x = torch.cat([h[:, 4 * k : 4 * k + 4], shared], -1)
        parts.append(x @ gru.hidden.weight[k] + gru.hidden.bias[k])
    x = torch.nn.functional.silu(gru.hidden_norm(torch.cat(parts, -1)))
    for k in range(o.blocks):
        span = slice(4 * k, 4 * k + 4)
        gates = x[:, span] @ gru.gates.weight[k] + gru.gates.bias[k]
        reset[:, span], candidate[:, span], update[:, span] = gates.split(4, -1)
    u = torch.sigmoid(update - 1)
    expected = u * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - u) * h
    torch.testing.assert_close(gru(h, z, gru.embed_action(a)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_one_half_of_the_kl_moves_the_prior_alone_and_the_other_the_posterior(kind):
    rssm, (embedded, actions) = cell(kind), inputs()
    rows, _ = rssm.observe(embedded, actions, nowhere(), rssm.initial(B), None)
    posterior, prior = rows.posterior.detach().requires_grad_(), rows.prior.detach().requires_grad_()
    dynamics, representation = kl_losses(rssm, posterior, prior)
    torch.testing.assert_close(dynamics, representation)
    halves = [
        torch.autograd.grad(loss.sum(), (posterior, prior), allow_unused=True) for loss in (dynamics, representation)
    ]
    assert halves[0][0] is None
    assert halves[1][1] is None
    whole = torch.autograd.grad(rssm.kl(posterior, prior).sum(), (posterior, prior))
    torch.testing.assert_close(halves[1][0], whole[0])
    torch.testing.assert_close(halves[0][1], whole[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_the_kl_is_that_of_finite_differences(kind):
    rssm = cell(kind).double()
    generator = torch.Generator().manual_seed(3)
    width = 3 * (4 if KINDS[kind].classes else 2)
    raw = [torch.randn(2, width, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda p, q: rssm.kl(rssm._distribution(p), rssm._distribution(q)), raw)


def test_no_category_is_less_likely_than_its_share_of_the_uniform_distribution():
    rssm, (embedded, actions) = cell("v3"), inputs()
    rows, _ = rssm.observe(1e3 * embedded, actions, nowhere(), rssm.initial(B), None)
    assert float(rows.posterior.detach().exp().min()) >= 0.01 / 4 - 1e-6
    torch.testing.assert_close(rows.posterior.exp().sum(-1), torch.ones(B, T, 3))


def test_initial_weights_have_variance_one_over_fan_in_and_are_cut_at_two_deviations():
    torch.manual_seed(0)
    weight = Linear(400, 300).weight.detach()
    assert float(weight.var()) == pytest.approx(1 / 400, rel=0.03)
    assert float(weight.abs().max()) <= 2 * 1.1368 / 20 + 1e-6
    assert float(BlockLinear(400, 300, 4).weight.detach().var()) == pytest.approx(1 / 400, rel=0.03)
    assert float(Linear(400, 300, 0.0).weight.detach().abs().max()) == 0.0


def test_noise_is_a_pure_function_of_the_generator():
    rssm = cell("v3")
    one, other = (rssm.noise(2, 3, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert one.shape == (2, 3, 3)
    assert torch.equal(one, other)
    assert module.RSSM(KINDS["v1"], A, E).noise(2, generator=None).shape == (2, 3)
