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

Where much moves by itself, as ball and opponent do in Pong, or answers late, what changes is still most of the scene.
With `surprise` the inverse model is shown the next frame beside the one that the forward model foretells when it is
told no code, and nothing else: what came otherwise than foretold is what somebody did.

Codes are names without meaning until a few labels give them one: `mapped_action` and `mapped_confidence` hold the true
action that each code stands for (`seqwm.evaluation.action_report` fits them), and travel with the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from seqwm.core.errors import DataError, SpaceError
from seqwm.data.problems import Problem
from seqwm.nn.finite_scalar import FiniteScalar
from seqwm.nn.frames import from_bytes
from seqwm.nn.inverse_dynamics import InverseDynamics, with_neighbours
from seqwm.nn.unet import UNet

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore

_HEARD = 0.1  # deviation of the weights from a code to the scales and shifts of the forward model's layers
_CHANGES = 3.0  # times: from one frame to the next little changes
_UNTOLD = 4  # of so many windows the forward model is told no code in one, to go on learning what follows by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentOptions:
    """What every method with latent actions is asked in its recipe.

    Attributes:
        levels: of each number of a code; their product is how many codes there are.
        context: frames that the next one is foretold from. With two, what flies on by itself needs no code.
        channels: of the levels of the forward model.
        width: channels of the inverse model.
        unshuffle: pixels along each side that become channels; as many as the smallest thing that moves is wide.
        changed: of 2, the range of a pixel: pixels that change by more count as changing.
        change_weight: how much more they weigh than those that do not.
        around: the inverse model sees what is next to pixels that change, too. Without, what a scene shows of where
            somebody is and faces is no part of what was done.
        any_direction: actions are relative to who acts: a step has the same code whichever way the scene is turned.
        given: of the frames before the last, the forward model sees 'frames', or the 'changes' from one to the next.
        surprise: the inverse model sees the next frame, and the one that the forward model foretells without a code, in
            place of those before it; what it must differ in to be looked at is `changed`.
        alone: updates, the first ones, in which the forward model is told no code and learns what follows by itself.
            Codes that are there from the start may be spent on that, on what moves most.
        fixed: updates after those in which it hears codes, and the inverse model stays as it began, with numbers that
            have nothing to do with each other. Where moves look different enough to be told apart by convolutions that
            have learned nothing, codes that are learned at once are merged by a forward model that does not know yet
            what to do with them.
    """

    levels: tuple[int, ...] = (2, 2, 2)
    context: int = 2
    channels: tuple[int, ...] = (32, 32)
    width: int = 64
    unshuffle: int = 1
    changed: float = 0.1
    change_weight: float = 20.0
    around: bool = True
    any_direction: bool = False
    given: Literal["frames", "changes"] = "frames"
    surprise: bool = False
    alone: int = 0
    fixed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("context", 1), ("width", 1), ("unshuffle", 1), ("alone", 0), ("fixed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least {least}")
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels: found {list(self.channels)}, expected one positive number for each level")
        if self.change_weight < 0:
            raise ValueError(f"change_weight: found {self.change_weight}, expected zero or more")
        if not 0 <= self.changed < 2:
            raise ValueError(f"changed: found {self.changed}, expected zero or more, below 2, the range of a pixel")
        if self.given not in ("frames", "changes"):
            raise ValueError(f"given: found {self.given!r}, expected 'frames' or 'changes'")
        FiniteScalar(self.levels)
        if self.surprise and any(level % 2 for level in self.levels):
            raise ValueError(
                f"levels: found {list(self.levels)}, expected even numbers with model.surprise: the middle "
                "says that nothing is told"
            )

    @property
    def divided(self) -> int:
        """Pixels along each side of a frame are a multiple of this."""
        return int(self.unshuffle * 2 ** (len(self.channels) - 1))


