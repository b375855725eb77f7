from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from gymnasium import spaces as gym_spaces

from seqwm.core.errors import SpaceError
from seqwm.core.tree import tree_map
from seqwm.core.types import Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.data.windows import gather_episode
from seqwm.methods import decision_transformer as dt
from tests.strategies import random_episode

BOX = gym_spaces.Box(-np.inf, np.inf, (4,), np.float32)
SPACES = {
    "continuous": Spaces(BOX, gym_spaces.Box(-2.0, 2.0, (3,), np.float32)),
    "discrete": Spaces(BOX, gym_spaces.Discrete(5, start=1)),
    "multi-discrete": Spaces(gym_spaces.MultiDiscrete([3, 4]), gym_spaces.MultiDiscrete([2, 3])),
    "images": Spaces(gym_spaces.Box(0, 255, (16, 16, 3), np.uint8), gym_spaces.Discrete(3)),
    "dict": Spaces(
        gym_spaces.Dict(frame=gym_spaces.Box(0, 255, (12, 12, 1), np.uint8), state=BOX),
        gym_spaces.Dict(gear=gym_spaces.Discrete(3), wheel=gym_spaces.Box(-1.0, 1.0, (1,), np.float32)),
    ),
}


def make_store(spaces, lengths=(3, 12, 25), seed=0):
    store = TrajectoryStore.create(None, spaces, provenance={"source": "test", "environment": "CartPole-v1"})
    rng = np.random.default_rng(seed)
    for length in lengths:
        store.append(random_episode(spaces, length, rng))
    return store


def make_model(store, **changes):
    options = dt.Options(**{"context_length": 6, "layers": 2, "heads": 2, "width": 32, **changes})
    torch.manual_seed(0)
    model = dt.build(options, store).eval()
    for parameter in model.parameters():  # larger than at the start of training, so that differences would show
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def outputs(model, batch):
    with torch.no_grad():
        return model(batch.observations, batch.actions, batch.returns_to_go, batch.timesteps)


@pytest.mark.parametrize("backbone", ["transformer", "lstm"])
@pytest.mark.parametrize("kind", SPACES)
def test_replaying_logged_episodes_through_the_policy_gives_the_training_forward(kind, backbone):
    store = make_store(SPACES[kind])
    model = make_model(store, backbone=backbone)
    windows = store.windows(model.window_length, 4)
    batches = [gather_episode(windows, number) for number in range(3)]
    wanted = [outputs(model, batch) for batch in batches]
    targets = [float(batch.returns_to_go[0, 0]) for batch in batches]
    policy = model.policy(targets)
    state = policy.initial(3)
    seen = []
    model.actions.decode, decode = lambda raw: seen.append(raw) or decode(raw), model.actions.decode
    reward = torch.zeros(3)
    for t in range(25):
        # Lanes whose episode is over begin it again, so that lanes of different age stand side by side.
        now = [t % int(length) for length in store.lengths]
        first = torch.tensor([n == 0 for n in now])
        episodes = [store.episode(number) for number in range(3)]
        observation = stack(
            [tree_map(lambda leaf, n=n: leaf[n], e.observations) for n, e in zip(now, episodes, strict=True)]
        )
        _, state = policy.act(state, observation, reward, first)
        for lane, n in enumerate(now):
            place = min(n, model.window_length - 1)
            torch.testing.assert_close(seen[-1][lane], wanted[lane][n, place], atol=1e-5, rtol=1e-5)
            for name, window in state.items():  # the log's action in place of the policy's
                if name.startswith("action/"):
                    path = name.partition("/")[2]
                    logged = episodes[lane].actions[path] if path else episodes[lane].actions
                    window[lane, place] = torch.as_tensor(logged[n])
        reward = torch.tensor([float(e.rewards[n]) for n, e in zip(now, episodes, strict=True)])


def stack(trees):
    if isinstance(trees[0], dict):
        return {name: stack([tree[name] for tree in trees]) for name in trees[0]}
    return torch.stack([torch.as_tensor(np.asarray(leaf)) for leaf in trees])


@pytest.mark.parametrize("backbone", ["transformer", "lstm"])
def test_what_stands_in_padding_cannot_change_an_output_or_the_loss(backbone):
    store = make_store(SPACES["continuous"])
    model = make_model(store, backbone=backbone)
    batch = store.windows(6, 32).batch(0)
    assert not batch.valid.all()
    clean, clean_loss = outputs(model, batch), model.loss(batch)[0]
    for leaf in (batch.observations, batch.actions, batch.returns_to_go):
        leaf[~batch.valid] = 1e3 * torch.randn_like(leaf[~batch.valid])
    batch.timesteps[~batch.valid] = 7
    assert torch.equal(outputs(model, batch)[batch.valid], clean[batch.valid])
    assert torch.equal(model.loss(batch)[0], clean_loss)


