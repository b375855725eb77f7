from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces

from seqwm.control.actor_critic import ActorCritic, ActorCriticOptions, lambda_returns, replay_returns
from seqwm.core.errors import SpaceError
from seqwm.data.arrivals import Arrivals
from seqwm.nn.latent_world import LatentWorld, WorldOptions
from seqwm.nn.rssm import RSSMOptions

BOX = gym_spaces.Box(-np.inf, np.inf, (2,), np.float32)
DISCRETE, CONTINUOUS = gym_spaces.Discrete(3), gym_spaces.Box(-1.0, 1.0, (2,), np.float32)
WORLD = WorldOptions(
    rssm=RSSMOptions(deterministic=16, stochastic=3, classes=4, hidden=8, blocks=4), layers=1, width=16
)
V3 = ActorCriticOptions(layers=1, width=16, horizon=5)
V2 = replace(V3, slow="targets", slow_rate=1.0, slow_every=10, values="squared", normalise_returns=False)
V1 = replace(V2, slow="none", dynamics_share=1.0, entropy=0.0, continuous="tanh_normal")


def pair(options, actions=DISCRETE):
    torch.manual_seed(0)
    world = LatentWorld(WORLD, BOX, actions)
    learner = ActorCritic(options, world.rssm.feature_size, actions)
    with torch.no_grad():  # heads that begin at zero say nothing; bins far from zero would say millions
        for output in (world.reward_head.output, learner.critic.output):
            output.weight.normal_(std=0.3)
            if len(output.bias) > 1:
                output.bias.copy_(-(torch.arange(255) - 127.0).abs())
        for p in learner.actor.output.parameters():
            p.normal_(std=0.5)
    return world, learner


def start_of(world, lanes=6):
    generator = torch.Generator().manual_seed(1)
    state = world.rssm.initial(lanes)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}


def brute_force(rewards, discounts, values, lambda_):
    """The lambda-return as the weighted mean of n-step returns, each summed term by term."""
    horizon = len(rewards)
    out = np.zeros(horizon)
    for t in range(horizon):

        def n_step(n, t=t):
            total, discount = 0.0, 1.0
            for k in range(t, t + n):
                total += discount * rewards[k]
                discount *= discounts[k]
            return total + discount * values[t + n - 1]

        longest = horizon - t
        out[t] = sum((1 - lambda_) * lambda_ ** (n - 1) * n_step(n) for n in range(1, longest))
        out[t] += lambda_ ** (longest - 1) * n_step(longest)
    return out


@pytest.mark.parametrize("lambda_", [0.0, 0.6, 0.95, 1.0])
def test_lambda_returns_are_the_weighted_mean_of_all_n_step_returns(lambda_):
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=8), rng.normal(size=8)
    discounts = rng.uniform(0, 1, 8)
    discounts[3] = 0.0
    found = lambda_returns(*(torch.from_numpy(x)[:, None] for x in (rewards, discounts, values)), lambda_)
    np.testing.assert_allclose(found[:, 0].numpy(), brute_force(rewards, discounts, values, lambda_), rtol=1e-12)


def logged(rewards, terminated=(), last=()):
    length = len(rewards)
    flags = {name: torch.zeros(1, length, dtype=torch.bool) for name in ("first", "terminated", "last")}
    for place in terminated:
        flags["terminated"][0, place] = flags["last"][0, place] = True
    for place in last:
        flags["last"][0, place] = True
    valid = torch.ones(1, length, dtype=torch.bool)
    return Arrivals(torch.zeros(1, length, 2), torch.zeros(1, length), torch.tensor([rewards]), valid=valid, **flags)


def test_returns_of_logged_rows_end_with_a_termination_and_bootstrap_at_any_other_end():
    imagined = torch.tensor([[10.0, 20.0, 30.0, 40.0, 50.0]])
    rewards = [0.0, 1.0, 2.0, 3.0, 4.0]
    whole = replay_returns(logged(rewards), imagined, 0.5, 1.0)
    # r_{t+1} + ... with the last row's own return as bootstrap
    torch.testing.assert_close(
        whole, torch.tensor([[1 + 0.5 * (2 + 0.5 * (3 + 0.5 * 29)), 2 + 0.5 * 17.5, 17.5, 29.0]])
    )
    ended = replay_returns(logged(rewards, terminated=[2]), imagined, 0.5, 1.0)
    torch.testing.assert_close(ended[0, :2], torch.tensor([1 + 0.5 * 2.0, 2.0]))
    cut = replay_returns(logged(rewards, last=[2]), imagined, 0.5, 1.0)
    torch.testing.assert_close(cut[0, :2], torch.tensor([1 + 0.5 * (2 + 0.5 * 30), 2 + 0.5 * 30.0]))
    mixed = replay_returns(logged(rewards), imagined, 0.5, 0.0)
    torch.testing.assert_close(mixed, torch.tensor([[1 + 10.0, 2 + 15.0, 3 + 20.0, 4 + 25.0]]))


