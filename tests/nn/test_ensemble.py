from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seqwm.nn.ensemble import EnsembleOptions, GaussianEnsemble, Normals


def small(members=4, elites=2, inputs=3, outputs=2, width=16, layers=2, flags=0, precision="float32"):
    torch.manual_seed(0)
    options = EnsembleOptions(members=members, elites=elites, layers=layers, width=width, precision=precision)
    return GaussianEnsemble(options, inputs, outputs, flags)


def test_the_likelihood_is_that_of_a_normal_distribution():
    mean, log_variance, target = torch.randn(3, 2, 5, 4).unbind(0)
    reference = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    torch.testing.assert_close(Normals(mean, log_variance).negative_log_likelihood(target), -reference.log_prob(target))


def test_the_likelihood_of_a_flag_is_that_of_a_coin():
    mean, log_variance, target = torch.randn(3, 5, 4).unbind(0)
    target[:, -1] = torch.tensor([0.0, 1, 1, 0, 1])
    said = Normals(mean, log_variance, flags=1)
    coin = torch.distributions.Bernoulli(logits=mean[:, -1])
    expected = Normals(mean, log_variance).negative_log_likelihood(target)
    expected[:, -1] = -coin.log_prob(target[:, -1])
    torch.testing.assert_close(said.negative_log_likelihood(target), expected)
    torch.testing.assert_close(said.expected(), torch.cat([mean[:, :-1], coin.probs[:, None]], 1))


def test_members_in_one_product_say_what_separate_networks_say():
    ensemble, x = small(), torch.randn(4, 6, 3)
    said = ensemble(x)
    for m in range(4):
        h = x[m]
        for weight, bias in list(zip(ensemble.weights, ensemble.biases, strict=True))[:-1]:
            h = F.silu(F.linear(h, weight[m], bias[m, 0]))
        mean = F.linear(h, ensemble.weights[-1][m], ensemble.biases[-1][m, 0])[:, :2]
        torch.testing.assert_close(said.mean[m], mean)


def test_rows_with_a_member_each_get_what_that_member_says():
    ensemble, x, member = small(), torch.randn(5000, 3), torch.randint(4, (5000,))
    everyone, own = ensemble(x), ensemble.of_members(x, member)
    rows = torch.arange(5000)
    torch.testing.assert_close(own.mean, everyone.mean[member, rows])
    torch.testing.assert_close(own.log_variance, everyone.log_variance[member, rows])


def test_the_log_variance_stays_between_its_bounds_and_the_loss_pays_for_their_distance():
    ensemble = small()
    log_variance = ensemble(1e4 * torch.randn(50, 3)).log_variance
    slack = 1e-3  # the softplus of the lower bound lifts the upper one by less than that
    assert bool((log_variance >= ensemble.least - slack).all() and (log_variance <= ensemble.most + slack).all())
    x, target = torch.randn(4, 6, 3), torch.randn(4, 6, 2)
    likelihood = ensemble(x).negative_log_likelihood(target).mean((1, 2)).sum()
    torch.testing.assert_close(ensemble.loss(x, target), likelihood + 0.01 * 2 * 10.5)


def test_elites_are_the_members_with_the_least_errors_and_alone_give_the_uncertainties():
    ensemble, x = small(), torch.randn(7, 3)
    ensemble.choose_elites(torch.tensor([3.0, 0.5, 2.0, 1.0]))
    assert ensemble.elites.tolist() == [1, 3]
    said = ensemble(x)
    epistemic, aleatoric = ensemble.uncertainties(x)
    torch.testing.assert_close(epistemic, ((said.mean[1] - said.mean[3]) / 2).square())
    torch.testing.assert_close(aleatoric, (said.log_variance[1].exp() + said.log_variance[3].exp()) / 2)


