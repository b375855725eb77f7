from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces

from seqwm.core.types import Spaces
from seqwm.data.arrivals import CrossingWindows, arrivals
from seqwm.data.store import TrajectoryStore
from seqwm.nn.latent_world import LatentWorld, WorldOptions, held_still
from seqwm.nn.observations import ObservationCodec, halvings
from seqwm.nn.rssm import RSSMOptions
from seqwm.testing import check_world_model
from tests.strategies import random_episode

EVERYTHING = Spaces(
    gym_spaces.Dict(
        {
            "camera": gym_spaces.Box(0, 255, (18, 16, 3), np.uint8),
            "speed": gym_spaces.Box(-np.inf, np.inf, (2,), np.float32),
            "room": gym_spaces.Discrete(5, start=1),
            "switches": gym_spaces.MultiDiscrete([2, 3]),
        }
    ),
    gym_spaces.Dict({"push": gym_spaces.Box(-2.0, 2.0, (2,), np.float32), "turn": gym_spaces.Discrete(3)}),
)
CELL = RSSMOptions(deterministic=16, stochastic=3, classes=4, hidden=8, blocks=4)
SMALL = WorldOptions(rssm=CELL, layers=1, width=16, depth=4)
V1 = WorldOptions(
    rssm=replace(CELL, classes=0, recurrence="gru", norm="none", activation="elu"),
    layers=1,
    width=16,
    depth=4,
    units="standardised",
    rewards="squared",
    free_nats=3.0,
    free_of="batch",
    representation_scale=1.0,
)


def store_of(spaces=EVERYTHING, lengths=(9, 3, 1, 6)):
    store = TrajectoryStore.create(None, spaces)
    for number, length in enumerate(lengths):
        store.append(random_episode(spaces, length, np.random.default_rng(number)))
    return store


def world_of(options=SMALL, spaces=EVERYTHING):
    torch.manual_seed(0)
    return LatentWorld(options, spaces.observation, spaces.action)


def rows_of(store, length=8, lanes=4):
    return arrivals(CrossingWindows(store, length + 1, lanes, seed=0).batch(0), context=1)


def observed(world, rows):
    lanes, length = rows.first.shape
    noise = world.rssm.noise(lanes, length, generator=torch.Generator().manual_seed(0))
    return world.observe(rows, world.rssm.initial(lanes), noise)[0]


@pytest.mark.parametrize("options", [SMALL, V1], ids=["v3", "v1"])
def test_a_latent_world_answers_the_contract_of_worlds(options):
    store = store_of()
    check_world_model(world_of(options), store.windows(5, 4, seed=1).batch(0), EVERYTHING)


def test_the_state_of_a_context_is_the_one_at_its_last_observation():
    store, world = store_of(lengths=(6,)), world_of()
    batch = store.windows(6, 1, seed=0).gather(np.array([0]), np.array([5]))
    state = world.encode(batch)
    rows = arrivals(batch)
    again = world.rssm.initial(1)
    embedded, actions = world.observations.encode(rows.observations), world.actions.features(rows.actions)
    for t in range(6):
        again = world.rssm.update(again, embedded[:, t], actions[:, t], rows.first[:, t], None)
    torch.testing.assert_close(state["deterministic"], again["deterministic"])
    torch.testing.assert_close(state["stochastic"], again["stochastic"])


def test_losses_are_those_of_the_heads_written_out():
    store, world = store_of(), world_of(replace(SMALL, rewards="squared", free_nats=0.0, reconstruction_scale=0.5))
    rows = rows_of(store)
    latents = observed(world, rows)
    found = world.losses(rows, latents)
    features = latents.features
    going = (~rows.terminated).double() * 0.997
    p = torch.sigmoid(world.continue_head(features)[..., 0].double())
    expected = -(going * p.log() + (1 - going) * (1 - p).log()).mean()
    torch.testing.assert_close(found["continue"].double(), expected)
    reward = world.reward_head(features)[..., 0]
    torch.testing.assert_close(found["reward"], 0.5 * ((reward - rows.rewards) ** 2).mean())
    kl = world.rssm.kl(latents.posterior, latents.prior).mean()
    torch.testing.assert_close(found["dynamics"], kl)
    torch.testing.assert_close(found["representation"], 0.1 * kl)
    torch.testing.assert_close(
        found["reconstruction"], 0.5 * world.observations.loss(features, rows.observations).mean()
    )


def test_free_nats_are_taken_off_each_row_or_off_the_mean():
    store = store_of()
    rows = rows_of(store)
    by_row = world_of(replace(SMALL, free_nats=0.5))
    latents = observed(by_row, rows)
    kl = by_row.rssm.kl(latents.posterior, latents.prior)
    assert bool((kl < 0.5).any())
    assert bool((kl > 0.5).any())
    torch.testing.assert_close(by_row.losses(rows, latents)["dynamics"], kl.clamp_min(0.5).mean())
    by_batch = world_of(replace(SMALL, free_nats=1e3, free_of="batch"))
    latents = observed(by_batch, rows)
    losses = by_batch.losses(rows, latents)
    assert float(losses["dynamics"].detach()) == 1e3
    assert torch.autograd.grad(losses["dynamics"], by_batch.rssm.prior_output.weight)[0].abs().sum() == 0