class LatentActionModel(nn.Module):
    """Frames to codes, and frames and a code to the next frame.

    Args:
        colours: channels of a frame.
        options: see there.
    """

    mapped_action: Tensor
    mapped_confidence: Tensor

    def __init__(self, colours: int, options: LatentOptions) -> None:
        super().__init__()
        self.options, self.reach, numbers, width = options, options.context + 1, len(options.levels), options.width
        self.inverse = InverseDynamics(
            2 if options.surprise else self.reach, colours, numbers, width, options.unshuffle,
            changed=options.changed, around=options.around, any_direction=options.any_direction,
        )  # fmt: skip
        self.standardise = nn.BatchNorm1d(numbers, affine=False)
        self.quantise = FiniteScalar(options.levels)
        self.condition = nn.Sequential(nn.Linear(numbers, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.forward_model = UNet(options.context * colours, colours, options.channels, 1, width, options.unshuffle)
        # Codes are learned by what they change: a network that hardly hears them at first gives no reason to use them.
        nn.init.normal_(self.forward_model.modulate.weight, std=_HEARD)
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
        numbers: Tensor = self.standardise(self.inverse(self._shown(frames)).float())
        return numbers, *self.quantise(numbers)

    def pooled(self, frames: Tensor) -> Tensor:
        """What the inverse model's numbers are a linear map of, for the same frames, [B, 2 width]."""
        return self.inverse.pooled(self._shown(frames))

    def _shown(self, frames: Tensor) -> Tensor:
        """What the inverse model sees of frames [B, reach, C, H, W]: those, or what was foretold and what came."""
        if not self.options.surprise:
            return frames
        with torch.no_grad():
            return torch.stack((self.foretell(frames[:, :-1]), frames[:, -1]), 1)

    def foretell(self, frames: Tensor, point: Tensor | None = None) -> Tensor:
        """What follows frames [B, context, C, H, W] where `point` (of a code, [B, D]) is done, or by itself."""
        if point is None:
            point = frames.new_zeros(len(frames), len(self.options.levels))
        given = frames
        if self.options.given == "changes":
            given = torch.cat((frames.diff(dim=1) * _CHANGES, frames[:, -1:]), 1)
        change: Tensor = self.forward_model(given.flatten(1, 2), self.condition(point))
        return frames[:, -1] + change.float()

    def loss(self, frames: Tensor, whole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted squared error of the last of frames [B, reach, C, H, W], over those that are `whole` (bool [B]).

        In the first `alone` updates the forward model is told no code, and in the `fixed` ones after them the inverse
        model hears nothing of what codes are good for. With `surprise` some windows stay without a code.

        Returns:
            The loss, the code of each step, int64 [B], and how many codes are in use, of the batch.
        """
        if self.training and self.options.fixed and not self._updates():
            self._spread(frames[whole])
        before, after = frames[:, :-1], frames[:, -1]
        _, point, code = self(frames)
        updates, alone = self._updates() if self.training else math.inf, self.options.alone
        if updates <= alone:
            point = torch.zeros_like(point)
        elif updates <= alone + self.options.fixed:
            point = point.detach()
        if self.training and self.options.surprise:
            told = torch.arange(len(point), device=point.device) % _UNTOLD > 0
            point = point * told[:, None]
        error = (self.weight(before[:, -1], after) * (self.foretell(before, point) - after).square()).mean((1, 2, 3))
        loss = (error * whole).sum() / whole.sum().clamp_min(1)
        share = torch.bincount(code, minlength=self.codes) / len(code)
        return loss, code, (-torch.special.xlogy(share, share).sum()).exp().detach()

    def weight(self, before: Tensor, after: Tensor) -> Tensor:
        """Weights [B, 1, H, W] of the pixels of frames [B, C, H, W], more for those that change; 1 in the mean.

        With `surprise` more for those around, too: where only what does change weighs more, it is dearer to miss a
        change than to foretell one that does not come, and what is foretold is no longer what is to be expected. And in
        the mean of each frame then, or the few in which much changes at once (a point is scored) would be most of the
        loss.
        """
        changed = ((after - before).abs().amax(1, keepdim=True) > self.options.changed).float()
        if self.options.surprise:
            changed = with_neighbours(changed, self.options.unshuffle)
        weight = 1 + self.options.change_weight * changed
        return weight / weight.mean((1, 2, 3) if self.options.surprise else None, keepdim=True)

    @torch.no_grad()
    def _spread(self, frames: Tensor) -> None:
        """Begin with numbers that have nothing to do with each other, of frames [B, reach, C, H, W].

        They are the principal components of what the convolutions see, scaled to the same deviation and turned by
        chance. The moves that stay apart while codes are fixed are those that are apart from the start, and a random
        map puts two of them on the same side of all its planes in one model of three.
        """
        seen = self.pooled(frames).float()
        numbers = len(self.options.levels)
        if len(seen) <= numbers:
            return
        mean = seen.mean(0)
        _, deviations, components = torch.linalg.svd(seen - mean, full_matrices=False)
        scaled = components[:numbers] / deviations[:numbers, None].clamp_min(1e-6) * len(seen) ** 0.5
        turned = torch.linalg.qr(torch.randn(numbers, numbers, device=seen.device))[0] @ scaled
        self.inverse.leave.weight.copy_(turned)
        self.inverse.leave.bias.copy_(-turned @ mean)

    def _updates(self) -> int:
        """Of training so far, this one counted: what the standardisation has seen, which is saved with the weights."""
        assert self.standardise.num_batches_tracked is not None
        return int(self.standardise.num_batches_tracked)

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
