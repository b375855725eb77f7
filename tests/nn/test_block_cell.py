from __future__ import annotations

import torch

from seqwm.nn.rssm import RSSM, BlockGRU, RSSMOptions

LANES, ROWS, ACTIONS, EMBEDDING = 3, 6, 2, 5
OPTIONS = RSSMOptions(deterministic=16, stochastic=3, classes=4, hidden=8, blocks=4)


def model():
    torch.manual_seed(0)
    rssm = RSSM(OPTIONS, ACTIONS, EMBEDDING).double()
    for p in rssm.parameters():
        p.data += 0.3 * torch.randn_like(p)  # gains and biases that are told apart
    return rssm


def row_by_row(rssm, embedded, actions, first, state, noise):
    """The rows of `observe` by `update`, whose every operation autograd sees."""
    h, z, q = [], [], []
    for t in range(ROWS):
        going = (~first[:, t]).double()[:, None]
        driven = rssm.recurrence.embed_action(actions[:, t] * going)
        deterministic = rssm.recurrence(state["deterministic"] * going, state["stochastic"] * going, driven)
        parameters = rssm._posterior(deterministic, rssm.posterior_observation(embedded[:, t]))
        state = {"deterministic": deterministic, "stochastic": rssm._draw(parameters, noise[:, t])}
        for rows, one in zip((h, z, q), (*state.values(), parameters), strict=True):
            rows.append(one)
    return [torch.stack(rows, 1) for rows in (h, z, q)]


def test_the_written_out_recurrence_has_the_states_and_every_gradient_of_one_that_autograd_takes_row_by_row():
    rssm = model()
    leaves = [torch.randn(LANES, ROWS, n, dtype=torch.float64, requires_grad=True) for n in (EMBEDDING, ACTIONS)]
    state = {
        name: torch.randn_like(part, dtype=torch.float64).requires_grad_() for name, part in rssm.initial(LANES).items()
    }
    first = torch.zeros(LANES, ROWS, dtype=torch.bool)
    first[1, 0] = first[2, 3] = True
    noise = rssm.noise(LANES, ROWS, generator=None).double()
    weights = [torch.randn(LANES, ROWS, *shape, dtype=torch.float64) for shape in ((16,), (12,), (3, 4))]
    own = [p for name, p in rssm.named_parameters() if not name.startswith("prior")]
    rows, _ = rssm.observe(*leaves, first, state, noise)
    given = [rows.deterministic, rows.stochastic, rows.posterior]
    expected = row_by_row(rssm, *leaves, first, state, noise)
    gradients = []
    for states in (given, expected):
        value = sum((part * weight).sum() for part, weight in zip(states, weights, strict=True))
        gradients.append(torch.autograd.grad(value, [*leaves, *state.values(), *own]))
    torch.testing.assert_close(given, expected)
    torch.testing.assert_close(*gradients)


def test_a_step_without_gradients_is_the_step_with_them():
    rssm = model()
    state = {name: torch.randn_like(part, dtype=torch.float64) for name, part in rssm.initial(LANES).items()}
    action, noise = torch.randn(LANES, ACTIONS, dtype=torch.float64), rssm.noise(LANES, generator=None).double()
    seen = rssm.step(state, action, noise)
    with torch.no_grad():
        unseen = rssm.step(state, action, noise)
    torch.testing.assert_close(unseen, {name: part.detach() for name, part in seen.items()})


def test_under_autocast_a_step_without_gradients_is_in_bf16_and_that_of_float32_but_for_rounding():
    torch.manual_seed(0)
    cell = BlockGRU(RSSMOptions(deterministic=64, stochastic=4, classes=8, hidden=64), 32, ACTIONS)
    h, z, driven = torch.randn(16, 64).tanh(), torch.randn(16, 32), torch.randn(16, 64)
    with torch.no_grad():
        full = cell(h, z, driven)
        with torch.autocast("cpu", torch.bfloat16):
            half = cell(h, z, driven)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, atol=0.02, rtol=0)
