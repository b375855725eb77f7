"""Action reports against closed forms, and what they say of models that are right, deaf, collapsed or leaking."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from seqwm.core.errors import DataError, SpaceError
from seqwm.core.protocols import Step
from seqwm.core.spaces import space_to_json
from seqwm.evaluation.action_page import draw_actions
from seqwm.evaluation.action_report import action_report, ask_for, fitted_map, in_own_scene, mutual_information
from seqwm.nn.finite_scalar import FiniteScalar
from seqwm.nn.latent_action_model import LatentOptions
from tests.fakes.frames import shaded_logs

STORE = shaded_logs(episodes=150)


class Told:
    """A world of the shaded logs that is made, not trained: two codes for each shade, or what `fault` says."""

    def __init__(self, fault=None):
        self.fault, self.image, self.window_length, self.device = fault, "", 2, torch.device("cpu")
        self.config = SimpleNamespace(action_space=space_to_json(STORE.spaces.action))
        self.latent = SimpleNamespace(
            codes=8, reach=2, options=LatentOptions(), quantise=FiniteScalar((2, 2, 2)), infer=self.infer,
            mapped_action=torch.zeros(8, dtype=torch.int64), mapped_confidence=torch.zeros(8),
        )  # fmt: skip

    def infer(self, frames):
        shade = ((frames[:, -1, 0, 0, 0].long() - 40) / 50).round().long()
        code = shade * 2 + frames[:, 0, 0, 0, 0].long() // 50 % 2
        if self.fault == "collapse":
            code = torch.zeros_like(code)
        return code, 2 * self.latent.quantise.values(code)

    def encode(self, context):
        return {"frames": context.observations[:, -1]}

    def step(self, state, code, generator):
        frames = state["frames"]
        if self.fault != "deaf":
            frames = (40 + 50 * (code // 2)).to(torch.uint8)[:, None, None, None].expand_as(frames)
        return Step({"frames": frames}, torch.zeros(len(code)), torch.zeros(len(code)).bool())

    def decode(self, state):
        return state["frames"]


def test_a_model_that_is_right_reaches_the_ceiling_with_few_labels_and_is_not_warned_of(tmp_path):
    model = Told()
    report = action_report(model, STORE, labels=16, updates=150)
    assert report.purity == report.mapped["16"] == pytest.approx(1.0)
    assert report.ceiling > 0.98
    assert (
        model.latent.mapped_action.tolist() == report.action_of == [0, 0, 1, 1, 2, 2, -1, -1]
    )  # the last shade ends it all
    assert report.delta_psnr > 20
    assert report.transplanted > 0.95
    assert np.sum(report.table) == report.steps
    # the next frame here *is* the action, so nothing of it can be its own: the leak is seen
    assert [warning.split()[:2] for warning in report.warnings] == [["codes", "leak"]]
    page = draw_actions(report, np.zeros((8, 3, 8, 8, 3), np.uint8), tmp_path / "actions.png")
    assert page.read_bytes()[:4] == b"\x89PNG"


def test_a_collapse_and_ignored_codes_are_named_with_the_option_to_change():
    collapsed = action_report(Told("collapse"), STORE, updates=20)
    assert collapsed.perplexity == pytest.approx(1.0)
    assert collapsed.nmi == pytest.approx(0.0)
    assert "the codes have collapsed" in collapsed.warnings[0]
    assert "model.change_weight" in collapsed.warnings[0]
    deaf = action_report(Told("deaf"), STORE, updates=20)
    assert deaf.delta_psnr == pytest.approx(0.0)
    assert deaf.warnings[0].startswith("codes are ignored")


def test_mutual_information_of_tables_with_known_values():
    assert mutual_information(np.diag([3, 3])) == pytest.approx(1.0)
    assert mutual_information(np.ones((4, 3), np.int64)) == pytest.approx(0.0)
    assert mutual_information(np.array([[5, 0], [0, 0]])) == 0.0
    # codes 0 and 1 split action 0: I = ln 2, H(code) = 1.5 ln 2, H(action) = ln 2
    assert mutual_information(np.array([[1, 0], [1, 0], [0, 2]])) == pytest.approx(2 / (1.5 + 1))


def test_a_frame_that_an_action_changes_more_than_scenes_differ_is_in_its_own_scene_and_a_copy_of_another_is_not():
    scenes = np.zeros((2, 1, 8, 8, 3), np.uint8)
    scenes[0, 0, 0, 0], scenes[1, 0, 7, 7] = 100, 100
    left, right = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)
    left[:, :4], right[:, 4:] = 50, 50  # lit, as it was turned
    after = np.concatenate((scenes[0] + left, scenes[0] + right, scenes[1] + left, scenes[1] + right))
    episodes, other = np.array([0, 0, 1, 1]), np.array([3, 2, 1, 0])
    turned = after[[1, 0, 3, 2]]
    assert in_own_scene(turned, after, episodes, other).all()
    assert not in_own_scene(after[other], after, episodes, other).any()
    assert in_own_scene(after, after, np.zeros(4, np.int64), other).all()


def test_labels_are_asked_for_where_codes_disagree_and_of_each_code_the_surest_first():
    codes, distance = np.repeat([0, 1, 2], [16, 12, 1]), np.linspace(1, 0, 29).astype(np.float32)
    actions = np.concatenate([np.arange(16) % 3, np.full(12, 3), [4]])
    chosen = ask_for(codes, distance, actions, 8)
    assert codes[chosen].tolist() == [0, 1, 0, 0, 0, 0, 0, 1]
    assert chosen[codes[chosen] == 0].tolist() == [15, 14, 13, 12, 11, 10]
    assert sorted(ask_for(codes, distance, actions, 29).tolist()) == list(range(29))


def test_what_was_not_asked_for_has_no_influence_on_what_is_asked_for_next():
    codes, distance = np.repeat([0, 1], [16, 12]), np.linspace(1, 0, 28).astype(np.float32)
    actions = np.arange(28) % 3
    chosen = ask_for(codes, distance, actions, 9)
    other = (actions + 1) % 3
    other[chosen] = actions[chosen]
    assert ask_for(codes, distance, other, 9).tolist() == chosen.tolist()


def test_a_map_takes_majorities_and_gives_a_tie_to_an_action_that_no_other_code_stands_for():
    codes, actions = np.array([0, 0, 0, 2, 2, 3]), np.array([1, 1, 0, 1, 2, 0])
    of, confidence = fitted_map(codes, actions, 5)
    assert of.tolist() == [1, -1, 2, 0, -1]
    np.testing.assert_allclose(confidence, [2 / 3, 0, 0.5, 1, 0])


def test_actions_that_are_not_discrete_and_too_few_episodes_are_refused():
    with pytest.raises(SpaceError, match="found actions None, expected one Discrete"):
        action_report(Told(), shaded_logs(actions=False))
    other = Told()
    other.config.action_space = space_to_json(spaces.Discrete(7))
    with pytest.raises(SpaceError, match=r"found labels of Discrete\(4\), expected Discrete\(7\) as in the logs"):
        action_report(other, STORE)
    with pytest.raises(DataError, match="found 3 episodes; expected 5 at least"):
        action_report(Told(), shaded_logs(episodes=3))
