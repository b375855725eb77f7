"""Video diffusion: alignment, samplers, remedies, the contract of a world, and learning a world of sprites."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler
from gymnasium import spaces

from seqwm.control.collect import collect
from seqwm.control.dream import DreamEnv
from seqwm.core.errors import SpaceError
from seqwm.core.types import Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.envs.sprites import blocked_places, moved, sprite_places, wall_tiles
from seqwm.evaluation.video_metrics import clips, dreamt, obedience, one_step
from seqwm.methods.video_diffusion import Options, VideoDiffusion, build
from seqwm.nn.diffusion import SIGMA_DATA, NoiseOptions
from seqwm.nn.frames import Recent, end_weight, following_of
from seqwm.testing import check_world_model
from seqwm.training.options import TrainOptions
from seqwm.training.supervised import SupervisedLearner
from tests.fakes.frames import SHADES, shaded_logs

SMALL = Options(channels=(16,), width=32, unshuffle=2)
ALL_REMEDIES = dataclasses.replace(SMALL, context_noise=0.3, play_noise=0.1, rollout=3)


def perturbed(options, store, deviation=0.05):
    """A model with weights that do something."""
    torch.manual_seed(0)
    model = build(options, store)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(deviation * torch.randn_like(parameter))
    return model.eval()


def trained(options, store, steps, rate=3e-3, batch_size=32):
    torch.manual_seed(0)
    model = build(options, store)
    train = TrainOptions(steps=steps, batch_size=batch_size, learning_rate=rate, schedule="cosine", warmup_steps=20)
    learner = SupervisedLearner(model, store.windows(model.window_length, batch_size, 0, following=True), train, 0)
    for step in range(steps):
        learner.update(step)
    return learner.trained()


@pytest.mark.parametrize("options", [SMALL, ALL_REMEDIES, dataclasses.replace(SMALL, predict="frame", heun=True)])
def test_it_keeps_the_contract_of_a_world(options):
    store = shaded_logs()
    model = perturbed(options, store, 0.02)  # wilder weights make of a rounding error another one of 256 levels
    context = store.windows(model.window_length, 6).batch(0)
    assert not context.valid.all()
    check_world_model(model, context, store.spaces)


def test_the_state_holds_the_last_frames_with_copies_before_the_first_and_only_past_actions():
    store = shaded_logs()
    model = perturbed(dataclasses.replace(SMALL, context=3), store)
    windows = store.windows(model.window_length, 2)
    state = model.encode(windows.gather(np.array([0, 1]), np.array([1, 7])))
    first, second = (store.episode(number) for number in (0, 1))
    np.testing.assert_array_equal(state["frames"][0], first.observations[[0, 0, 1]])
    np.testing.assert_array_equal(state["frames"][1], second.observations[5:8])
    assert state["known"].tolist() == [[False, True, False], [True, True, False]]
    assert state["actions"][0, 1].argmax() == first.actions[0]
    assert state["actions"][1, :2].argmax(-1).tolist() == second.actions[5:7].tolist()
    assert state["actions"][:, 2].abs().sum() == 0
    torch.testing.assert_close(model.decode(state)[1], torch.from_numpy(second.observations[7]))


def test_a_step_equals_diffusers_sampler_with_the_same_noise_where_levels_are_fine():
    store = shaded_logs()
    model = perturbed(dataclasses.replace(SMALL, steps=4), store)
    state = model.encode(store.windows(2, 5).batch(0))
    # In the middle of their range, or ours would cut at its bounds what goes beyond them between steps.
    state["frames"] = 128 + (state["frames"] - 128) // 4
    action = torch.randint(0, SHADES, (5,), generator=torch.Generator().manual_seed(0))
    drawn = model.step(state, action, torch.Generator().manual_seed(7)).state["frames"][:, -1]

    noise = NoiseOptions(**model.config.noise)
    scheduler = EDMEulerScheduler(
        sigma_min=noise.sigma_min, sigma_max=noise.sigma_max, sigma_data=SIGMA_DATA, rho=noise.rho
    )
    scheduler.set_timesteps(4)
    frames = state["frames"].movedim(-1, -3).float() / 127.5 - 1
    features = torch.nn.functional.one_hot(action, SHADES).float()[:, None]
    actions = torch.cat((state["actions"][:, :-1], features), 1)
    known = state["known"].clone()
    known[:, -1] = True
    x = torch.empty_like(frames[:, 0]).normal_(generator=torch.Generator().manual_seed(7)) * scheduler.init_noise_sigma
    for number, time in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[number].expand(5)
        said = model(scheduler.scale_model_input(x, time), sigma, frames, actions, known, torch.zeros(5))
        x = scheduler.step(said, time, x).prev_sample
    theirs = ((frames[:, -1] + model.config.scale * x + 1) * 127.5).clamp(0, 255).movedim(1, -1)
    # Ours keeps estimates at the 256 levels between steps, which moves the last one by less than a level or two.
    assert (drawn.float() - theirs).abs().max() < 2.0


def test_given_changes_the_network_sees_how_frames_became_the_next_in_units_of_what_is_diffused():
    model = perturbed(dataclasses.replace(SMALL, context=3, given="changes"), shaded_logs())
    noisy, frames = torch.randn(2, 3, 8, 8), torch.rand(2, 3, 3, 8, 8) * 2 - 1
    seen = []
    model.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(noisy, torch.ones(2), frames, torch.zeros(2, 3, SHADES), torch.zeros(2, 3).bool(), torch.zeros(2))
    first, second, last = frames.unbind(1)
    changes = [(after - before) / model.config.scale for before, after in ((first, second), (second, last))]
    torch.testing.assert_close(seen, [torch.cat((noisy, *changes, last), 1)])


def test_noise_on_the_context_is_told_and_changes_what_is_drawn():
    store = shaded_logs()
    model = perturbed(ALL_REMEDIES, store)
    batch = store.windows(5, 4).batch(0)
    state = model.encode(batch)
    actions = torch.cat((state["actions"], state["actions"]), 0)[:4]
    frames = torch.zeros(4, 2, 3, 8, 8)
    inputs = torch.randn(4, 3, 8, 8), torch.ones(4), frames, actions, state["known"]
    quiet, loud = (model(*inputs, torch.full((4,), level)) for level in (0.0, 0.3))
    assert (quiet - loud).abs().max() > 1e-4
    one, other = (
        model.step(state, torch.zeros(4, dtype=torch.int64), torch.Generator().manual_seed(s)) for s in (1, 2)
    )
    assert not torch.equal(one.state["frames"], other.state["frames"])


def test_rolling_out_in_training_draws_from_the_models_own_frames():
    store = shaded_logs()
    torch.manual_seed(0)
    model = build(dataclasses.replace(SMALL, rollout=3), store)
    seen = []
    model._denoising_loss = lambda target, given, actions, known: seen.append(given) or target.mean((1, 2, 3))
    batch = store.windows(model.window_length, 4, following=True).gather(np.arange(4), np.full(4, 8))
    model.loss(batch)
    true = batch.observations.movedim(-1, -3).float() / 127.5 - 1
    assert [given.shape[1] for given in seen] == [2, 2, 2]
    torch.testing.assert_close(seen[0], true[:, 0:2])
    torch.testing.assert_close(seen[1][:, 0], true[:, 1])
    assert (seen[1][:, 1] - true[:, 2]).abs().max() > 0.1
    torch.testing.assert_close(seen[1][:, 1], seen[2][:, 0])


def test_what_is_diffused_has_the_deviation_that_preconditioning_takes_for_granted():
    store = collect("seqwm/Sprite-v0", None, 2000, None, options={"pixels": 16}, progress=False)
    model = build(SMALL, store)
    frames = store.windows(2, 2000, 5).batch(0)
    pairs = frames.observations[frames.valid.all(1)].float() / 127.5
    change = (pairs[:, 1] - pairs[:, 0]) / model.config.scale
    assert change.std().item() == pytest.approx(SIGMA_DATA, rel=0.05)


def test_saved_and_loaded_it_dreams_the_same(tmp_path):
    store = shaded_logs()
    model = perturbed(ALL_REMEDIES, store)
    model.save_pretrained(tmp_path)
    loaded = VideoDiffusion.from_pretrained(tmp_path)
    batch = store.windows(model.window_length, 4).batch(0)
    actions = torch.randint(0, SHADES, (4, 3), generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(dreamt(model, batch, actions), dreamt(loaded, batch, actions))


def test_data_it_cannot_learn_from_is_refused_by_name():
    with pytest.raises(SpaceError, match="the data has no actions"):
        build(SMALL, shaded_logs(episodes=2, actions=False))
    with pytest.raises(SpaceError, match="needs sides that are multiples of 16"):
        build(dataclasses.replace(SMALL, channels=(16, 16, 16, 16)), shaded_logs(episodes=2))
    vectors = TrajectoryStore.create(None, Spaces(spaces.Box(-1, 1, (3,)), spaces.Discrete(2)))
    with pytest.raises(SpaceError, match="expects one image"):
        VideoDiffusion(
            {"type": "Box", "dtype": "float32", "shape": [3], "low": -1.0, "high": 1.0},
            {"type": "Discrete", "dtype": "int64", "start": 0, "n": 2},
        )
    assert len(vectors) == 0
    with pytest.raises(ValueError, match="ends: found 1"):
        dataclasses.replace(SMALL, ends=1)
    with pytest.raises(ValueError, match="play_noise: found"):
        dataclasses.replace(SMALL, play_noise=0.1)


def test_the_frame_that_an_episode_ends_with_is_drawn_and_its_outcome_read_in_training():
    store = shaded_logs()
    torch.manual_seed(0)
    model = build(SMALL, store)
    drawn = []
    model._denoising_loss = lambda target, given, actions, known: drawn.append(target) or target.mean((1, 2, 3))
    model.outcome.losses = lambda recent, batch, following: drawn.append(following) or {}
    number = int(np.flatnonzero(store.terminated)[0])
    last = np.array([store.lengths[number] - 1])
    model.loss(store.windows(model.window_length, 1, following=True).gather(np.array([number]), last))
    final = torch.from_numpy(store.episode(number).observations[-1:]).movedim(-1, -3).float() / 127.5 - 1
    assert [torch.equal(frame, final) for frame in drawn] == [True, True]
    with pytest.raises(ValueError, match="following=True"):
        model.loss(store.windows(model.window_length, 1).batch(0))


def test_ends_that_are_drawn_more_often_weigh_as_much_less():
    store = shaded_logs(episodes=60)
    windows, share = store.windows(1, 1 << 16, ends=0.4), store.rows / len(store)
    episodes, steps = windows.drawn(0)
    weight = np.where(steps == store.lengths[episodes] - 1, end_weight(0.4, share), 1.0)
    at_end = weight[steps == store.lengths[episodes] - 1].sum() / weight.sum()
    assert at_end == pytest.approx(len(store) / store.rows, rel=0.02)
    model = build(dataclasses.replace(SMALL, ends=0.4), store)
    assert model.outcome.end_weight == pytest.approx(end_weight(0.4, share))
    batch = store.windows(model.window_length, 64, following=True, ends=0.4).batch(0)
    with torch.no_grad():
        model.outcome.said.bias[1] = 1.0  # the same logit everywhere: its loss is then known
    weight = torch.where((batch.terminated | batch.truncated).any(1), model.outcome.end_weight, 1.0)
    wanted = torch.where(batch.terminated.any(1), np.log1p(np.exp(-1.0)), np.log1p(np.exp(1.0)))
    found = model.outcome.losses(Recent.of(batch, "", model.actions, 2), batch, following_of(batch, ""))["end"]
    torch.testing.assert_close(found, ((weight * wanted).sum() / weight.sum()).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.learning
def test_where_the_next_frame_is_the_action_alone_the_action_is_not_one_step_off():
    store = shaded_logs(episodes=100)
    model = trained(SMALL, store, 400)
    held_out = shaded_logs(episodes=30, seed=1)
    given = clips(held_out, model.window_length, 4, 30)
    dream = dreamt(model, given.context, given.actions)
    shades = np.rint((dream[:, 1:].mean((2, 3, 4)) - 40) / 50)
    assert (shades == given.actions.numpy()).mean() > 0.95
    step = model.step(model.encode(given.context), given.actions[:, 0], None)
    assert (step.reward - given.actions[:, 0]).abs().mean() < 0.2
    ending = torch.full((30,), SHADES - 1)
    assert model.step(model.encode(given.context), ending, None).terminated.float().mean() > 0.9
    assert model.step(model.encode(given.context), ending * 0, None).terminated.float().mean() < 0.1


def expected_places(frames, actions):
    before = sprite_places(frames)
    after = moved(before, actions, blocked_places(wall_tiles(frames)))
    return np.where(((after == before).all(-1) & (actions != 0))[:, None], -1, after)


@pytest.mark.learning
def test_a_world_of_sprites_is_drawn_beyond_copying_and_obeys_actions_that_nobody_took():
    store = collect("seqwm/Sprite-v0", None, 24000, None, seed=0, progress=False)
    held_out = collect("seqwm/Sprite-v0", None, 3000, None, seed=1, progress=False)
    settings = {"batch_size": 32, "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 50, "ema": 0.99}
    train = TrainOptions(steps=770, precision="bf16", **settings)
    torch.manual_seed(0)
    model = build(Options(), store)
    learner = SupervisedLearner(model, store.windows(model.window_length, 32, 0, following=True), train, 0)
    for step in range(train.steps):
        learner.update(step)
    model = learner.trained()
    given = clips(held_out, model.window_length, 5, 60)
    figures = one_step(given.frames, dreamt(model, given.context, given.actions))
    assert figures.psnr > figures.copied + 6
    assert figures.moving_psnr > figures.moving_copied + 8
    assert obedience(model, given, 5, lambda before, after: sprite_places(after), expected_places) > 0.85


def test_it_is_an_environment_of_frames():
    store = shaded_logs()
    model = perturbed(SMALL, store)
    dream = DreamEnv(model, store.spaces, store.windows(model.window_length, 1), 3, 4, render_mode="rgb_array")
    frames, _ = dream.reset(seed=0)
    assert frames.shape == (3, 8, 8, 3)
    for _ in range(4):
        frames, rewards, terminated, truncated, _ = dream.step(np.array([0, 1, 2]))
    assert frames.dtype == np.uint8
    assert np.isfinite(rewards).all()
    assert (terminated | truncated).all()
