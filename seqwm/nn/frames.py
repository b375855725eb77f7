"""What worlds of frames share: how frames and actions enter them, and what reads reward and end off frames.

In data a frame is uint8 [H, W, C]; in a network float32 [C, H, W] in -1 .. 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from gymnasium import Space
from torch import Tensor, nn

from seqwm.core.errors import SpaceError
from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.core.tree import flatten
from seqwm.core.types import Batch, State
from seqwm.nn.leaves import ActionCodec

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore

_PAIRS = 1024  # of frames, that the size of changes is measured on
_REWARD = 0.3  # of its loss: a rare reward is many deviations away, and all losses share one gradient clip


class Outcome(nn.Module):
    """Reward and end from the last frames, the actions that followed them, and the frame that those led to.

    Convolutions, then the largest and the mean over all places: what counts is that something happens, not where.

    Args:
        rows: frames that are read before the one that is led to.
        colours: channels of a frame.
        actions: features of an action.
        width: features of the hidden layer.
        unshuffle: pixels along each side that become channels.
        reward_mean, reward_deviation: of the data; a deviation of zero stands for data without rewards.
        end_weight: what a window that ends where its episode does counts in the losses, for where those are drawn more
            often than they are (`end_weight`); what is learned is then the same, of more examples.
    """

    def __init__(
        self,
        rows: int,
        colours: int,
        actions: int,
        width: int,
        unshuffle: int,
        reward_mean: float,
        reward_deviation: float,
        end_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.end_weight = end_weight
        self.unshuffle, self.reward_mean, self.reward_deviation = unshuffle, reward_mean, reward_deviation
        known = rows * (actions + 1)
        self.enter = nn.Conv2d((rows + 1) * colours * unshuffle**2 + known, width // 2, 3, padding=1)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width // 2, width // 2, 3, stride=stride, padding=1) for stride in (1, 2)
        )
        self.hidden = nn.Linear(2 * (width // 2) + known, width)
        self.said = nn.Linear(width, 2)
        for part in (self.enter, *self.convolutions, self.hidden):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            nn.init.zeros_(part.bias)
        nn.init.zeros_(self.said.weight)

    def forward(self, frames: Tensor, actions: Tensor, known: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """The standardised reward and the logit of the end, [B] each.

        Args:
            frames: [B, rows, C, H, W].
            actions: features [B, rows, A].
            known: whether there is an action, bool [B, rows].
            following: the frame that the last action led to, [B, C, H, W].
        """
        x = F.pixel_unshuffle(torch.cat((frames.flatten(1, 2), following), 1), self.unshuffle)
        features = known_features(actions, known).flatten(1)
        planes = features[:, :, None, None].expand(-1, -1, *x.shape[2:])
        x = F.silu(self.enter(torch.cat((x, planes), 1).contiguous(memory_format=torch.channels_last)))
        for convolution in self.convolutions:
            x = F.silu(convolution(x))
        hidden = F.silu(self.hidden(torch.cat((x.amax((2, 3)), x.mean((2, 3)), features), -1)))
        reward, end = self.said(hidden).float().unbind(-1)
        return reward, end

    def losses(self, recent: Recent, batch: Batch, following: Tensor) -> dict[str, Tensor]:
        """Of the end and, where there are rewards, of the reward at the last valid row of each window.

        Args:
            recent: the windows' last rows.
            batch: the windows.
            following: frames behind them, [B, C, H, W].
        """
        reward, end = self(from_bytes(recent.frames), recent.actions, recent.known, following)
        last = batch.valid.sum(1, keepdim=True) - 1
        ended, cut = (flags.gather(1, last)[:, 0] for flags in (batch.terminated, batch.truncated))
        weight = torch.where(ended | cut, self.end_weight, 1.0)
        weight = weight / weight.sum()
        losses = {"end": F.binary_cross_entropy_with_logits(end, ended.float(), weight, reduction="sum")}
        if batch.rewards is not None and self.reward_deviation:
            wanted = (batch.rewards.gather(1, last)[:, 0] - self.reward_mean) / self.reward_deviation
            losses["reward"] = _REWARD * (weight * (reward - wanted).square()).sum()
        return losses

    def draw(
        self, frames: Tensor, actions: Tensor, known: Tensor, following: Tensor, chance: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The mean reward and whether it ends, [B] each; `chance` is uniform [B], the likelier happens without it."""
        reward, end = self(frames, actions, known, following)
        return reward * self.reward_deviation + self.reward_mean, end.sigmoid() > (0.5 if chance is None else chance)


def end_weight(ends: float, mean_length: float) -> float:
    """One over how much likelier windows are to end with an episode where the share `ends` of them is made to.

    Of R rows in E episodes, `mean_length` R / E, one at an end is drawn with (1 - ends) / R + ends / E, any other with
    (1 - ends) / R.
    """
    return 1 / (1 + ends / (1 - ends) * mean_length)