@pytest.mark.parametrize("actions", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("options", [V1, V2, V3], ids=["v1", "v2", "v3"])
def test_the_actors_loss_moves_the_actor_alone(options, actions):
    world, learner = pair(options, actions)
    losses = learner.losses(world, start_of(world), torch.Generator().manual_seed(2))
    losses.actor.backward()
    assert float(sum(p.grad.abs().sum() for p in learner.actor.parameters())) > 0
    assert all(p.grad is None for p in [*world.parameters(), *learner.critic.parameters()])
    learner.zero_grad()
    losses.critic.backward()
    assert all(p.grad is None for p in [*world.parameters(), *learner.actor.parameters()])


@pytest.mark.parametrize(("options", "through"), [(V1, True), (V2, False), (V3, False)], ids=["v1", "v2", "v3"])
def test_gradients_pass_through_the_dynamics_in_v1_and_not_in_reinforce(options, through):
    world, learner = pair(replace(options, entropy=0.0))
    learner.losses(world, start_of(world), torch.Generator().manual_seed(2)).actor.backward()
    before = [p.grad.clone() for p in learner.actor.parameters()]
    learner.zero_grad()
    step = world.rssm.step
    world.rssm.step = lambda state, action, noise: step(state, action.detach(), noise)
    learner.losses(world, start_of(world), torch.Generator().manual_seed(2)).actor.backward()
    after = [p.grad for p in learner.actor.parameters()]
    if through:
        assert all(float(gradient.abs().sum()) == 0.0 for gradient in after)
    else:
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_the_loss_of_v1_is_minus_the_weighted_mean_of_returns():
    world, learner = pair(V1)
    losses = learner.losses(world, start_of(world), torch.Generator().manual_seed(2))
    dream = learner.dream(world, start_of(world), torch.Generator().manual_seed(2))
    weights = world.discounts(dream.features).cumprod(0)[:-1]
    torch.testing.assert_close(losses.actor, -(weights * losses.returns).mean())


def test_the_gradient_through_the_dynamics_is_that_of_finite_differences():
    # In a world of normal states, which is smooth, with an actor that acts alike everywhere: states that an actor sees
    # are not differentiated, nor are the weights of states, so ends are as likely everywhere, too.
    smooth = replace(WORLD, rssm=replace(WORLD.rssm, classes=0, recurrence="gru"), rewards="squared")
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        world = LatentWorld(smooth, BOX, CONTINUOUS)
        learner = ActorCritic(V1, world.rssm.feature_size, CONTINUOUS)
        bias = learner.actor.output.bias
        with torch.no_grad():
            world.continue_head.output.weight.zero_()
            learner.actor.output.weight.zero_()
            bias[2:] = -5.0

        def loss():
            return learner.losses(world, start_of(world), torch.Generator().manual_seed(3)).actor

        (gradient,) = torch.autograd.grad(loss(), bias)
        with torch.no_grad():
            for place in range(4):
                before = float(bias[place])
                bias[place] = before + 1e-6
                high = float(loss())
                bias[place] = before - 1e-6
                low = float(loss())
                bias[place] = before
                assert (high - low) / 2e-6 == pytest.approx(float(gradient[place]), rel=1e-4, abs=1e-8)
    finally:
        torch.set_default_dtype(torch.float32)


def test_reinforce_is_the_score_times_the_advantage_over_the_range_of_returns():
    world, learner = pair(replace(V3, entropy=0.0))
    learner.low.fill_(-3.0)
    learner.high.fill_(4.0)
    learner.eval()
    found = learner.losses(world, start_of(world), torch.Generator().manual_seed(2))
    with torch.no_grad():
        dream = learner.dream(world, start_of(world), torch.Generator().manual_seed(2))
        weights = world.discounts(dream.features).cumprod(0)[:-1]
        values = learner.value(learner.critic(dream.features))
        rewards, discounts = world.reward(dream.features[1:]), world.discounts(dream.features[1:])
        returns = lambda_returns(rewards, discounts, values[1:], 0.95)
    torch.testing.assert_close(found.returns, returns)
    chosen = learner.policy(dream.features[:-1])
    expected = -(weights * chosen.log_density(dream.actions) * (returns - values[:-1]) / 7.0).mean()
    torch.testing.assert_close(found.actor, expected)
    mine = torch.autograd.grad(found.actor, list(learner.actor.parameters()))
    theirs = torch.autograd.grad(expected, list(learner.actor.parameters()))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_is_imagined_behind_an_end_counts_nothing():
    world, learner = pair(V3)
    with torch.no_grad():
        world.continue_head.output.weight.zero_()
        world.continue_head.output.bias.fill_(-40.0)
    losses = learner.losses(world, start_of(world), torch.Generator().manual_seed(2))
    assert float(losses.actor.detach().abs()) < 1e-10
    assert float(losses.critic.detach().abs()) < 1e-10


def test_the_range_of_returns_follows_their_percentiles_and_divides_only_when_above_one():
    world, learner = pair(V3)
    losses = learner.losses(world, start_of(world), torch.Generator().manual_seed(2))
    low, high = torch.quantile(losses.returns.flatten(), torch.tensor([0.05, 0.95]))
    torch.testing.assert_close(learner.low, 0.01 * low)
    torch.testing.assert_close(learner.high, 0.01 * high)
    assert float(learner._scale()) == 1.0


def test_the_slow_critic_follows_by_a_share_or_is_renewed_now_and_then():
    for options, steps in ((V3, range(1)), (V2, range(10))):
        _, learner = pair(options)
        before = learner.slow.output.bias.clone()
        fast = learner.critic.output.bias.detach().clone()
        for step in steps:
            if options is V2:
                torch.testing.assert_close(learner.slow.output.bias, before)
            learner.follow(step)
        expected = torch.lerp(before, fast, options.slow_rate)
        torch.testing.assert_close(learner.slow.output.bias, expected)


def test_targets_of_v2_come_from_the_slow_copy_and_those_of_v3_from_the_critic_itself():
    for options, target in ((V2, "slow"), (V3, "critic")):
        world, learner = pair(options)
        found = learner.losses(world, start_of(world), torch.Generator().manual_seed(2)).returns
        with torch.no_grad():
            dream = learner.dream(world, start_of(world), torch.Generator().manual_seed(2))
            values = learner.value(getattr(learner, target)(dream.features))
            rewards, discounts = world.reward(dream.features[1:]), world.discounts(dream.features[1:])
        torch.testing.assert_close(found, lambda_returns(rewards, discounts, values[1:], 0.95))


def test_the_critics_loss_on_logged_rows_reaches_the_world_and_leaves_out_last_rows():
    _, learner = pair(V3)
    features = torch.randn(1, 4, 28, requires_grad=True)
    rows = logged([0.0, 1.0, 2.0, 3.0], last=[1])
    learner.replay_loss(features, rows, torch.zeros(1, 4), 0.9).backward()
    reached = features.grad.abs().sum(-1)[0]
    assert bool((reached[[0, 2]] > 0).all())
    assert reached[[1, 3]].tolist() == [0.0, 0.0]


def test_imitation_is_minus_the_log_density_of_the_actions_that_logged_rows_led_to_others_of_their_episode_by():
    _, learner = pair(V3, CONTINUOUS)
    features = torch.randn(1, 4, 28, requires_grad=True)
    led = torch.rand(1, 4, 2) * 2 - 1  # led[:, t] was chosen in row t - 1
    loss = learner.imitation_loss(features, logged([0.0, 1.0, 2.0, 3.0], last=[1]), led)
    means, deviations = learner.policy(features).parts[0].mean, learner.policy(features).parts[0].std
    normal = torch.distributions.Normal(means, deviations)
    densities = [normal.log_prob(led[:, [t + 1]])[0, t].sum() for t in (0, 2)]  # none of row 1, which ends its episode
    torch.testing.assert_close(loss, -(densities[0] + densities[1]) / 3)
    loss.backward()
    assert features.grad is None
    assert all(p.grad is None for p in learner.critic.parameters())
    assert float(sum(p.grad.abs().sum() for p in learner.actor.parameters())) > 0


def test_actions_of_several_kinds_are_sampled_and_weighed_part_by_part():
    space = gym_spaces.Dict({"go": CONTINUOUS, "which": gym_spaces.MultiDiscrete([2, 3])})
    torch.manual_seed(0)
    learner = ActorCritic(V3, 28, space)
    chosen = learner.policy(torch.randn(5, 28))
    noise = chosen.noise(torch.Generator().manual_seed(0))
    assert noise.shape == (5, 4)
    action = chosen.sample(noise)
    assert action.shape == (5, 7)
    assert action[:, 2:4].sum(-1).tolist() == [1.0] * 5
    assert action[:, 4:].sum(-1).tolist() == [1.0] * 5
    parts = [part.log_density(own) for part, own in zip(chosen.parts, action.split((2, 2, 3), -1), strict=True)]
    torch.testing.assert_close(chosen.log_density(action), parts[0] + parts[1] + parts[2])


def test_actions_without_bounds_are_refused_with_the_mend():
    with pytest.raises(SpaceError, match="expected a Box with finite bounds"):
        ActorCritic(V3, 28, gym_spaces.Box(-np.inf, np.inf, (2,), np.float32))