def test_a_linear_system_with_noise_is_recovered_and_members_disagree_off_the_data():
    ensemble = small(inputs=2, outputs=1, width=32)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2000, 2, generator=generator) * 2 - 1
    target = x @ torch.tensor([[0.8], [-0.5]]) + 0.3 * torch.randn(2000, 1, generator=generator)
    optimiser = torch.optim.Adam(ensemble.parameters(), 3e-3)
    own = torch.randint(2000, (4, 2000), generator=generator)  # each member's own resampling
    for _ in range(300):
        drawn = own.gather(1, torch.randint(2000, (4, 128), generator=generator))
        ensemble.learn(x[drawn], target[drawn])
        optimiser.step()
    with torch.no_grad():
        inside = torch.rand(500, 2, generator=generator) * 1.6 - 0.8
        mean = ensemble(inside).mean.mean(0)
        epistemic, aleatoric = ensemble.uncertainties(inside)
        far, _ = ensemble.uncertainties(inside / inside.norm(dim=1, keepdim=True) * 8)
    assert float((mean - inside @ torch.tensor([[0.8], [-0.5]])).square().mean().sqrt()) < 0.1
    assert 0.26 < float(aleatoric.mean().sqrt()) < 0.34
    assert float(far.mean()) > 10 * float(epistemic.mean())


def test_more_elites_than_members_are_refused():
    with pytest.raises(ValueError, match="elites: found 8, expected at most the 7 members"):
        EnsembleOptions(elites=8)


@pytest.mark.parametrize(("width", "flags"), [(80, 0), (5, 1)])  # above and below the size that may go to oneDNN
def test_the_written_out_gradients_are_those_of_autograd(width, flags):
    ensemble = small(inputs=70, width=width, flags=flags, outputs=3)
    x, target = torch.randn(4, 90, 70), 3 * torch.randn(4, 90, 3)
    if flags:
        target[..., -1] = (target[..., -1] > 0).float()
    for p in ensemble.parameters():
        p.data += 0.1 * torch.randn_like(p)
    for again in (1.0, 2.0):  # what was there before does not matter
        loss = ensemble.learn(again * x, target)
    found = [p.grad.clone() for p in ensemble.parameters()]
    ensemble.zero_grad()
    expected = ensemble.loss(2 * x, target)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for gradient, p in zip(found, ensemble.parameters(), strict=True):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-4, atol=1e-6)
    assert all(float(gradient.abs().max()) > 0 for gradient in found)


def test_rows_for_everyone_pass_in_pieces_and_come_back_in_order():
    ensemble, x = small(), torch.randn(5000, 3)
    with torch.no_grad():
        torch.testing.assert_close(ensemble(x).mean, ensemble._batched(x.expand(4, -1, -1))[..., :2])


def test_gradients_reach_the_rows_where_they_are_asked_for():
    ensemble, x = small(), torch.randn(6, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(ensemble(x).mean.sum(), x)
    with torch.no_grad():
        steps = 1e-2 * torch.eye(3)
        slopes = [(ensemble(x + h).mean - ensemble(x - h).mean).sum((0, 2)) / 2e-2 for h in steps]
    torch.testing.assert_close(gradient, torch.stack(slopes, 1), rtol=1e-2, atol=1e-3)


def test_gradients_reach_members_and_rows_where_each_row_has_its_own():
    ensemble, member = small(inputs=70, width=80), torch.arange(90) % 4
    x = torch.randn(90, 70, requires_grad=True)
    found = torch.autograd.grad(ensemble.of_members(x, member).mean.sum(), [x, ensemble.weights[0]])
    expected = torch.autograd.grad(ensemble(x).mean[member, torch.arange(90)].sum(), [x, ensemble.weights[0]])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_in_bf16_predictions_and_gradients_are_those_of_float32_but_for_rounding():
    full, half = small(inputs=20, width=96), small(inputs=20, width=96, precision="bf16")
    half.load_state_dict(full.state_dict())
    x, target = torch.randn(4, 90, 20), torch.randn(4, 90, 2)
    for ask in (lambda one: one(x), lambda one: one.of_members(x.flatten(0, 1), torch.arange(360) % 4)):
        with torch.no_grad():
            own, expected = ask(half), ask(full)
        assert own.mean.dtype == torch.float32
        assert not torch.equal(own.mean, expected.mean)
        torch.testing.assert_close(own.mean, expected.mean, atol=0.02, rtol=0.02)
        torch.testing.assert_close(own.log_variance, expected.log_variance, atol=0.02, rtol=0.02)
    torch.testing.assert_close(half.learn(x, target), full.learn(x, target), atol=0, rtol=0.01)
    for p, other in zip(half.parameters(), full.parameters(), strict=True):
        assert p.grad.dtype == torch.float32
        assert (p.grad - other.grad).norm() < 0.02 * other.grad.norm()
