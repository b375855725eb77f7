from __future__ import annotations

import torch
from torch import nn

from seqwm.nn.optimisers import LaProp, clip_to_weights


def test_laprop_is_the_momentum_of_gradients_over_their_root_mean_square():
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimiser = LaProp([weight], lr=0.1, betas=(0.9, 0.99), eps=1e-20, clip=None)
    gradients = [torch.tensor([0.5, 1.0]), torch.tensor([-0.2, 3.0]), torch.tensor([0.1, 0.0])]
    expected, mean, square = weight.detach().clone(), torch.zeros(2), torch.zeros(2)
    for step, gradient in enumerate(gradients, 1):
        weight.grad = gradient.clone()
        optimiser.step()
        square = 0.99 * square + 0.01 * gradient**2
        mean = 0.9 * mean + 0.1 * gradient / (square / (1 - 0.99**step)).sqrt()
        expected -= 0.1 * mean / (1 - 0.9**step)
        torch.testing.assert_close(weight.detach(), expected)


def test_the_first_step_of_laprop_has_the_size_of_the_rate_whatever_the_gradient():
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([1e-8, -1e8, 0.0])
    LaProp([weight], lr=0.25, clip=None).step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.25, 0.25, 0.0]))


def test_gradients_are_clipped_to_a_share_of_the_norm_of_their_weight():
    weights = [torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0]), torch.zeros(2), torch.ones(2)]
    gradients = [torch.tensor([0.0, 10.0]), torch.tensor([0.1, 0.2]), torch.tensor([1.0, 0.0]), torch.zeros(2)]
    clip_to_weights(gradients, weights, 0.3)
    torch.testing.assert_close(gradients[0], torch.tensor([0.0, 1.5]))
    torch.testing.assert_close(gradients[1], torch.tensor([0.1, 0.2]))
    torch.testing.assert_close(gradients[2], torch.tensor([0.3e-3, 0.0]))
    torch.testing.assert_close(gradients[3], torch.zeros(2))


def test_a_restored_optimiser_goes_on_as_before():
    def run(steps, restart):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.ones(4))
        optimiser = LaProp([weight], lr=0.01)
        for step in range(steps):
            if step == restart:
                state = optimiser.state_dict()
                optimiser = LaProp([weight], lr=0.01)
                optimiser.load_state_dict(state)
            weight.grad = torch.sin(weight.detach() + step)
            optimiser.step()
        return weight.detach()

    assert torch.equal(run(6, None), run(6, 3))
