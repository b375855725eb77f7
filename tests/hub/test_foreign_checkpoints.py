"""Decision Transformers as others publish them, transformers' class with the normalisation in the card alone.

They are built here in the style of edbeeching/decision-transformer-gym-*, and played by the loop that goes with them.
"""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from seqwm.core.errors import CheckpointError
from seqwm.evaluation.evaluate import evaluate
from seqwm.hub.load import load_model

ENVIRONMENT, STEPS, TARGETS = "MountainCarContinuous-v0", 45, (-3.0, 40.0)
NORMALISATION = {
    "state_mean": [-0.45, 0.01],
    "state_std": [0.2, 0.03],
    "return_scale": 50.0,
    "environment": ENVIRONMENT,
}


def theirs(**options):
    """A network with large random weights, so that its actions depend on all that it is given."""
    torch.manual_seed(3)
    config = transformers.DecisionTransformerConfig(
        state_dim=2, act_dim=1, hidden_size=32, n_layer=2, n_head=1, max_ep_len=1000, initializer_range=0.3,
        **{"bos_token_id": None, "eos_token_id": None, "vocab_size": 1, **options},
    )  # fmt: skip
    return transformers.DecisionTransformerModel(config).eval()


@pytest.fixture
def published(hub, tmp_path):
    """As on the Hub: weights and a config.json that tells nothing of normalisation, windows of 20 steps."""
    model = theirs()
    model.save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text()) | {"max_length": 20, "n_ctx": 1024}
    weights = (tmp_path / "theirs" / "model.safetensors").read_bytes()
    hub.plant("them/dt", {"config.json": json.dumps(config).encode(), "model.safetensors": weights})
    return model


def play(model, target, seed, window=20):
    """The return of one episode in a loop of `transformers` alone: windows padded on the left and masked."""
    env = gymnasium.make(ENVIRONMENT, max_episode_steps=STEPS)
    mean, std = torch.tensor(NORMALISATION["state_mean"]), torch.tensor(NORMALISATION["state_std"])
    scale, size = NORMALISATION["return_scale"], model.config.act_dim
    observation, _ = env.reset(seed=seed)
    states, actions, returns, total, step, done = [], [], [target / scale], 0.0, 0, False
    while not done:
        states.append((torch.as_tensor(observation) - mean) / std)
        actions.append(torch.zeros(size))
        kept = min(len(states), window)
        padding = window - kept
        with torch.no_grad():
            _, outputs, _ = model(
                states=torch.cat([torch.zeros(padding, len(mean)), torch.stack(states[-kept:])])[None],
                actions=torch.cat([torch.zeros(padding, size), torch.stack(actions[-kept:])])[None],
                rewards=None,
                returns_to_go=torch.cat([torch.zeros(padding), torch.tensor(returns[-kept:])])[None, :, None],
                timesteps=torch.cat([torch.zeros(padding), torch.arange(step + 1 - kept, step + 1)]).long()[None],
                attention_mask=torch.cat([torch.zeros(padding), torch.ones(kept)])[None],
                return_dict=False,
            )
        actions[-1] = outputs[0, -1]
        observation, reward, terminated, truncated, _ = env.step(actions[-1].numpy())
        returns.append(returns[-1] - reward / scale)
        total, step, done = total + float(reward), step + 1, terminated or truncated
    return total


def test_a_checkpoint_in_their_style_plays_as_in_their_own_loop(published):
    model = load_model("them/dt", normalisation=NORMALISATION)
    assert model.window_length == 20
    ours = evaluate(model, ENVIRONMENT, targets=TARGETS, episodes=2, seed=5, options={"max_episode_steps": STEPS})
    wanted = [play(published, target, seed) for target in TARGETS for seed in (5, 6)]
    assert [outcome.achieved for _, outcome in ours.records] == pytest.approx(wanted, rel=1e-4)
    assert len({round(value, 3) for value in wanted}) == 4


def test_what_the_card_tells_must_be_given(published):
    with pytest.raises(CheckpointError, match=r"them/dt.*state_mean, state_std, return_scale.*card.*normalisation="):
        load_model("them/dt")


def test_an_option_of_save_pretrained_writes_one_that_needs_nothing_given(published, hub, tmp_path):
    model = load_model("them/dt", normalisation=NORMALISATION)
    model.save_pretrained(tmp_path / "ours", as_transformers=True)
    again = transformers.DecisionTransformerModel.from_pretrained(tmp_path / "ours").eval()
    assert play(again, 40.0, 5) == pytest.approx(play(published, 40.0, 5), rel=1e-4)
    back = load_model(tmp_path / "ours")
    assert back.config.environment == ENVIRONMENT
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], weight, msg=name)
    weights = load_file(tmp_path / "ours" / "model.safetensors")
    assert weights.keys() == published.state_dict().keys()


@pytest.mark.parametrize("window", [4, 30])
def test_the_length_of_the_window_travels(window, tmp_path):
    from seqwm.methods.decision_transformer import from_transformers

    model = from_transformers(theirs(), context_length=window, **NORMALISATION)
    model.save_pretrained(tmp_path / "ours", as_transformers=True)
    assert load_model(tmp_path / "ours").window_length == window
    exported = transformers.DecisionTransformerModel.from_pretrained(tmp_path / "ours").eval()
    ours = evaluate(model, ENVIRONMENT, targets=[20.0], episodes=1, seed=1, options={"max_episode_steps": STEPS})
    assert ours.records[0][1].achieved == pytest.approx(play(exported, 20.0, 1, window), rel=1e-4)
    assert np.isfinite(ours.records[0][1].achieved)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new"])
def test_the_activation_travels_both_ways(activation):
    from seqwm.methods.decision_transformer import from_transformers, to_transformers

    ours = from_transformers(theirs(activation_function=activation), **NORMALISATION)
    assert ours.config.activation == activation
    assert to_transformers(ours).config.activation_function == activation


def test_another_activation_is_refused_by_name():
    from seqwm.methods.decision_transformer import from_transformers

    with pytest.raises(CheckpointError, match="found 'silu', expected one of relu, gelu, gelu_new"):
        from_transformers(theirs(activation_function="silu"), **NORMALISATION)
