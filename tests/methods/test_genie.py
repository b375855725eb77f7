"""Genie: no action is read, one forward for training and play, an exact cache, the contract of a world."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from gymnasium import spaces

from seqwm.core.errors import DataError, SpaceError
from seqwm.core.types import Spaces
from seqwm.methods.genie import LatentOptions, Options, build
from seqwm.nn.frames import from_bytes, to_bytes
from seqwm.testing import check_world_model
from seqwm.tokenizers.frames import TokenizerOptions
from seqwm.training.options import TrainOptions
from seqwm.training.supervised import SupervisedLearner
from tests.fakes.frames import shaded_logs

SMALL = Options(
    tokens=TokenizerOptions(patch=4, codes=16, width=8),
    actions=LatentOptions(channels=(16,), width=16, context=1),
    context=4, span=3, layers=2, width=16, heads=2, steps=2,
)  # fmt: skip

SEEING = dataclasses.replace(SMALL, tokens=TokenizerOptions(patch=4, levels=(4, 4), width=32, layers=1, span=2))


def fresh(store, options=SMALL):
    torch.manual_seed(0)
    return build(options, store)


def perturbed(store, options=SMALL):
    model = fresh(store, options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("options", [SMALL, SEEING])
def test_training_reads_frames_and_nothing_else(options):
    store = shaded_logs()
    batch = store.windows(5, 16).batch(0)
    blind = dataclasses.replace(batch, actions=None, rewards=None, returns_to_go=None)
    losses = []
    for given in (batch, blind):
        model = fresh(store, options)
        torch.manual_seed(1)
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
        learner = SupervisedLearner(fresh(store), store.windows(5, 16, 0), TrainOptions(steps=4), 0)
        for step in range(4):
            learner.update(step)
        weights.append(learner.trained().state_dict())
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


@pytest.mark.parametrize("options", [SMALL, SEEING])
@pytest.mark.parametrize(
    ("silenced", "still"),
    [("tokenizer", {"latent", "dynamics"}), ("latent", {"tokenizer", "dynamics"}),
     ("dynamics", {"tokenizer", "latent"})],
)  # fmt: skip
def test_no_part_learns_from_the_loss_of_another(silenced, still, options):
    """Every part has the gradients that it has when another part's are cut off."""
    store = shaded_logs()
    batch = store.windows(5, 16).batch(0)
    gradients = []
    for cut in (False, True):
        model = fresh(store, options)
        getattr(model, silenced).requires_grad_(not cut)
        torch.manual_seed(1)
        model.loss(batch)[0].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    kept = {name for name in gradients[0] if not name.startswith(f"{silenced}.")}
    assert {name.split(".")[0] for name in kept} >= still
    assert gradients[1].keys() == kept
    for name in kept:
        assert torch.equal(gradients[0][name], gradients[1][name]), name


@pytest.mark.parametrize("options", [SMALL, SEEING, dataclasses.replace(SMALL, span=2, steps=5, temperature=0.7)])
def test_it_keeps_the_contract_of_a_world_whose_actions_are_codes(options):
    store = shaded_logs()
    model = perturbed(store, options)
    context = store.windows(model.window_length, 6).batch(0)
    check_world_model(model, context, Spaces(store.spaces.observation, spaces.Discrete(model.latent.codes)))


@pytest.mark.parametrize("options", [SMALL, SEEING])
def test_what_training_says_of_a_masked_frame_is_what_play_fills_in(options):
    store = shaded_logs()
    model = perturbed(store, dataclasses.replace(options, steps=1))
    batch = store.windows(5, 32).batch(0)
    whole = batch.valid.all(1)
    frames = batch.observations[whole]
    codes = torch.randint(model.latent.codes, (len(frames), 4))
    with torch.no_grad():
        tokens = model.tokenizer.encode(from_bytes(frames))
        said = model._drafted(tokens, torch.full_like(tokens[:, 1:], model.masked), codes)
        past = model.dynamics.empty(len(frames), "cpu")
        led = torch.cat((torch.full_like(codes[:, :1], model.unknown), codes), 1)
        stood = torch.cat((torch.full_like(tokens[:, :1], model.masked), tokens), 1)
        for t in range(4):  # one frame after the other, as a dream would
            _, keys, values = model(tokens[:, t : t + 1], stood[:, t : t + 1], led[:, t : t + 1], past)
            past = past.remember(keys, values, torch.ones_like(past.time))
            blank = torch.full_like(tokens[:, :1], model.masked)
            alone, _, _ = model(blank, tokens[:, t : t + 1], codes[:, t : t + 1], past)
            torch.testing.assert_close(said[:, t : t + 1], alone, rtol=1e-5, atol=1e-5)
        state = {"keys": past.keys, "values": past.values, "filled": past.filled, "time": past.time}
        state["tokens"] = tokens[:, 3]
        played = model.step(state, codes[:, -1], None).state["frames"][:, -1]
        drawn = to_bytes(model.tokenizer.decode(said[:, -1:].argmax(-1)))[:, 0]
    assert torch.equal(played, drawn)


