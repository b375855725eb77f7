"""The autoencoder of frames: bounds, shapes, and that it learns."""

from __future__ import annotations

import pytest
import torch

from seqwm.nn.frame_autoencoder import FrameAutoencoder, LatentOptions
from seqwm.nn.frames import from_bytes
from tests.fakes.frames import moving_logs


@pytest.mark.parametrize("factor", [2, 4])
def test_latents_are_bounded_and_a_frame_has_the_same_ones_in_any_window(factor):
    torch.manual_seed(0)
    network = FrameAutoencoder(3, LatentOptions(factor=factor, channels=5, width=8)).eval()
    frames = torch.rand(2, 4, 3, 16, 24) * 2 - 1
    latents = network.encode(frames)
    assert latents.shape == (2, 4, 5, 16 // factor, 24 // factor)
    assert latents.abs().max() <= 1
    torch.testing.assert_close(network.encode(frames[:1, 2:3]), latents[:1, 2:3], rtol=1e-4, atol=1e-5)
    assert network.decode(latents).shape == frames.shape


def test_squares_of_two_pixels_come_back():
    store = moving_logs()
    windows = store.windows(2, 24, 0)
    torch.manual_seed(0)
    network = FrameAutoencoder(3, LatentOptions(factor=2, channels=6, width=24))
    optimiser = torch.optim.AdamW(network.parameters(), 4e-3)
    for step in range(250):
        _, missed = network(from_bytes(windows.batch(step).observations))
        missed.mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    frames = from_bytes(windows.batch(1000).observations)
    error = (network.decode(network.encode(frames)) - frames).square().mean()
    assert error < 0.5 * frames.var((-1, -2), unbiased=False).mean()


def test_a_factor_that_is_no_power_of_two_is_refused():
    with pytest.raises(ValueError, match="factor: found 6, expected a power of two"):
        LatentOptions(factor=6)
