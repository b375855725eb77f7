from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from gymnasium import spaces

from seqwm.control.experience import Experience
from seqwm.control.soft_actor_critic import SoftActorCritic, SoftActorCriticOptions, SoftActorCriticUpdates
from seqwm.core.errors import SpaceError

BOX = spaces.Box(-2.0, 2.0, (2,), np.float32)


def networks(width=16, **options) -> SoftActorCritic:
    torch.manual_seed(0)
    return SoftActorCritic(SoftActorCriticOptions(width=width, **options), 3, BOX)


def batch(rows: int = 6) -> Experience:
    generator = torch.Generator().manual_seed(1)
    seen, following = torch.randn(2, rows, 3, generator=generator)
    action = torch.rand(rows, 2, generator=generator) * 2 - 1
    return Experience(
        seen, action, torch.randn(rows, generator=generator), following, (torch.arange(rows) % 3 == 0) * 1.0
    )


def say(critic, value: float) -> None:
    """Let a critic say the same everywhere."""
    for p in critic.parameters():
        p.data.zero_()
    critic.biases[-1].data.fill_(value)


def test_targets_take_the_lower_slow_critic_and_end_at_terminations_alone():
    own, rows = networks(temperature=0.5), batch()
    say(own.slow[0], 5.0)
    say(own.slow[1], 3.0)
    log_density = torch.linspace(-1, 1, 6)
    y = own.targets(rows, torch.zeros(6, 2), log_density)
    expected = rows.reward + 0.99 * torch.tensor([0.0, 1, 1, 0, 1, 1]) * (3.0 - 0.5 * log_density)
    torch.testing.assert_close(y, expected)


def test_the_density_of_actions_integrates_to_one_over_the_square_they_are_in():
    own = networks()
    x = (torch.arange(400) + 0.5) / 200 - 1
    grid = torch.stack(torch.meshgrid(x, x, indexing="ij"), -1)
    for state in 3 * torch.randn(3, 3):
        actions = own.actions(state[None])
        density = actions.log_density(grid).detach().exp()
        assert float(density.mean() * 4) == pytest.approx(1.0, abs=0.02)


def test_the_gradient_is_that_of_the_three_losses_written_out_each_for_its_own_weights():
    own, rows = networks(temperature=0.3, entropy=-1.5), batch()
    noise = torch.randn(2, 6, 2)
    own.learn(rows, noise)
    found = {name: p.grad for name, p in own.named_parameters() if p.requires_grad}

    def drawn(seen, which):
        mean, log_std = own.actor(seen).chunk(2, 1)
        x = mean + log_std.exp() * noise[which]
        normal = torch.distributions.Normal(mean, log_std.exp()).log_prob(x)
        return x.tanh(), (normal - (1 - x.tanh().square()).log()).sum(1)  # change of variables

    def lower(critics, seen, action):
        return torch.minimum(*(critic(torch.cat([seen, action], 1))[:, 0] for critic in critics))

    with torch.no_grad():
        later, later_density = drawn(rows.following, 1)
        value = lower(own.slow, rows.following, later) - 0.3 * later_density
        y = rows.reward + 0.99 * (1 - rows.terminated) * value
    action, density = drawn(rows.observation, 0)
    values = [critic(torch.cat([rows.observation, rows.action], 1))[:, 0] for critic in own.critics]
    critic_loss = sum(0.5 * (one - y).square().mean() for one in values)
    actor_loss = (0.3 * density - lower(own.critics, rows.observation, action)).mean()
    for module, loss in (("critics", critic_loss), ("actor", actor_loss)):
        names = [name for name in found if name.startswith(module)]
        expected = torch.autograd.grad(loss, [own.get_parameter(name) for name in names], retain_graph=True)
        for name, one in zip(names, expected, strict=True):
            torch.testing.assert_close(found[name], one, atol=1e-5, rtol=1e-4, msg=name)
    torch.testing.assert_close(found["log_temperature"], -(density.detach().mean() - 1.5))


def test_slow_critics_move_by_their_share():
    own = networks(target_rate=0.25)
    say(own.slow[0], 1.0)
    say(own.critics[0], 3.0)
    own.follow()
    assert float(own.slow[0].biases[-1]) == pytest.approx(1.5)


def test_it_finds_the_best_action_of_a_bandit_and_goes_on_from_its_state():
    own = networks(width=64)
    updates, generator = SoftActorCriticUpdates(own, 3e-3), torch.Generator().manual_seed(0)
    best = torch.tensor([0.5, -0.3])

    def update(learning, draws):
        action = torch.rand(64, 2, generator=draws) * 2 - 1
        reward = -10 * (action - best).square().sum(1)
        nowhere = torch.zeros(64, 3)
        return learning.update(Experience(nowhere, action, reward, nowhere, torch.ones(64)), draws)

    for _ in range(600):
        figures = update(updates, generator)
    assert set(figures) == {"critic_loss", "value", "entropy", "temperature"}
    torch.testing.assert_close(own.act(torch.zeros(1, 3), explore=False)[0], best, atol=0.1, rtol=0)

    again = networks(width=64)
    again.load_state_dict(own.state_dict())
    resumed = SoftActorCriticUpdates(again, 3e-3)
    resumed.load_state_dict(deepcopy(updates.state_dict()))
    assert update(resumed, torch.Generator().manual_seed(5)) == update(updates, torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(-np.inf, np.inf, (2,), np.float32)])
def test_actions_without_bounds_are_refused_with_methods_that_take_them(space):
    with pytest.raises(SpaceError, match=r"expected a Box with finite bounds .*pets and dreamer take discrete actions"):
        SoftActorCritic(SoftActorCriticOptions(), 3, space)