@pytest.mark.parametrize("options", [SMALL, SEEING])
def test_a_dream_with_its_cache_equals_one_that_computes_all_frames_anew(options):
    store = shaded_logs()
    model = perturbed(store, options)
    batch = store.windows(5, 6).batch(0)
    frames = batch.observations[batch.valid.all(1)]
    there = torch.ones(frames.shape[:2], dtype=torch.bool)
    state = model.encode(dataclasses.replace(batch, observations=frames, valid=there))
    codes = torch.randint(model.latent.codes, (len(frames), 5), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = model.tokenizer.encode(from_bytes(frames))
        clips = from_bytes(frames).unfold(1, 2, 1).movedim(-1, 2)
        led = torch.full(frames.shape[:2], model.unknown)
        led[:, 1:] = model.latent(clips.flatten(0, 1))[2].view(len(frames), -1)
        for code in codes.unbind(1):
            state = model.step(state, code, None).state
            led = torch.cat((led, code[:, None]), 1)
            drawn = torch.full_like(tokens[:, 0], model.masked)
            empty, length = model.dynamics.empty(len(frames), "cpu"), tokens.shape[1] + 1
            for left in (2, 0):  # of four places, after each of two steps
                stood = torch.cat((torch.full_like(tokens[:, :1], model.masked), tokens), 1)
                said = model(torch.cat((tokens, drawn[:, None]), 1), stood, led, empty)[0][:, -1].softmax(-1)
                sure, likeliest = said.max(-1)
                order = sure.masked_fill(drawn != model.masked, 2.0).argsort(-1)
                drawn = torch.where(drawn == model.masked, likeliest, drawn).scatter(-1, order[:, :left], model.masked)
            tokens = torch.cat((tokens, drawn[:, None]), 1)
            assert tokens.shape[1] == length
            assert torch.equal(state["frames"][:, -1], to_bytes(model.tokenizer.decode(drawn[:, None]))[:, 0])


def test_the_first_frames_are_never_masked_and_rows_that_are_not_there_count_for_nothing():
    store = shaded_logs(episodes=60)
    batch = store.windows(5, 64).batch(0)
    model = perturbed(store)
    seen = []
    model.dynamics.register_forward_pre_hook(lambda _, given: seen.append(given))
    model.stood.weight.data.zero_()
    embedded = model.embed(torch.tensor(model.masked))
    torch.manual_seed(1)
    with torch.no_grad():
        loss, _ = model.loss(batch)
    x, _, _, times, draft = seen[0]
    masked = (x == embedded).all(-1).any(-1)  # [B, T]: frames with a token masked
    assert draft.tolist() == [False] * 4 + [True] * 4
    assert times.tolist() == [0, 1, 2, 3, 1, 2, 3, 4]
    assert not masked[:, :4].any()
    assert masked[:, 4:].all()
    other = batch.observations.clone()
    other[~batch.valid] = 255 - other[~batch.valid]
    torch.manual_seed(1)
    with torch.no_grad():
        again, _ = model.loss(dataclasses.replace(batch, observations=other))
    assert torch.equal(loss, again)


def test_steps_and_temperature_travel_with_the_weights(tmp_path):
    model = perturbed(shaded_logs(), dataclasses.replace(SMALL, steps=3, temperature=0.5))
    model.latent.mapped_action.fill_(2)
    model.save_pretrained(tmp_path)
    there = type(model).from_pretrained(tmp_path)
    assert (there.config.steps, there.config.temperature) == (3, 0.5)
    assert there.latent.mapped_action.tolist() == [2] * 8
    assert torch.equal(there.tokenizer.points, model.tokenizer.points)


def test_clips_that_are_shorter_than_the_context_are_refused():
    options = dataclasses.replace(SMALL, actions=LatentOptions(channels=(16,), width=16, context=3))
    with pytest.raises(
        DataError, match=r"found 2 steps .*; expected 4 for model\.actions\.context 3; give longer clips"
    ):
        build(options, shaded_logs(steps=2))


def test_frames_that_patches_do_not_fit_are_refused():
    with pytest.raises(SpaceError, match=r"frames of 10 x 10: genie .* needs sides that are multiples of 4"):
        build(SMALL, shaded_logs(pixels=10))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"span": 1}, "span"), ({"context": 0}, "context: found 0, expected at least 1"), ({"steps": 0}, "steps"),
     ({"width": 18, "heads": 4}, "width"), ({"temperature": 0.0}, "temperature"), ({"layers": 0}, "layers")],
)  # fmt: skip
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)
