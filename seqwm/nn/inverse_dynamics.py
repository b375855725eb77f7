"""What was done between two frames: convolutions, then the largest and the mean over all places.

That the head sees no places is what makes it see moves: a move of a sprite looks the same wherever it happens, and has
to be learned once instead of once for each place. Where actions are relative to who acts, as turning left is, the head
need not see directions either: then the largest and the mean are over the frames as they are and turned by quarters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InverseDynamics(nn.Module):
    """Features of what led from the last but one of several frames to the last.

    Args:
        frames: that are seen.
        colours: channels of a frame.
        outputs: features.
        width: channels of the convolutions.
        unshuffle: pixels along each side of the squares that become channels.
        changed: of 2, the range of a pixel: squares where none changes by more, and that are not next to one that does,
            are blotted out. Without labels to say what counts, most of what tells frames apart is otherwise the scene,
            and not what is done in it. All is seen where None.
        around: squares that change and those next to them are seen whole; the pixels that change alone without.
        any_direction: a step looks the same in frames that are turned by 90, 180 and 270 degrees.
    """

    def __init__(
        self,
        frames: int,
        colours: int,
        outputs: int,
        width: int,
        unshuffle: int = 1,
        *,
        changed: float | None = None,
        around: bool = True,
        any_direction: bool = False,
    ) -> None:
        super().__init__()
        self.unshuffle, self.changed, self.around, self.any_direction = unshuffle, changed, around, any_direction
        near = 3 if unshuffle < 4 else 1  # a large square is looked at by itself first, at a ninth of the work
        self.enter = nn.Conv2d((frames + 1) * colours * unshuffle**2, width, near, padding=near // 2)
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, stride=stride, padding=1) for stride in (2, 1))
        self.leave = nn.Linear(2 * width, outputs)
        for convolution in (self.enter, *self.convolutions):
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.zeros_(convolution.bias)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames [B, F, C, H, W] in -1 .. 1 to features [B, outputs]."""
        out: Tensor = self.leave(self.pooled(frames))
        return out

    def pooled(self, frames: Tensor) -> Tensor:
        """The largest and the mean over all places, [B, 2 width], of which the outputs are a linear map."""
        change = frames[:, -1] - frames[:, -2]
        x = torch.cat((frames.flatten(1, 2), change), 1)
        turned = range(4 if self.any_direction else 1)
        seen = [self._seen(torch.rot90(x, by, (2, 3)), torch.rot90(change, by, (2, 3))) for by in turned]
        most = torch.stack([each.amax((2, 3)) for each in seen]).amax(0)
        mean = torch.stack([each.mean((2, 3)) for each in seen]).mean(0)
        return torch.cat((most, mean), -1)

    def _seen(self, x: Tensor, change: Tensor) -> Tensor:
        """What the convolutions see at every place of frames x [B, .., H, W], whose last step is `change`."""
        if self.changed is not None:
            seen = (change.abs().amax(1, keepdim=True) > self.changed).float()
            x = x * (with_neighbours(seen, self.unshuffle) if self.around else seen)
        x = F.pixel_unshuffle(x, self.unshuffle)
        x = F.relu(self.enter(x.contiguous(memory_format=torch.channels_last)))
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
        return x


def with_neighbours(pixels: Tensor, side: int) -> Tensor:
    """Pixels [B, 1, H, W] that are 0 or 1: 1 in each square of `side` pixels that holds a 1, and next to it."""
    squares = F.max_pool2d(F.max_pool2d(pixels, side), 3, stride=1, padding=1)
    return F.interpolate(squares, scale_factor=float(side), mode="nearest")