@pytest.mark.parametrize("backbone", ["transformer", "lstm"])
def test_an_output_depends_on_nothing_that_comes_later(backbone):
    store = make_store(SPACES["continuous"], lengths=(20,))
    model = make_model(store, backbone=backbone)
    batch = store.windows(6, 4).gather(np.array([0]), np.array([15]))
    before = outputs(model, batch)
    batch.actions[:, 3] += 1
    after = outputs(model, batch)
    assert torch.equal(before[:, :4], after[:, :4])  # the action of a step is not an input of that step
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("kind", SPACES)
def test_a_saved_model_acts_as_before(kind, tmp_path):
    store = make_store(SPACES[kind])
    model = make_model(store)
    batch = store.windows(6, 8).batch(3)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = transformers.AutoModel.from_pretrained(tmp_path)
    assert isinstance(again, dt.DecisionTransformer)
    assert again.dtype == torch.float32
    assert again.config.return_scale == pytest.approx(float(np.abs(store.returns).max()))
    assert torch.equal(outputs(again.eval(), batch), outputs(model, batch))


def reference_outputs(exported, model, batch):
    """The plain transformers forward, with the normalisation that its config tells."""
    told = exported.config
    states = (batch.observations - torch.tensor(told.state_mean)) / torch.tensor(told.state_std)
    actions = (batch.actions - torch.tensor(told.action_centre)) / torch.tensor(told.action_scale)
    with torch.no_grad():
        return exported(
            states=states,
            actions=actions,
            returns_to_go=(batch.returns_to_go / told.return_scale).unsqueeze(-1),
            timesteps=batch.timesteps,
            attention_mask=batch.valid.long(),
        ).action_preds


def test_transformers_own_class_gives_the_same_actions(tmp_path):
    store = make_store(SPACES["continuous"])
    model = make_model(store)
    batch = store.windows(6, 16).batch(0)
    dt.to_transformers(model).save_pretrained(tmp_path)
    exported = transformers.DecisionTransformerModel.from_pretrained(tmp_path).eval()
    wanted = outputs(model, batch).tanh()
    torch.testing.assert_close(
        reference_outputs(exported, model, batch)[batch.valid], wanted[batch.valid], atol=1e-6, rtol=1e-5
    )


def test_a_checkpoint_of_transformers_is_read():
    torch.manual_seed(1)
    settings = {
        "state_dim": 4,
        "act_dim": 3,
        "hidden_size": 32,
        "n_layer": 2,
        "n_head": 2,
        "max_ep_len": 40,
        "n_inner": 128,
    }
    theirs = transformers.DecisionTransformerModel(transformers.DecisionTransformerConfig(**settings)).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    mean, std = torch.randn(4), torch.rand(4) + 0.5
    model = dt.from_transformers(theirs, state_mean=mean, state_std=std, return_scale=50.0)
    told = theirs.config
    told.state_mean, told.state_std, told.return_scale = mean.tolist(), std.tolist(), 50.0
    told.action_centre, told.action_scale = [0.0] * 3, [1.0] * 3
    batch = make_store(Spaces(BOX, gym_spaces.Box(-1.0, 1.0, (3,), np.float32))).windows(6, 16).batch(0)
    found = outputs(model, batch).tanh()[batch.valid]
    torch.testing.assert_close(found, reference_outputs(theirs, model, batch)[batch.valid], atol=1e-6, rtol=1e-5)


def test_steps_beyond_the_last_embedding_share_it():
    store = make_store(SPACES["continuous"], lengths=(30,))
    model = make_model(store, max_timestep=10)
    batch = store.windows(6, 4).gather(np.array([0]), np.array([29]))
    late = outputs(model, batch)
    batch.timesteps[:] = 9
    assert torch.equal(outputs(model, batch), late)


def test_the_loss_is_the_mean_over_valid_rows_by_hand():
    store = make_store(SPACES["continuous"])
    model = make_model(store)
    batch = store.windows(6, 32).batch(0)
    predicted = outputs(model, batch).tanh()
    errors = [
        float(((predicted[b, t] - batch.actions[b, t] / 2.0) ** 2).mean())  # bounds of 2 are mapped to 1
        for b in range(32) for t in range(6) if batch.valid[b, t]
    ]  # fmt: skip
    assert float(model.loss(batch)[0].detach()) == pytest.approx(np.mean(errors), rel=1e-5)


def test_lanes_are_independent_of_each_other():
    from seqwm.testing import check_policy

    store = make_store(SPACES["continuous"])
    model = make_model(store)
    check_policy(lambda lanes: model.policy([float(lane) for lane in lanes]), store.spaces)


def test_data_without_rewards_is_refused_by_name():
    spaces = SPACES["continuous"]
    store = TrajectoryStore.create(None, spaces, rewards=False)
    store.append(random_episode(spaces, 5, np.random.default_rng(0), rewards=False))
    with pytest.raises(SpaceError, match="no rewards; decision_transformer needs them"):
        dt.build(dt.Options(), store)


def test_a_policy_without_a_target_for_each_lane_is_refused():
    model = make_model(make_store(SPACES["discrete"]))
    with pytest.raises(ValueError, match="expected target_returns"):
        model.policy()
    with pytest.raises(ValueError, match="found 2 target returns, expected one for each of the 3 lanes"):
        model.policy([1.0, 2.0]).initial(3)
