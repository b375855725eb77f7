from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from gymnasium import spaces as gym_spaces

from seqwm.core.errors import SpaceError
from seqwm.core.types import Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.methods import dreamer
from seqwm.testing import check_policy, check_world_model
from seqwm.training import checkpoint
from seqwm.training.options import TrainOptions
from tests.strategies import random_episode

BOX = gym_spaces.Box(-np.inf, np.inf, (3,), np.float32)
KINDS = {
    "discrete": Spaces(BOX, gym_spaces.Discrete(3)),
    "continuous": Spaces(BOX, gym_spaces.Box(-2.0, 2.0, (2,), np.float32)),
    "images": Spaces(
        gym_spaces.Dict({"camera": gym_spaces.Box(0, 255, (16, 16, 3), np.uint8), "speed": BOX}),
        gym_spaces.Dict({"push": gym_spaces.Box(-2.0, 2.0, (2,), np.float32), "turn": gym_spaces.Discrete(3)}),
    ),
}
SIZES = {"deterministic": 16, "stochastic": 3, "classes": 4, "hidden": 8, "layers": 1, "width": 16, "depth": 4}
SMALL = {
    "v1": dreamer.Options(version="v1", sequence_length=6, horizon=3, **(SIZES | {"classes": 0})),
    "v2": dreamer.Options(version="v2", sequence_length=6, horizon=3, **SIZES),
    "v3": dreamer.Options(version="v3", sequence_length=6, horizon=3, **SIZES),
}
TRAIN = TrainOptions(steps=10, batch_size=4, learning_rate=1e-3, weight_decay=0.0, gradient_clip=0.3)


def store_of(spaces, lengths=(9, 3, 1, 6), rewards=True):
    store = TrajectoryStore.create(None, spaces, rewards=rewards)
    for number, length in enumerate(lengths):
        store.append(random_episode(spaces, length, np.random.default_rng(number), rewards=rewards))
    return store


def learner_of(options, spaces, train=TRAIN, lengths=(9, 3, 1, 6)):
    torch.manual_seed(0)
    return dreamer.learner(options, store_of(spaces, lengths), train, seed=0)


def weights_of(learner):
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


def test_the_smallest_size_has_the_references_number_of_parameters():
    # danijar/dreamerv3, size1m on DMC walker from 24 numbers with 6 actions, without the slow critic
    spaces = Spaces(gym_spaces.Box(-np.inf, np.inf, (24,), np.float32), gym_spaces.Box(-1, 1, (6,), np.float32))
    model = dreamer.build(dreamer.Options(), store_of(spaces))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 640_867


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", SMALL)
def test_every_version_learns_from_every_kind_of_observation_and_action(version, kind):
    learner = learner_of(SMALL[version], KINDS[kind])
    before = weights_of(learner)
    for step in range(2):
        metrics = learner.update(step)
    assert all(np.isfinite(value) for value in metrics.values())
    assert {"loss", "loss_actor", "loss_critic", "loss_reconstruction", "gradient_norm"} <= set(metrics)
    moved = {name for name, tensor in weights_of(learner).items() if not torch.equal(tensor, before[name])}
    for part in (
        "world.rssm",
        "world.observations",
        "world.continue_head",
        "actor_critic.actor",
        "actor_critic.critic",
    ):
        assert any(name.startswith(part) for name in moved), part


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", SMALL)
def test_every_version_is_a_world_and_a_policy_as_the_contract_says(version, kind):
    spaces = KINDS[kind]
    torch.manual_seed(0)
    store = store_of(spaces)
    model = dreamer.build(SMALL[version], store)
    check_world_model(model, store.windows(model.window_length, 4, seed=1).batch(0), spaces)
    check_policy(lambda lanes: model.policy(), spaces)


def test_updates_are_a_pure_function_of_seed_step_and_data():
    one, other = (learner_of(SMALL["v3"], KINDS["discrete"]) for _ in range(2))
    for step in range(3):
        torch.manual_seed(step)  # the global generator plays no part
        assert one.update(step) == other.update(step)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", SMALL)
def test_an_update_in_bf16_is_one_in_float32_but_for_rounding(version, kind):
    half, full = (learner_of(SMALL[version], KINDS[kind], replace(TRAIN, precision=p)) for p in ("bf16", "float32"))
    own, expected = half.update(0), full.update(0)
    for name in ("loss_reconstruction", "loss_continue", "loss_reward", "loss_critic", "gradient_norm"):
        assert own[name] == pytest.approx(expected[name], rel=0.1), name
    assert own["loss"] != expected["loss"]
    assert all(p.dtype == torch.float32 for p in half.model.parameters())


@pytest.mark.parametrize(
    ("version", "precision"), [("v1", "float32"), ("v2", "float32"), *(("v3", p) for p in ("float32", "bf16"))]
)
def test_a_run_resumed_from_a_checkpoint_equals_one_that_went_on(version, precision, tmp_path):
    train = replace(TRAIN, ema=0.9, warmup_steps=4, precision=precision)
    whole = learner_of(SMALL[version], KINDS["continuous"], train)
    for step in range(3):
        whole.update(step)
    checkpoint.save(tmp_path, 3, whole.state_dict())
    resumed = learner_of(SMALL[version], KINDS["continuous"], train)
    resumed.load_state_dict(checkpoint.latest(tmp_path).state)
    for step in range(3, 6):
        assert whole.update(step) == resumed.update(step)
    theirs = weights_of(resumed)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights_of(whole).items())
    averages = [learner.trained().state_dict() for learner in (whole, resumed)]
    assert all(torch.equal(tensor, averages[1][name]) for name, tensor in averages[0].items())