def test_the_gradient_of_a_loss_is_that_of_finite_differences():
    store = store_of(Spaces(gym_spaces.Box(-3, 3, (2,), np.float32), gym_spaces.Discrete(2)))
    spaces = store.spaces
    world = world_of(V1, spaces).double()
    rows = rows_of(store, 4, 2)
    rows = replace(rows, observations=rows.observations.double(), rewards=rows.rewards.double())
    noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = world.rssm.recurrence.gates.weight

    def loss():
        state = {name: tensor.double() for name, tensor in world.rssm.initial(2).items()}
        embedded = world.observations.encode(rows.observations)
        actions = world.actions.features(rows.actions).double()
        latents, _ = world.rssm.observe(embedded, actions, rows.first, state, noise)
        return sum(part for name, part in world.losses(rows, latents).items() if name in ("reconstruction", "reward"))

    (gradient,) = torch.autograd.grad(loss(), weight)
    with torch.no_grad():
        for place in ((0, 0), (5, 3), (20, 9)):
            before = float(weight[place])
            weight[place] = before + 1e-6
            high = float(loss())
            weight[place] = before - 1e-6
            low = float(loss())
            weight[place] = before
            assert (high - low) / 2e-6 == pytest.approx(float(gradient[place]), rel=1e-4, abs=1e-7)


def test_a_world_held_still_passes_gradients_on_and_takes_none():
    world = world_of()
    features = torch.randn(3, world.rssm.feature_size, requires_grad=True)
    with held_still(world):
        reward = world.discounts(features).sum()
    reward.backward()
    assert float(features.grad.abs().sum()) > 0
    assert all(p.grad is None and p.requires_grad for p in world.parameters())


def test_without_rewards_there_is_a_world_whose_rewards_are_zero():
    spaces = EVERYTHING
    store = TrajectoryStore.create(None, spaces, rewards=False)
    store.append(random_episode(spaces, 9, np.random.default_rng(0), rewards=False))
    world = world_of(replace(SMALL, rewards="none"))
    rows = rows_of(store)
    assert "reward" not in world.losses(rows, observed(world, rows))
    state = world.rssm.initial(2)
    action = {"push": torch.zeros(2, 2), "turn": torch.zeros(2, dtype=torch.int64)}
    step = world.step(state, action, None)
    assert step.reward.tolist() == [0.0, 0.0]


def test_ends_are_drawn_with_the_probability_that_the_head_gives_without_the_discount():
    world = world_of(replace(SMALL, discount=0.9))
    with torch.no_grad():
        world.continue_head.output.weight.zero_()
        world.continue_head.output.bias.fill_(float(torch.logit(torch.tensor(0.9 * 0.75))))
    lanes = 4000
    action = {"push": torch.zeros(lanes, 2), "turn": torch.zeros(lanes, dtype=torch.int64)}
    step = world.step(world.rssm.initial(lanes), action, torch.Generator().manual_seed(0))
    assert float(step.terminated.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert not bool(world.step(world.rssm.initial(lanes), action, None).terminated.any())


@pytest.mark.parametrize(("size", "expected"), [((64, 64), [(32, 32), (16, 16), (8, 8), (4, 4)]), ((9, 20), [(4, 10)])])
def test_images_are_halved_until_four_to_seven_pixels_are_left(size, expected):
    assert halvings(size) == expected


def test_a_codec_learns_to_give_back_what_it_was_shown():
    torch.manual_seed(0)
    codec = ObservationCodec(
        EVERYTHING.observation, 32, layers=1, width=32, depth=4, norm="rms", activation="silu", units="symlog"
    )
    bottleneck = torch.nn.Linear(codec.size, 32)
    shades = torch.tensor([40, 130, 220], dtype=torch.uint8)[:, None, None, None]
    seen = {
        "camera": shades.expand(3, 18, 16, 3),
        "speed": torch.tensor([[0.0, 1.0], [-20.0, 3.0], [5.0, -0.1]]),
        "room": torch.tensor([1, 3, 5]),
        "switches": torch.tensor([[0, 2], [1, 1], [0, 0]]),
    }
    optimiser = torch.optim.Adam([*codec.parameters(), *bottleneck.parameters()], lr=1e-2)
    losses = []
    for _ in range(120):
        loss = codec.loss(bottleneck(codec.encode(seen)), seen).mean()
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.02 * losses[0]
    with torch.no_grad():
        given = codec.decode(bottleneck(codec.encode(seen)))
    assert set(given) == set(seen)
    assert torch.equal(given["room"], seen["room"])
    assert torch.equal(given["switches"], seen["switches"])
    torch.testing.assert_close(given["speed"], seen["speed"], atol=0.2, rtol=0.2)
    assert given["camera"].dtype == torch.uint8
    assert float((given["camera"].float() - seen["camera"].float()).abs().mean()) < 10


def test_an_error_of_a_frame_weighs_the_same_whatever_the_size_of_the_frame():
    kinds = {"layers": 1, "width": 8, "depth": 4, "norm": "rms", "activation": "silu", "units": "symlog"}
    found = []
    for shape in ((64, 64, 3), (16, 16, 1), (18, 16, 3)):
        codec = ObservationCodec(gym_spaces.Box(0, 255, shape, np.uint8), 5, **kinds)
        codec.projectors[0].forward = lambda features, shape=shape: torch.full(shape, 0.5)
        found.append(float(codec.loss(torch.zeros(5), torch.full(shape, 51, dtype=torch.uint8))))
    assert found == pytest.approx([64 * 64 * 3 * (0.5 - 0.2) ** 2] * 3)
