"""Diffusion forcing: the cache, alignment, video without actions, and the contract of a world."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from seqwm.core.errors import CheckpointError, SpaceError
from seqwm.evaluation.video_metrics import clips, delta_psnr, dreamt, drift, one_step
from seqwm.methods.diffusion_forcing import _CLEAN, _PICTURE, DiffusionForcing, Options, _unpacked, build
from seqwm.nn.diffusion import SIGMA_DATA, precondition
from seqwm.nn.frame_autoencoder import LatentOptions
from seqwm.testing import check_world_model
from seqwm.training.options import TrainOptions
from seqwm.training.supervised import SupervisedLearner
from tests.fakes.frames import SHADES, moving_logs, shaded_logs

SMALL = Options(context=6, span=3, patch=4, channels=16, layers=2, width=32, heads=2)
LATENT = dataclasses.replace(SMALL, patch=2, latents=LatentOptions(factor=2, channels=4, width=8))


def perturbed(options, store):
    """A model with weights that do something."""
    torch.manual_seed(0)
    model = build(options, store)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("options", [SMALL, dataclasses.replace(SMALL, play_noise=0.2), LATENT])
def test_it_keeps_the_contract_of_a_world(options):
    store = shaded_logs()
    model = perturbed(options, store)
    context = store.windows(model.window_length, 6).batch(0)
    assert not context.valid.all()
    check_world_model(model, context, store.spaces)


def test_a_dream_with_the_cache_equals_passes_over_all_frames_so_far():
    store = shaded_logs()
    model = perturbed(SMALL, store)
    context = store.windows(model.window_length, 2).gather(np.array([0, 1]), np.array([5, 5]))
    state = model.encode(context)
    frames = context.observations.movedim(-1, -3).float() / 127.5 - 1
    taken = torch.nn.functional.one_hot(context.actions[:, :-1], SHADES).float()
    led = torch.cat((torch.zeros(2, 1, SHADES), taken), 1)
    known = torch.arange(6).expand(2, 6) > 0
    for t in range(5):
        action = torch.tensor([t % SHADES, (t + 1) % SHADES])
        led = torch.cat((led, torch.nn.functional.one_hot(action, SHADES).float()[:, None]), 1)
        known = torch.cat((known, torch.ones(2, 1, dtype=torch.bool)), 1)
        noisy = torch.cat((frames, torch.randn(2, 1, 3, 8, 8)), 1)
        sigma = torch.full(known.shape, _CLEAN)
        sigma[:, -1] = 1.5
        whole = model(noisy, sigma, led, known)
        cached = model(noisy[:, -1:], sigma[:, -1:], led[:, -1:], known[:, -1:], _unpacked(state))
        torch.testing.assert_close(cached[:, 0], whole[:, -1], rtol=1e-4, atol=1e-4)
        state = model.step(state, action, torch.Generator().manual_seed(t)).state
        drawn = model.decode(state)[:, None].movedim(-1, -3).float() / 127.5 - 1
        frames = torch.cat((frames, drawn), 1)


def test_every_frame_has_a_noise_level_of_its_own_and_padding_is_not_learned_from():
    store = shaded_logs()
    model = perturbed(SMALL, store)
    batch = store.windows(6, 3, following=True).gather(np.array([0, 1, 2]), np.array([2, 9, 0]))
    torch.manual_seed(3)
    loss, _ = model.loss(batch)
    other = batch.observations.clone()
    other[~batch.valid] = 255
    torch.manual_seed(3)
    again, _ = model.loss(dataclasses.replace(batch, observations=other))
    torch.testing.assert_close(loss, again)
    noisy = torch.randn(1, 3, 3, 8, 8)
    inputs = torch.zeros(1, 3, SHADES), torch.zeros(1, 3, dtype=torch.bool)
    one = model(noisy, torch.tensor([[0.1, 1.0, 1.0]]), *inputs)
    two = model(noisy, torch.tensor([[0.1, 1.0, 3.0]]), *inputs)
    torch.testing.assert_close(one[:, :2], two[:, :2])
    assert not torch.allclose(one[:, 2], two[:, 2])


@pytest.mark.parametrize(("before", "sigma"), [(0.01, 3.0), (0.2, 0.3), (0.2, 8.0), (5.0, 0.1)])
def test_input_and_target_have_unit_variance_whatever_is_known_of_the_frame_before(before, sigma):
    model = build(SMALL, shaded_logs())
    generator = torch.Generator().manual_seed(0)

    def normal(deviation):
        return deviation * torch.randn(2000, 1, 3, 8, 8, generator=generator)

    first = normal(SIGMA_DATA)
    frames = torch.cat((first, first + normal(model.apart.item())), 1)
    noisy = frames + torch.cat((normal(before), normal(sigma)), 1)
    levels = torch.tensor([before, sigma]).expand(2000, 2)
    base, deviation, _ = model._prior(noisy, levels, model.empty(2000, "cpu"))
    c = precondition(levels[:, 1, None, None, None], deviation[:, 1, None, None, None])
    told, clean = (x[:, 1] - base[:, 1] for x in (noisy, frames))
    assert (c.into * told).var().item() == pytest.approx(1.0, abs=0.02)
    assert ((clean - c.skip * told) / c.out).var().item() == pytest.approx(1.0, abs=0.02)


def test_it_begins_from_a_model_of_video_alone_and_refuses_one_of_another_size(tmp_path):
    silent = shaded_logs(episodes=5, actions=False, rewards=False)
    first = perturbed(SMALL, silent)
    first.save_pretrained(tmp_path / "model")
    model = build(dataclasses.replace(SMALL, begin_from=str(tmp_path)), shaded_logs(episodes=5, seed=1))
    torch.testing.assert_close(model.network.state_dict(), first.network.state_dict())
    assert model.embed_action.weight.shape[1] == SHADES + 1
    noisy, sigma, known = torch.randn(2, 3, 3, 8, 8), torch.full((2, 3), 0.7), torch.ones(2, 3, dtype=torch.bool)
    torch.testing.assert_close(
        model(noisy, sigma, torch.randn(2, 3, SHADES), known), first(noisy, sigma, torch.zeros(2, 3, 0), ~known)
    )
    assert model.apart == first.apart != build(SMALL, shaded_logs(episodes=5, seed=1)).apart
    with pytest.raises(CheckpointError, match=r"begin_from: .*expected \[4, 48\]"):
        build(dataclasses.replace(SMALL, width=48, begin_from=str(tmp_path)), shaded_logs(episodes=5, seed=1))
    with pytest.raises(CheckpointError, match="holds no model of diffusion_forcing"):
        build(dataclasses.replace(SMALL, begin_from=str(tmp_path / "nowhere")), shaded_logs(episodes=5))


def test_video_without_actions_or_rewards_gives_a_loss_and_a_dream():
    store = shaded_logs(episodes=5, actions=False, rewards=False)
    model = perturbed(SMALL, store)
    batch = store.windows(6, 4, following=True).batch(0)
    loss, figures = model.loss(batch)
    loss.backward()
    assert set(figures) == {"loss_frame", "loss_end"}
    step = model.step(model.encode(batch), torch.zeros(4, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert model.decode(step.state).shape == (4, 8, 8, 3)
    assert step.reward.abs().sum() == 0


def test_latents_are_learned_from_frames_alone_and_how_far_apart_they_are_is_measured():
    store = shaded_logs()
    model = perturbed(LATENT, store).train()
    batch = store.windows(6, 16, following=True).batch(0)
    torch.manual_seed(1)
    loss, figures = model.loss(batch)
    assert set(figures) == {"loss_picture", "loss_frame", "loss_end", "loss_reward"}
    learned = torch.autograd.grad(loss, list(model.autoencoder.parameters()))
    torch.manual_seed(1)
    latents, missed = model.autoencoder(batch.observations.movedim(-1, -3).float() / 127.5 - 1)
    picture = _PICTURE * missed[batch.valid].mean()
    torch.testing.assert_close(learned, torch.autograd.grad(picture, list(model.autoencoder.parameters())))
    for _ in range(600):
        model._measure(latents, batch.valid)
    changes = latents.diff(dim=1).square().mean((2, 3, 4))[batch.valid[:, 1:]]
    assert model.apart.item() == pytest.approx(changes.mean().sqrt().item(), rel=1e-3)


@pytest.mark.parametrize("options", [SMALL, LATENT])
def test_saved_and_loaded_it_dreams_the_same(options, tmp_path):
    store = shaded_logs()
    model = perturbed(options, store)
    model.save_pretrained(tmp_path)
    loaded = DiffusionForcing.from_pretrained(tmp_path)
    batch = store.windows(model.window_length, 4).batch(0)
    actions = torch.randint(0, SHADES, (4, 3), generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(dreamt(model, batch, actions), dreamt(loaded, batch, actions))


def test_frames_that_patches_do_not_divide_are_refused():
    with pytest.raises(SpaceError, match="needs sides that are multiples of 3"):
        build(dataclasses.replace(SMALL, patch=3), shaded_logs(episodes=2))


@pytest.mark.learning
def test_squares_are_drawn_where_actions_move_them_and_dreams_of_ten_steps_are_nearer_than_the_first_frame():
    store, held_out = moving_logs(episodes=400), moving_logs(episodes=64, seed=9)
    torch.manual_seed(0)
    model = build(Options(context=5, channels=32, layers=2, width=64, heads=2), store)
    windows = store.windows(model.window_length, 8, 0, following=True)
    settings = {"learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 30, "ema": 0.98, "precision": "bf16"}
    learner = SupervisedLearner(model, windows, TrainOptions(steps=300, batch_size=8, **settings), 0)
    for step in range(300):
        learner.update(step)
    model = learner.trained()
    given = clips(held_out, model.window_length, 10, 64)
    dream = dreamt(model, given.context, given.actions)
    figures, (along, copied) = one_step(given.frames, dream), drift(given.frames, dream)
    assert figures.psnr > figures.copied + 3
    assert figures.moving_psnr > figures.moving_copied + 4
    assert delta_psnr(model, given) > 3
    assert along[-1] > copied[-1] + 1
