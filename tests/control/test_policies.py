"""Policies that need no learning: scripted players, and those who do some things at random."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seqwm.control.collect import collect
from seqwm.control.policies import ScriptedPolicy
from seqwm.core.errors import UnfitEnvironmentError
from seqwm.envs.scripted import scripted_player


def catching(**options):
    player = ScriptedPolicy(scripted_player("seqwm/Catch-v0"))
    return collect("seqwm/Catch-v0", player, 1500, None, lanes=4, progress=False, **options)


def test_the_scripted_player_catches_every_ball():
    store = catching()
    assert store.returns[store.terminated].tolist() == [1.0] * 100


def test_a_share_of_the_actions_is_drawn_and_the_rest_are_the_policys_own():
    player = scripted_player("seqwm/Catch-v0")
    store = catching(random=0.3)
    other = []
    for episode in store.episodes():
        frames = np.asarray(episode.observations)[:-1]
        before = np.concatenate([frames[:1], frames[:-1]])
        other.append(player.choose(before, frames) != episode.actions)
    # two in three of the drawn actions are other ones than the player's
    assert abs(np.concatenate(other).mean() - 0.2) < 0.04
    assert store.provenance["random"] == 0.3


def test_what_is_drawn_in_a_lane_does_not_depend_on_the_others():
    first, second = (catching(random=0.5, seed=3) for _ in range(2))
    assert first.fingerprint == second.fingerprint


def test_a_share_of_random_actions_outside_0_and_1_is_refused():
    with pytest.raises(ValueError, match=r"share of random actions: found 1\.5, expected a number from 0 to 1"):
        catching(random=1.5)


def test_an_environment_without_a_scripted_player_is_refused_by_name():
    with pytest.raises(UnfitEnvironmentError, match="CartPole-v1: has no scripted player; expected seqwm/Catch-v0"):
        scripted_player("CartPole-v1")


def test_the_player_acts_in_a_batch_as_it_does_alone():
    store = catching()
    frames = torch.from_numpy(np.concatenate([np.asarray(store.episode(n).observations)[:3] for n in range(4)]))
    player = ScriptedPolicy(scripted_player("seqwm/Catch-v0"))
    first = torch.ones(12, dtype=torch.bool)
    together, _ = player.act(player.initial(12), frames, torch.zeros(12), first)
    alone = [player.act(player.initial(1), frame[None], torch.zeros(1), first[:1])[0] for frame in frames]
    assert torch.equal(together, torch.cat(alone))