def known_features(actions: Tensor, known: Tensor) -> Tensor:
    """Features of actions [..., A], zero where there is none, and whether there is, [..., A + 1]."""
    mask = known.unsqueeze(-1).float()
    return torch.cat((actions * mask, mask), -1)


def image_of(method: str, space: Space[Any], multiple: int) -> tuple[str, tuple[int, int, int]]:
    """The path and shape [H, W, C] of the one image that is observed.

    Raises:
        SpaceError: none, more than one, or sides that are no multiples of `multiple`.
    """
    leaves = leaf_spaces(space)
    path, leaf = next(iter(leaves.items()))
    if len(leaves) != 1 or not is_image(leaf):
        raise SpaceError(f"found observations {space}; {method} expects one image, uint8 [H, W, C]")
    height, width, colours = leaf.shape or ()
    if height % multiple or width % multiple:
        raise SpaceError(
            f"frames of {height} x {width}: {method} with these options needs sides that are multiples of {multiple}; "
            "resize the frames, or divide them less often"
        )
    return path, (height, width, colours)


@dataclass(frozen=True, slots=True)
class Recent:
    """The last T rows of windows, ending at the last valid one; before the first stand copies of it, without action.

    Attributes:
        frames: uint8 [B, T, H, W, C].
        actions: features of those that followed the frames, [B, T, A].
        known: whether there is one, bool [B, T].
        place: the row of the window that each is, int64 [B, T]; negative of copies.
    """

    frames: Tensor
    actions: Tensor
    known: Tensor
    place: Tensor

    @classmethod
    def of(cls, batch: Batch, image: str, codec: ActionCodec | None, rows: int) -> Recent:
        """The last `rows` rows; data without actions has features of size 0."""
        valid = batch.valid
        place = valid.sum(1, keepdim=True) - rows + torch.arange(rows, device=valid.device)
        held = place.clamp_min(0)
        lanes = torch.arange(len(held), device=held.device)[:, None]
        frames = flatten(batch.observations)[image][lanes, held]
        if codec is None or batch.actions is None:
            size = 0 if codec is None else codec.size
            return cls(frames, frames.new_zeros(*held.shape, size, dtype=torch.float32), place < place[:, :1], place)
        return cls(frames, codec.features(batch.actions)[lanes, held], place >= 0, place)

    def state(self) -> State:
        """The rows as part of a world's state: the last action is yet to come."""
        last = torch.arange(self.known.shape[1], device=self.known.device) == self.known.shape[1] - 1
        known = self.known & ~last
        return {"frames": self.frames, "actions": self.actions * known.unsqueeze(-1), "known": known}


def with_action(state: State, action: Tensor) -> tuple[Tensor, Tensor]:
    """Actions and whether they are known of a state whose last row's action (features [B, A]) is now taken."""
    actions = torch.cat((state["actions"][:, :-1], action[:, None]), 1)
    return actions, torch.cat((state["known"][:, :-1], torch.ones_like(state["known"][:, :1])), 1)


def with_frame(state: State, actions: Tensor, known: Tensor, frame: Tensor) -> State:
    """The rows one step on, with a new frame uint8 [B, H, W, C] whose action is yet to come."""
    return {
        "frames": torch.cat((state["frames"][:, 1:], frame[:, None]), 1),
        "actions": torch.cat((actions[:, 1:], torch.zeros_like(actions[:, :1])), 1),
        "known": torch.cat((known[:, 1:], torch.zeros_like(known[:, :1])), 1),
    }


def following_of(batch: Batch, image: str) -> Tensor:
    """The frame that follows each window, in -1 .. 1, [B, C, H, W].

    Raises:
        ValueError: the windows were drawn without it.
    """
    if batch.following is None:
        raise ValueError(
            "found windows without what follows them, expected it: a world of frames learns from store.windows(..., "
            "following=True)"
        )
    return from_bytes(flatten(batch.following)[image])


def change_of(store: TrajectoryStore) -> float:
    """The deviation of the change from one frame, in -1 .. 1, to the next, over some of a store's rows."""
    batch = store.windows(1, _PAIRS, following=True).batch(0)
    path, frames = next(iter(flatten(batch.observations).items()))
    return float((following_of(batch, path) - from_bytes(frames)[:, 0]).square().mean().sqrt())


def from_bytes(frames: Tensor) -> Tensor:
    """uint8 [..., H, W, C] to float32 [..., C, H, W] in -1 .. 1."""
    return frames.movedim(-1, -3).float() / 127.5 - 1


def to_bytes(frames: Tensor) -> Tensor:
    """The inverse of `from_bytes`, rounded."""
    return ((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)


def at_levels(frames: Tensor) -> Tensor:
    """The nearest values that have a byte."""
    return ((frames + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
