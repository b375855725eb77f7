"""Proximal policy optimisation: advantages by their definition, the clipped loss by hand, a round as it was played."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seqwm.control.proximal import DISCOUNT, LAMBDA, Played, played, proximal_loss, stacked
from seqwm.envs.make import make_vector


class Drawn:
    """Draws one of three actions from torch's own generator, with probabilities that the paddle's picture names."""

    def initial(self, lanes):
        return {"lane": torch.arange(lanes)}

    def act(self, state, observation, reward, first):
        return torch.distributions.Categorical(logits=thought(observation[:, None])[0]).sample(), state


def thought(frames):
    bright = frames.float().flatten(1).mean(1)
    return torch.stack([bright * 0.01, bright * 0.02, bright * 0.0], 1).log_softmax(-1), bright * 0.01


@pytest.fixture
def catch():
    vector = make_vector("seqwm/Catch-v0", 4)
    yield vector
    vector.close()


def test_advantages_are_those_of_generalised_advantage_estimation(catch):
    torch.manual_seed(0)
    found = played(catch, Drawn(), thought, 4 * 25, 1, seed=5)
    # 4 lanes of one whole episode of 15 steps and one of 10 that was cut; each stands in one piece
    pieces = [(0, 15), (15, 30), (30, 45), (45, 60), (60, 70), (70, 80), (80, 90), (90, 100)]
    raw = torch.zeros(100)
    for begin, end in pieces:
        values = thought(found.frames[begin:end])[1].double()
        whole = end - begin == 15
        # the value behind a cut is that of a frame which is no row; read it off the last return
        behind = 0.0 if whole else float(found.returns[end - 1]) / DISCOUNT
        rewards = torch.zeros(end - begin, dtype=torch.float64)
        if whole:
            rewards[-1] = found.returns[end - 1]
            assert abs(rewards[-1]) == 1
        ahead = torch.cat([values[1:], torch.tensor([behind], dtype=torch.float64)])
        delta = rewards + DISCOUNT * ahead - values
        for t in range(end - begin):
            weights = (DISCOUNT * LAMBDA) ** torch.arange(end - begin - t, dtype=torch.float64)
            raw[begin + t] = (weights * delta[t:]).sum()
    torch.testing.assert_close(found.advantages, (raw - raw.mean()) / raw.std(), atol=1e-4, rtol=1e-4)
    assert found.mean_return == pytest.approx(float(found.returns[[14, 29, 44, 59]].mean()))


def test_what_was_thought_of_an_action_is_what_the_policy_drew_it_with(catch):
    torch.manual_seed(0)
    found = played(catch, Drawn(), thought, 60, 1, seed=5)
    again = thought(found.frames)[0].gather(1, found.actions[:, None])[:, 0]
    torch.testing.assert_close(found.log_probabilities, again)


def test_the_loss_is_the_clipped_one():
    before = torch.tensor([0.5, 0.5, 0.5, 0.5]).log()
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    now = torch.tensor([[0.9, 0.1], [0.55, 0.45], [0.9, 0.1], [0.1, 0.9]]).log().requires_grad_()
    rows = Played(torch.zeros(4), torch.zeros(4, dtype=torch.long), before, advantages, torch.ones(4), 0.0)
    loss, figures = proximal_loss(now, torch.full((4,), 0.5), rows)
    # ratios 1.8, 1.1, 1.8, 0.2: clipped where that makes the gain smaller
    gain = (1.2 + 1.1 - 1.8 - 0.8) / 4
    entropy = float(-(now.exp() * now).detach().sum(-1).mean())
    assert figures["gain"] == pytest.approx(gain)
    assert float(loss.detach()) == pytest.approx(-gain + 0.5 * 0.25 - 0.01 * entropy)
    loss.backward()
    assert now.grad is not None


def test_stacks_hold_the_last_frames_and_copies_before_the_first():
    frames = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    assert stacked(frames, 3)[:, :, 0, 0, 0].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]


def test_minibatches_hold_every_transition_four_times():
    rows = Played(*(torch.arange(300) for _ in range(5)), 0.0)
    seen = torch.cat([part.actions for part in rows.minibatches(torch.Generator().manual_seed(0))])
    assert seen.sort().values.tolist() == sorted(list(range(300)) * 4)
