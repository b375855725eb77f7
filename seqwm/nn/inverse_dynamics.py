"""What was done between two frames: convolutions, then the largest and the mean over all places.

That the head sees no places is what makes it see moves: a move of a sprite looks the same wherever it happens, and has
to be learned once instead of once for each place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANGED = 0.1
"""Of 2, the range of a pixel in a network: pixels that change by more count as changing."""


class InverseDynamics(nn.Module):
    """Features of what led from the last but one of several frames to the last.

    Args:
        frames: that are seen.
        colours: channels of a frame.
        outputs: features.
        width: channels of the convolutions.
        unshuffle: pixels along each side that become channels.
        only_changes: what stands still, and is not next to what does not, is blotted out. Without labels to say what
            counts, most of what tells frames apart is otherwise the scene, and not what is done in it.
    """

    def __init__(
        self, frames: int, colours: int, outputs: int, width: int, unshuffle: int = 1, *, only_changes: bool = False
    ) -> None:
        super().__init__()
        self.unshuffle, self.only_changes = unshuffle, only_changes
        self.enter = nn.Conv2d((frames + 1) * colours * unshuffle**2, width, 3, padding=1)
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, stride=stride, padding=1) for stride in (2, 1))
        self.leave = nn.Linear(2 * width, outputs)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames [B, F, C, H, W] in -1 .. 1 to features [B, outputs]."""
        out: Tensor = self.leave(self.pooled(frames))
        return out

    def pooled(self, frames: Tensor) -> Tensor:
        """The largest and the mean over all places, [B, 2 width], of which the outputs are a linear map."""
        change = frames[:, -1] - frames[:, -2]
        if self.only_changes:
            near = 2 * self.unshuffle + 1
            changed = (change.abs().amax(1, keepdim=True) > CHANGED).float()
            for kernel in ((near, 1), (1, near)):  # the same as both at once, and much less work
                changed = F.max_pool2d(changed, kernel, stride=1, padding=(kernel[0] // 2, kernel[1] // 2))
            frames = frames * changed[:, None]
        x = torch.cat((frames.flatten(1, 2), change), 1)
        x = F.relu(self.enter(F.pixel_unshuffle(x, self.unshuffle).contiguous(memory_format=torch.channels_last)))
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
        return torch.cat((x.amax((2, 3)), x.mean((2, 3))), -1)