def test_a_window_begins_in_the_state_that_the_last_update_left_at_its_first_row():
    learner = learner_of(SMALL["v3"], KINDS["discrete"])
    assert float(learner._state_before(torch.arange(19))["deterministic"].abs().sum()) == 0.0
    learner.update(0)
    touched = np.unique(learner.windows.rows(0)[:, 1:])
    left = learner._latents.abs().sum(-1) > 0
    assert np.flatnonzero(left.numpy()).tolist() == touched.tolist()
    store = learner.windows.store
    store.append(random_episode(store.spaces, 30, np.random.default_rng(9)))
    rows = torch.from_numpy(touched)
    before = learner._latents[rows].clone()
    state = learner._state_before(torch.tensor([len(learner._latents) + 20, 0]))
    assert float(state["deterministic"][0].abs().sum()) == 0.0
    assert torch.equal(learner._latents[rows], before)


def test_episodes_shorter_than_a_window_are_learned_from():
    learner = learner_of(SMALL["v3"], KINDS["discrete"], lengths=(2, 1, 1))
    assert np.isfinite(learner.update(0)["loss"])


def test_a_saved_model_acts_and_dreams_as_before(tmp_path):
    learner = learner_of(SMALL["v3"], KINDS["images"])
    learner.update(0)
    model = learner.trained()
    model.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    batch = learner.windows.store.windows(6, 3, seed=1).batch(0)
    one, other = model.encode(batch), again.encode(batch)
    assert all(torch.equal(one[name], other[name]) for name in one)
    observation = {name: leaf[:, 0] for name, leaf in batch.observations.items()}
    first = torch.ones(3, dtype=torch.bool)
    acts = [own.policy().act(own.policy().initial(3), observation, torch.zeros(3), first) for own in (model, again)]
    assert torch.equal(acts[0][0]["push"], acts[1][0]["push"])
    assert torch.equal(acts[0][1]["deterministic"], acts[1][1]["deterministic"])


def test_exploring_draws_actions_and_the_policy_otherwise_does_not():
    learner = learner_of(SMALL["v3"], KINDS["continuous"])
    seen, first = torch.zeros(1, 3).expand(50, 3), torch.ones(50, dtype=torch.bool)

    def actions(explore):
        policy = learner.policy(explore)
        return policy.act(policy.initial(50), seen, torch.zeros(50), first)[0]

    assert float(actions(False).std(0).max()) == 0.0
    assert float(actions(True).std(0).min()) > 0.1


def test_exploring_in_v1_strays_from_the_actor_in_a_share_of_discrete_actions():
    learner = learner_of(SMALL["v1"], KINDS["discrete"])
    policy = learner.policy(True)
    features = torch.nn.functional.one_hot(torch.zeros(6000, dtype=torch.int64), 3).float()
    torch.manual_seed(0)
    strayed = policy.model.world.actions.stray(features, 0.3).argmax(-1) != 0
    assert float(strayed.float().mean()) == pytest.approx(0.3 * 2 / 3, abs=0.02)


def test_data_without_rewards_gives_a_world_and_says_why_there_is_no_policy():
    store = store_of(KINDS["discrete"], rewards=False)
    learner = dreamer.learner(SMALL["v3"], store, TRAIN, seed=0)
    assert "loss_actor" not in learner.update(0)
    check_world_model(learner.trained(), store.windows(6, 4, seed=1).batch(0), store.spaces)
    with pytest.raises(SpaceError, match="there is a world and no policy"):
        learner.trained().policy()


def test_data_without_actions_and_settings_without_sense_are_refused():
    store = TrajectoryStore.create(None, Spaces(BOX, None))
    with pytest.raises(SpaceError, match="no actions; dreamer needs them"):
        dreamer.build(SMALL["v3"], store)
    with pytest.raises(ValueError, match="expected a multiple of the 8 blocks"):
        dreamer.Options(deterministic=20)
    with pytest.raises(ValueError, match="imagined_rows: found 1, expected at least 2"):
        dreamer.Options(imagined_rows=1)
    with pytest.raises(ValueError, match=r"train\.precision: found fp16"):
        dreamer.learner(SMALL["v3"], store_of(KINDS["discrete"]), replace(TRAIN, precision="fp16"), seed=0)
    with pytest.raises(ValueError, match="expected none: it looks for the largest return"):
        dreamer.build(SMALL["v3"], store_of(KINDS["discrete"])).policy([3.0])


def test_options_change_the_settings_of_a_version_wherever_their_name_stands():
    chosen = dreamer.settings(dreamer.Options(width=48, deterministic=32, horizon=7, discount=0.9))
    assert (chosen.world.width, chosen.actor_critic.width) == (48, 48)
    assert (chosen.world.rssm.deterministic, chosen.actor_critic.horizon, chosen.world.discount) == (32, 7, 0.9)
    v2 = dreamer.Options(version="v2")
    shares = [dreamer.settings(v2, discrete=kind).actor_critic.dynamics_share for kind in (True, False)]
    assert shares == [0.0, 1.0]
