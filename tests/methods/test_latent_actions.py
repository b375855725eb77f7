"""Latent actions: no action is read, the contract of a world, recovering actions from frames alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces

from seqwm.control.labels import labelled
from seqwm.core.errors import DataError, SpaceError
from seqwm.core.types import Episode, Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.evaluation.action_report import action_report
from seqwm.methods.latent_actions import Options, build
from seqwm.testing import check_world_model
from seqwm.training.options import TrainOptions
from seqwm.training.supervised import SupervisedLearner
from tests.fakes.frames import moving_logs, shaded_logs

SMALL = Options(channels=(16,), width=16, context=1)


def fresh(store, options=SMALL):
    torch.manual_seed(0)
    return build(options, store)


def perturbed(store, options=SMALL):
    model = fresh(store, options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def test_training_reads_frames_and_nothing_else():
    store = shaded_logs()
    batch = store.windows(2, 32).batch(0)
    blind = dataclasses.replace(batch, actions=None, rewards=None, returns_to_go=None)
    losses = []
    for given in (batch, blind):
        model = fresh(store)
        loss, _ = model.loss(given)
        loss.backward()
        losses.append((loss, [p.grad for p in model.parameters() if p.grad is not None]))
    assert torch.equal(losses[0][0], losses[1][0])
    for one, other in zip(losses[0][1], losses[1][1], strict=True):
        assert torch.equal(one, other)


def test_video_without_actions_trains_the_same_weights_as_video_with_them():
    weights = []
    for store in (shaded_logs(actions=True), shaded_logs(actions=False, rewards=False)):
        torch.manual_seed(0)
        learner = SupervisedLearner(fresh(store), store.windows(2, 16, 0), TrainOptions(steps=5), 0)
        for step in range(5):
            learner.update(step)
        weights.append(learner.trained().state_dict())
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_a_forward_model_learns_alone_at_first_then_from_codes_that_stay_and_only_then_with_the_inverse_model():
    model = perturbed(shaded_logs(), dataclasses.replace(SMALL, alone=1, fixed=1)).train().latent
    frames = torch.rand(8, 2, 3, 8, 8) * 2 - 1
    expected = (
        model.weight(frames[:, 0], frames[:, 1])
        * (model.foretell(frames[:, :1], torch.zeros(8, 3)) - frames[:, 1]).square()
    ).mean()
    alone, _, _ = model.loss(frames, torch.ones(8).bool())
    alone.backward()
    torch.testing.assert_close(alone, expected)
    assert all(p.grad is None or not p.grad.any() for p in model.inverse.parameters())
    assert any(p.grad.any() for p in model.forward_model.parameters())
    fixed, _, _ = model.loss(frames, torch.ones(8).bool())
    fixed.backward()
    assert fixed != alone
    assert all(p.grad is None or not p.grad.any() for p in model.inverse.parameters())
    told, _, _ = model.loss(frames, torch.ones(8).bool())
    told.backward()
    assert told == fixed
    assert any(p.grad.any() for p in model.inverse.parameters())


def test_codes_that_stay_as_they_began_begin_with_numbers_that_have_nothing_to_do_with_each_other():
    options = dataclasses.replace(SMALL, fixed=5)
    model = perturbed(moving_logs(), options).train().latent
    frames = torch.rand(40, 2, 3, 8, 8) * 2 - 1
    whole = torch.arange(40) < 32
    model.loss(frames, whole)
    with torch.no_grad():
        numbers = model.inverse(frames[whole])
    torch.testing.assert_close(numbers.mean(0), torch.zeros(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(numbers.T.cov(correction=0), torch.eye(3), rtol=0, atol=1e-3)
    begun = model.inverse.leave.weight.clone()
    model.loss(frames, whole)  # later ones leave it alone
    assert torch.equal(model.inverse.leave.weight, begun)
    again = perturbed(moving_logs(), options).train().latent
    first = again.inverse.leave.weight.clone()
    again.loss(frames, torch.arange(40) < 3)  # too few to say
    assert torch.equal(again.inverse.leave.weight, first)


def test_with_surprise_what_comes_as_foretold_looks_the_same_in_any_scene():
    model = perturbed(shaded_logs(), dataclasses.replace(SMALL, context=2, surprise=True)).latent
    before = torch.rand(6, 2, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        after = model.foretell(before)
        numbers, _, _ = model(torch.cat((before, after[:, None]), 1))
        torch.testing.assert_close(numbers, numbers[:1].expand(6, -1))
        after[:, :, 3, 4] += 0.5
        other, _, _ = model(torch.cat((before, after[:, None]), 1))
    assert (other - numbers).abs().amax(1).min() > 1e-4


def test_with_surprise_every_fourth_window_is_told_no_code_in_training():
    model = perturbed(shaded_logs(), dataclasses.replace(SMALL, surprise=True)).train().latent
    frames = torch.rand(8, 2, 3, 8, 8) * 2 - 1
    loss, _, _ = model.loss(frames, torch.ones(8).bool())
    with torch.no_grad():
        _, point, _ = model(frames)
        point[[0, 4]] = 0
        error = model.foretell(frames[:, :1], point) - frames[:, 1]
    torch.testing.assert_close(loss.detach(), (model.weight(frames[:, 0], frames[:, 1]) * error.square()).mean())


def test_what_is_next_to_a_change_weighs_as_much_with_surprise():
    frames = torch.zeros(2, 2, 3, 8, 8)
    frames[1, :, :, 2, 3] = 0.5
    frames[1, 1] = 0.5  # all of the second frame changes
    weights = []
    for surprise in (False, True):
        model = fresh(shaded_logs(), dataclasses.replace(SMALL, surprise=surprise, change_weight=9.0)).latent
        weight = model.weight(frames[0], frames[1])
        assert weight.mean((1, 2, 3) if surprise else None).tolist() == pytest.approx([1, 1] if surprise else 1)
        weights.append((weight[0, 0] / weight.min()).tolist())
    assert weights[0] == pytest.approx(np.where(np.pad([[1]], ((2, 5), (3, 4))), 10, 1))
    assert weights[1] == pytest.approx(np.where(np.pad(np.ones((3, 3)), ((1, 4), (2, 3))), 10, 1))


def test_a_forward_model_that_is_given_changes_sees_the_last_frame_and_what_led_to_it():
    model = fresh(shaded_logs(), dataclasses.replace(SMALL, context=3, given="changes")).latent
    seen = []
    model.forward_model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    frames = torch.rand(2, 3, 3, 8, 8)
    model.foretell(frames)
    changes = [3 * (frames[:, 1] - frames[:, 0]), 3 * (frames[:, 2] - frames[:, 1])]
    torch.testing.assert_close(seen[0], torch.cat((*changes, frames[:, 2]), 1))


@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        dataclasses.replace(SMALL, context=3, levels=(3, 2), unshuffle=2),
        dataclasses.replace(SMALL, context=3, given="changes", surprise=True),
    ],
)
def test_it_keeps_the_contract_of_a_world_whose_actions_are_codes(options):
    store = shaded_logs()
    model = perturbed(store, options)
    context = store.windows(model.window_length, 6).batch(0)
    check_world_model(model, context, Spaces(store.spaces.observation, spaces.Discrete(model.latent.codes)))


def test_training_and_play_foretell_the_same_frame():
    store = shaded_logs()
    model = perturbed(store)
    batch = store.windows(2, 16).batch(0)
    frames = batch.observations[batch.valid.all(1)]
    code, _ = model.latent.infer(frames)
    played = model.step({"frames": frames[:, :1]}, code, None).state["frames"][:, -1]
    with torch.no_grad():
        seen = frames.movedim(-1, -3).float() / 127.5 - 1
        told = model.latent.foretell(seen[:, :1], model.latent(seen)[1])
    exact = ((told + 1) * 127.5).clamp(0, 255).movedim(1, -1)
    assert (played - exact).abs().max() <= 0.5 + 1e-3


def test_a_window_that_is_no_whole_one_counts_for_nothing():
    store = shaded_logs()
    batch = store.windows(2, 64).batch(0)
    short = ~batch.valid.all(1)
    assert short.any()
    model = perturbed(store)
    frames = batch.observations.clone()
    frames[short] = 255 - frames[short]
    with torch.no_grad():
        loss, _ = model.loss(batch)
        # weights of pixels are shares of the batch's, which only frames that move can change
        other, _ = model.loss(dataclasses.replace(batch, observations=frames))
    torch.testing.assert_close(loss, other)


@pytest.mark.learning
def test_it_finds_the_moves_of_a_world_from_frames_alone():
    # Purity after 700 updates with seeds 0 to 3: 0.99, 0.77, 0.97, 0.92; one code for all moves would give 0.22.
    store = moving_logs()
    torch.manual_seed(0)
    model = build(Options(channels=(16,), width=32, context=1), store)
    options = TrainOptions(steps=700, batch_size=32, learning_rate=3e-3, schedule="cosine", warmup_steps=20)
    learner = SupervisedLearner(model, store.windows(2, 32, 0), options, 0)
    for step in range(options.steps):
        learner.update(step)
    found = action_report(learner.trained(), store, labels=16, updates=100)
    assert found.purity > 0.6
    assert found.ceiling > 0.9
    assert found.delta_psnr > 2.5
    assert found.own_frame > 0.9


def test_a_true_action_is_done_by_the_code_that_stands_for_it_with_most_confidence():
    model = perturbed(shaded_logs())
    model.latent.mapped_action.copy_(torch.tensor([2, 0, -1, 2, 1, -1, 0, 0]))
    model.latent.mapped_confidence.copy_(torch.tensor([0.5, 0.9, 0.0, 0.7, 1.0, 0.0, 0.95, 0.1]))
    assert model.latent.code_of(torch.tensor([0, 1, 2])).tolist() == [6, 4, 3]
    with pytest.raises(SpaceError, match=r"no code stands for the actions \[3\], expected some of \[0, 1, 2\]"):
        model.latent.code_of(torch.tensor([1, 3]))


def test_the_map_travels_with_the_weights(tmp_path):
    model = perturbed(shaded_logs())
    model.latent.mapped_action.fill_(2)
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).latent.mapped_action.tolist() == [2] * 8


def test_clips_that_are_shorter_than_the_context_are_refused():
    with pytest.raises(
        DataError, match=r"found 2 steps in the longest episode; expected 4 for model\.context 3; give longer"
    ):
        build(dataclasses.replace(SMALL, context=3), shaded_logs(steps=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"levels": (1,)}, "levels"), ({"context": 0}, "context"), ({"channels": ()}, "channels"),
     ({"change_weight": -1.0}, "change_weight"), ({"changed": 2.0}, "changed"), ({"alone": -1}, "alone"),
     ({"fixed": -1}, "fixed"), ({"levels": (2, 3), "surprise": True}, "expected even numbers with model.surprise"),
     ({"given": "change"}, "given")],
)  # fmt: skip
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_labels_are_what_is_inferred_between_each_pair_of_frames_and_the_rest_stays():
    store = shaded_logs(episodes=5)
    model = perturbed(store, dataclasses.replace(SMALL, context=2))
    made = labelled(model, store, progress=False)
    assert made.spaces.action == spaces.Discrete(8)
    for number in range(len(store)):
        was, now = store.episode(number), made.episode(number)
        frames = torch.from_numpy(np.array(was.observations))
        windows = torch.stack([frames[[max(t - 1, 0), t, t + 1]] for t in range(len(was))])
        np.testing.assert_array_equal(now.actions, model.latent.infer(windows)[0].numpy())
        np.testing.assert_array_equal(now.observations, was.observations)
        np.testing.assert_array_equal(now.rewards, was.rewards)
        assert (now.terminated, now.truncated) == (was.terminated, was.truncated)


def test_the_last_action_of_a_log_without_a_final_observation_cannot_be_seen():
    image = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    store = TrajectoryStore.create(None, Spaces(image, None), rewards=False)
    store.append(Episode(np.zeros((4, 8, 8, 3), np.uint8), None, None, True, False, final_observation=False))
    made = labelled(perturbed(shaded_logs()), store, progress=False).episode(0)
    assert (len(made), made.final_observation, made.terminated, made.truncated) == (3, True, False, True)


def test_frames_of_another_size_are_refused():
    with pytest.raises(SpaceError, match=r"found frames \[\(16, 16, 3\)\], expected one of \(8, 8, 3\)"):
        labelled(perturbed(shaded_logs()), shaded_logs(pixels=16), progress=False)
