"""A latent action model: what was done between frames as one of a few codes, learned from frames alone.

Bruce et al., "Genie: Generative Interactive Environments", 2024; Schmidt and Jiang, "Learning to Act without Actions"
(LAPO), 2024.

An inverse model (`seqwm.nn.inverse_dynamics`) looks at the last frames and the next one and says what lies between them
in a few numbers, each rounded to a few levels (`seqwm.nn.finite_scalar`): the code. A forward model (`seqwm.nn.unet`)
gets the last frames and the code, and must give the next frame. All that it cannot know from the past has to pass
through the code, and the code is too small for a frame: it becomes the action.

Codes collapse easily: most of what tells two frames apart is the scene, and a forward model that has learned to do
without codes gives the inverse model no reason to look elsewhere. Hence the inverse model sees only what changes, and
not where; each number is standardised over the batch before it is rounded; and pixels that change weigh more in the
loss. What changes nothing (waiting, and a move that a wall stops) is one code, for nobody could tell it apart.

Codes are names without meaning until a few labels give them one: `mapped_action` and `mapped_confidence` hold the true
action that each code stands for (`seqwm.evaluation.action_report` fits them), and travel with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from seqwm.core.errors import DataError, SpaceError
from seqwm.data.problems import Problem
from seqwm.nn.finite_scalar import FiniteScalar
from seqwm.nn.frames import from_bytes
from seqwm.nn.inverse_dynamics import CHANGED, InverseDynamics
from seqwm.nn.unet import UNet

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore


class LatentActionModel(nn.Module):
    """Frames to codes, and frames and a code to the next frame.

    Args:
        colours: channels of a frame.
        levels: of each number of a code; their product is how many codes there are.
        context: frames that the next one is foretold from.
        channels: of the levels of the forward model.
        width: channels of the inverse model.
        unshuffle: pixels along each side that become channels.
        change_weight: how much more a pixel that changes weighs than one that does not.
    """

    mapped_action: Tensor
    mapped_confidence: Tensor

    def __init__(
        self,
        colours: int,
        levels: Sequence[int],
        context: int,
        channels: Sequence[int],
        width: int,
        unshuffle: int,
        change_weight: float,
    ) -> None:
        super().__init__()
        self.reach, self.unshuffle, self.change_weight = context + 1, unshuffle, change_weight
        self.inverse = InverseDynamics(self.reach, colours, len(levels), width, unshuffle, only_changes=True)
        self.standardise = nn.BatchNorm1d(len(levels), affine=False)
        self.quantise = FiniteScalar(levels)
        self.condition = nn.Sequential(nn.Linear(len(levels), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.forward_model = UNet(context * colours, colours, channels, 1, width, unshuffle)
        self.register_buffer("mapped_action", torch.full((self.codes,), -1))
        self.register_buffer("mapped_confidence", torch.zeros(self.codes))

    @property
    def codes(self) -> int:
        """How many there are: 0 .. codes - 1."""
        return int(self.quantise.size)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What led to the last of frames [B, reach, C, H, W] in -1 .. 1.

        Returns:
            The standardised numbers before they are rounded [B, D], the point they are rounded to [B, D] and its code,
            int64 [B].
        """
        numbers: Tensor = self.standardise(self.inverse(frames).float())
        return numbers, *self.quantise(numbers)

    def foretell(self, frames: Tensor, point: Tensor) -> Tensor:
        """The frame that follows frames [B, context, C, H, W] where `point` (of a code, [B, D]) is done."""
        change: Tensor = self.forward_model(frames.flatten(1, 2), self.condition(point))
        return frames[:, -1] + change.float()

    def loss(self, frames: Tensor, whole: Tensor, *, told: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted squared error of the last of frames [B, reach, C, H, W], over those that are `whole` (bool [B]).

        Unless the forward model is `told` the code, it learns what follows by itself. Codes that are there from the
        start may be spent on that, on what moves most.

        Returns:
            The loss, the code of each step, int64 [B], and how many codes are in use, of the batch.
        """
        before, after = frames[:, :-1], frames[:, -1]
        _, point, code = self(frames)
        if not told:
            point = torch.zeros_like(point)
        weight = weight_of_change(before[:, -1], after, self.change_weight)
        error = (weight * (self.foretell(before, point) - after).square()).mean((1, 2, 3))
        loss = (error * whole).sum() / whole.sum().clamp_min(1)
        share = torch.bincount(code, minlength=self.codes) / len(code)
        return loss, code, (-torch.special.xlogy(share, share).sum()).exp().detach()

    @torch.no_grad()
    def infer(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Codes int64 [B] of the step to the last of frames uint8 [B, reach, H, W, C]; the numbers, [B, D]."""
        numbers, _, code = self(from_bytes(frames))
        return code, numbers

    def code_of(self, action: Tensor) -> Tensor:
        """The code that stands for each true action with the most confidence, int64 [...].

        Raises:
            SpaceError: no code stands for one of them.
        """
        fits = self.mapped_action == action.unsqueeze(-1)
        if not bool(fits.any(-1).all()):
            missing = sorted(set(action[~fits.any(-1)].tolist()))
            known = sorted(set(self.mapped_action[self.mapped_action >= 0].tolist()))
            raise SpaceError(
                f"no code stands for the actions {missing}, expected some of {known}; fit the map with more labels "
                "(`seqwm dream RUN --labels 128`), or train longer"
            )
        chosen: Tensor = torch.where(fits, self.mapped_confidence, -1.0).argmax(-1)
        return chosen


def check_lengths(store: TrajectoryStore, context: int, option: str = "model.context") -> None:
    """Refuse a store none of whose episodes holds `context` frames and one more; `option` is what says how many.

    Raises:
        DataError: saying how many there are.
    """
    longest = int(store.lengths.max(initial=0))
    if longest <= context:
        found, expected = f"{longest} steps in the longest episode", f"{context + 1} for {option} {context}"
        mend = f"give longer clips, or lower {option}"
        raise DataError([Problem("short-episodes", found, expected, mend, str(store.path))])


def weight_of_change(before: Tensor, after: Tensor, change_weight: float) -> Tensor:
    """Weights [B, 1, H, W] of the pixels of frames [B, C, H, W], more for those that change; 1 in the mean."""
    weight = 1 + change_weight * ((after - before).abs().amax(1, keepdim=True) > CHANGED)
    return weight / weight.mean()
