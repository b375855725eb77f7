"""LAPO: what it reads of the logs, stage by stage; decoding; acting as it was trained; an exact resume."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces

from seqwm.control.collect import collect
from seqwm.control.policies import ScriptedPolicy
from seqwm.core.errors import DataError, RecipeError, SpaceError
from seqwm.core.types import Episode, Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.envs.scripted import scripted_player
from seqwm.methods.lapo import Lapo, LapoPolicy, Options, learner
from seqwm.testing import check_policy
from seqwm.training.options import TrainOptions
from tests.fakes.frames import moving_logs, shaded_logs

SMALL = Options(labels=12, channels=(16,), width=16, policy_width=16, practice_steps=40, practice_lanes=4)
TRAIN = TrainOptions(steps=8, batch_size=16, learning_rate=1e-3)


@pytest.fixture(scope="module")
def caught():
    return collect("seqwm/Catch-v0", ScriptedPolicy(scripted_player("seqwm/Catch-v0")), 300, None, progress=False)


def trained(options, store, train=TRAIN, updates=None):
    torch.manual_seed(0)
    own = learner(options, store, train, 0)
    for step in range(train.steps if updates is None else updates):
        own.update(step)
    return own


def told_otherwise(store, rows):
    """A copy without rewards, all of whose actions are 0 but those of `rows`."""
    other = TrajectoryStore.create(None, store.spaces, rewards=False, provenance=store.provenance)
    kept = set(zip(*(part.tolist() for part in rows), strict=True))
    for number, episode in enumerate(store.episodes()):
        actions = [int(a) if (number, t) in kept else 0 for t, a in enumerate(episode.actions)]
        other.append(dataclasses.replace(episode, actions=np.array(actions), rewards=None))
    return other


@pytest.mark.parametrize(("imitate", "surprise"), [("video", False), ("video", True), ("labels", False)])
def test_no_action_is_read_but_the_labelled_ones_and_no_reward(caught, imitate, surprise):
    video = 0.5 if imitate == "video" else 0.0
    options = dataclasses.replace(SMALL, imitate=imitate, surprise=surprise, video_share=video, imitate_share=1 - video)
    one = trained(options, caught)
    other = trained(options, told_otherwise(caught, one.label_rows()))
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name


def test_labels_are_distinct_transitions_and_the_same_for_both_ways_of_imitating(caught):
    rows = [
        learner(dataclasses.replace(SMALL, imitate=imitate, video_share=0.0), caught, TRAIN, 3).label_rows()
        for imitate in ("video", "labels")
    ]
    assert [part.tolist() for part in rows[0]] == [part.tolist() for part in rows[1]]
    episodes, steps = rows[0]
    assert len(set(zip(episodes.tolist(), steps.tolist(), strict=True))) == SMALL.labels
    assert (steps < caught.lengths[episodes]).all()


def test_decoding_fits_the_decoder_to_the_labels_and_nothing_else(caught):
    model = trained(SMALL, caught, updates=1).model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frames = torch.cat([steps for steps, _ in map(learner(SMALL, caught, TRAIN, 0)._steps, range(3))])
    actions = torch.cat([actions for _, actions in map(learner(SMALL, caught, TRAIN, 0)._steps, range(3))])
    model.decode(frames, actions)
    assert float((model.decoded(frames) == actions).float().mean()) > 0.8
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"decoder.weight", "decoder.bias"}


def test_what_is_imitated_is_decoded_of_every_step_and_true_where_it_is_labelled(caught):
    own = trained(SMALL, caught, updates=4)
    decoded = own._decode()
    labelled = set(zip(*(part.tolist() for part in own.label_rows()), strict=True))
    for number in range(len(caught)):
        was, now = caught.episode(number), decoded.episode(number)
        frames = torch.from_numpy(np.array(was.observations))
        windows = torch.stack([frames[[max(t - 1, 0), t, t + 1]] for t in range(len(was))])
        wanted = own.model.eval().decoded(windows).numpy()
        for t, action in enumerate(was.actions):
            assert now.actions[t] == (action if (number, t) in labelled else wanted[t])
        np.testing.assert_array_equal(now.observations, was.observations)


def test_the_policy_keeps_its_contract_and_sees_what_it_was_trained_on(caught):
    model = learner(SMALL, caught, TRAIN, 0).model
    check_policy(lambda lanes: model.policy(), caught.spaces)
    policy, state = LapoPolicy(model, explore=False), LapoPolicy(model, explore=False).initial(1)
    episode = torch.from_numpy(np.array(caught.episode(0).observations))
    for t in range(4):
        _, state = policy.act(state, episode[t][None], torch.zeros(1), torch.tensor([t == 0]))
        assert torch.equal(state["frames"][0], episode[[max(t - 1, 0), t]])


def test_a_resumed_run_is_the_run_that_was_not_stopped(caught):
    options = dataclasses.replace(SMALL, video_share=0.25, imitate_share=0.5)
    whole = trained(options, caught)
    for stop in (1, 3, 7):  # in each of the stages
        half = trained(options, caught, updates=stop).state_dict()
        state = {part: half[part] for part in ("model", "moments")}
        torch.manual_seed(1)
        other = learner(options, caught, TRAIN, 0)
        other.load_state_dict(state)
        for step in range(stop, TRAIN.steps):
            other.update(step)
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(tensor, other.model.state_dict()[name]), (stop, name)


def test_actions_that_do_not_begin_at_zero_are_counted_from_their_first():
    logs = moving_logs(episodes=6)
    known = Spaces(logs.spaces.observation, spaces.Discrete(5, start=3))
    store = TrajectoryStore.create(None, known, rewards=False)
    for episode in logs.episodes():
        store.append(dataclasses.replace(episode, actions=np.asarray(episode.actions) + 3))
    for imitate, share in (("video", 0.5), ("labels", 0.0)):
        model = trained(
            dataclasses.replace(SMALL, imitate=imitate, video_share=share, imitate_share=1 - share), store
        ).model
        action, _ = model.policy().act(
            model.policy().initial(8),
            torch.randint(0, 256, (8, 12, 12, 3), dtype=torch.uint8),
            torch.zeros(8),
            torch.ones(8, dtype=torch.bool),
        )
        assert 3 <= int(action.min()) <= int(action.max()) <= 7


def test_it_is_saved_and_loaded_whole(caught, tmp_path):
    model = trained(SMALL, caught).model
    model.save_pretrained(tmp_path)
    again = Lapo.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [({"labels": 0}, "labels"), ({"video_share": 0.9}, "video_share, imitate_share"), ({"channels": ()}, "channels"),
     ({"imitate": "labels"}, "video_share"), ({"practice_rate": 0.0}, "practice_rate")],
)  # fmt: skip
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_data_that_cannot_be_learned_from_is_refused():
    with pytest.raises(SpaceError, match="found actions None, expected one Discrete of which `labels` are read"):
        learner(SMALL, shaded_logs(actions=False), TRAIN, 0)
    with pytest.raises(RecipeError, match=r"labels: found 500, expected fewer than the 480 transitions of the logs"):
        learner(dataclasses.replace(SMALL, labels=500), shaded_logs(), TRAIN, 0)
    with pytest.raises(RecipeError, match="names no environment to practise in"):
        learner(dataclasses.replace(SMALL, imitate_share=0.1), shaded_logs(), TRAIN, 0)
    with pytest.raises(DataError, match=r"found 2 steps in the longest episode; expected 3 for model\.context 2"):
        learner(SMALL, shaded_logs(steps=2), TRAIN, 0)


def test_a_log_without_a_last_frame_has_no_label_on_its_last_action():
    image = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    store = TrajectoryStore.create(None, Spaces(image, spaces.Discrete(2)), rewards=False)
    for _ in range(3):
        store.append(
            Episode(np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, np.int64), None, True, False, final_observation=False)
        )
    rows = learner(dataclasses.replace(SMALL, labels=9), store, TRAIN, 0).label_rows()
    assert sorted(zip(*(part.tolist() for part in rows), strict=True)) == [(n, t) for n in range(3) for t in range(3)]
