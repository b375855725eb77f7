from __future__ import annotations

import copy

import pytest
import torch

from seqwm.training import checkpoint
from seqwm.training.options import TrainOptions, learning_rate
from seqwm.training.supervised import SupervisedLearner
from tests.fakes.batches import LinearBatches
from tests.fakes.linear import Linear


def learner_of(*, dropout=0.0, seed=0, batches=None, **options):
    torch.manual_seed(0)
    train = TrainOptions(**{"steps": 50, "learning_rate": 1e-2, **options})
    return SupervisedLearner(Linear(3, 2, dropout), batches or LinearBatches(), train, seed)


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)


def test_it_is_plain_adamw_with_clipping_and_the_schedule_and_decay_on_matrices_only():
    options = {"warmup_steps": 3, "schedule": "cosine", "weight_decay": 0.1, "gradient_clip": 0.3, "betas": (0.8, 0.9)}
    learner = learner_of(**options)
    torch.manual_seed(0)
    model = Linear(3, 2)
    groups = [
        {"params": [model.layer.weight, model.head.weight], "weight_decay": 0.1},
        {"params": [model.layer.bias, model.head.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.9), foreach=False)
    for step in range(10):
        metrics = learner.update(step)
        loss, figures = model.loss(LinearBatches().batch(step))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(learner.options, step)
        optimizer.step()
        expected = {
            "loss": loss.item(),
            "action_error": float(figures["action_error"]),
            "gradient_norm": float(norm),
            "learning_rate": learning_rate(learner.options, step),
        }
        assert metrics == pytest.approx(expected, rel=1e-5)
    found, wanted = parameters(learner.model), parameters(model)
    for name in found:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-7)


def test_it_learns_the_linear_task():
    learner = learner_of(steps=300)
    losses = [learner.update(step)["loss"] for step in range(300)]
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}, {"precision": "bf16"}, {"precision": "fp16", "ema": 0.9}])
def test_a_resumed_learner_goes_on_as_if_nothing_had_happened_to_the_last_bit(tmp_path, options):
    whole = learner_of(dropout=0.5, **options)
    losses = [whole.update(step) for step in range(20)]
    first = learner_of(dropout=0.5, **options)
    for step in range(7):
        first.update(step)
    checkpoint.save(tmp_path, 7, first.state_dict())
    torch.manual_seed(123)
    second = SupervisedLearner(Linear(3, 2, 0.5), LinearBatches(), first.options, 0)
    second.load_state_dict(checkpoint.latest(tmp_path).state)
    torch.manual_seed(99)  # nothing depends on the state of the global generator
    assert [second.update(step) for step in range(7, 20)] == losses[7:]
    assert_equal(parameters(second.trained()), parameters(whole.trained()))


def test_saving_before_the_first_update_and_going_on_changes_nothing(tmp_path):
    whole, first = learner_of(), learner_of()
    checkpoint.save(tmp_path, 0, first.state_dict())
    first.load_state_dict(checkpoint.latest(tmp_path).state)
    assert [first.update(step) for step in range(3)] == [whole.update(step) for step in range(3)]


def test_dropout_depends_on_the_seed_and_the_step_alone():
    losses = {}
    for name, seed, steps in (("a", 0, (0, 1)), ("again", 0, (1,)), ("other seed", 1, (1,))):
        learner = learner_of(dropout=0.5, seed=seed, learning_rate=1e-30)  # weights that stay
        losses[name] = [learner.update(step)["loss"] for step in steps][-1]
    assert losses["a"] == losses["again"]
    assert losses["a"] != losses["other seed"]


def test_the_average_follows_the_weights_with_a_short_memory_at_first():
    learner = learner_of(ema=0.5)
    expected = parameters(learner.model)
    for step in range(20):
        learner.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in parameters(learner.model).items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    averaged = parameters(learner.trained())
    for name in expected:
        torch.testing.assert_close(averaged[name], expected[name])
    assert not torch.equal(averaged["head.weight"], learner.model.head.weight)


def test_without_an_average_the_model_itself_is_used_and_ready_to_act():
    learner = learner_of(dropout=0.5)
    learner.update(0)
    assert learner.trained() is learner.model
    assert not learner.model.training


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_full_precision_and_keeps_float32_weights(precision):
    full, half = learner_of(steps=100), learner_of(steps=100, precision=precision)
    for step in range(100):
        expected, found = full.update(step)["loss"], half.update(step)["loss"]
    assert found == pytest.approx(expected, rel=0.1)
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}


def test_an_update_that_overflows_half_precision_is_left_out_and_the_scale_lowered():
    learner = learner_of(precision="fp16")
    learner._scaler._init_scale = 2.0**40
    before = parameters(learner.model)
    metrics = learner.update(0)
    assert "gradient_norm" not in metrics
    assert_equal(parameters(learner.model), before)
    for step in range(1, 40):
        metrics = learner.update(step)
    assert metrics["gradient_norm"] > 0
    assert not torch.equal(parameters(learner.model)["head.weight"], before["head.weight"])


def test_weights_that_the_loss_does_not_use_stay_as_they_are():
    learner = learner_of(weight_decay=0.5)
    before = copy.deepcopy(learner.model.unused.state_dict())
    for step in range(3):
        learner.update(step)
    assert_equal(learner.model.unused.state_dict(), before)
