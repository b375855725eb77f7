"""Latent actions: what was done in a video that says nothing of it, and a world that obeys.

Bruce et al., "Genie: Generative Interactive Environments", 2024 (the latent action model); Schmidt and Jiang, "Learning
to Act without Actions" (LAPO), 2024.

**One step.** An inverse model (`seqwm.nn.inverse_dynamics`) looks at the last frames and the next one and says what
lies between them in a few numbers, each rounded to a few levels (`seqwm.nn.finite_scalar`): the code, one of 8 by
default. A forward model (`seqwm.nn.unet`) gets the last frames and the code, and must give the next frame. All that it
cannot know from the past has to pass through the code, and the code is too small for a frame: it becomes the action.

**What is notable.**

- No action is read, in training or after it: `loss` and `encode` look at frames only. Rewards and ends are not read
  either, and none are given.
- Codes collapse easily: most of what tells two frames apart is the scene, and a forward model that has learned to do
  without codes gives the inverse model no reason to look elsewhere. Hence the inverse model sees only what changes,
  and not where; each number is standardised over the batch before it is rounded; and pixels that change weigh more in
  the loss. What changes nothing (waiting, and a move that a wall stops) is one code, for nobody could tell it apart.
- Codes are names without meaning until a few labels give them one: `mapped_action` and `mapped_confidence` hold the
  true action that each code stands for (`seqwm.evaluation.action_report` fits them), and travel with the weights.
- What was inferred for a whole store is a store again (`seqwm.control.labels`), in which any other method acts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from seqwm.core.protocols import Step
from seqwm.core.spaces import space_from_json, space_to_json
from seqwm.core.tree import unflatten
from seqwm.core.types import Batch, State, TensorTree
from seqwm.nn.finite_scalar import FiniteScalar
from seqwm.nn.frames import Recent, at_levels, from_bytes, image_of, to_bytes
from seqwm.nn.inverse_dynamics import CHANGED, InverseDynamics
from seqwm.nn.unet import UNet

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe.

    Attributes:
        levels: of each number of a code; their product is how many codes there are.
        context: frames that the next one is foretold from. With two, what flies on by itself needs no code.
        channels: of the levels of the forward model.
        width: channels of the inverse model.
        unshuffle: pixels along each side that become channels; as many as the smallest thing that moves is wide.
        change_weight: how much more a pixel that changes weighs than one that does not.
    """

    levels: tuple[int, ...] = (2, 2, 2)
    context: int = 2
    channels: tuple[int, ...] = (32, 64)
    width: int = 64
    unshuffle: int = 1
    change_weight: float = 20.0

    def __post_init__(self) -> None:
        for name in ("context", "width", "unshuffle"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels: found {list(self.channels)}, expected one positive number for each level")
        if self.change_weight < 0:
            raise ValueError(f"change_weight: found {self.change_weight}, expected zero or more")
        FiniteScalar(self.levels)


def build(options: Options, store: TrajectoryStore) -> LatentActions:
    """A model with fresh weights for the frames of a store.

    Raises:
        SpaceError: no image, more than one, or one whose sides cannot be halved as often as `channels` asks.
        ValueError: no episode holds enough frames.
    """
    needed = options.context + 1
    longest = int(store.lengths.max(initial=0))
    if longest < needed:
        raise ValueError(
            f"{store.path}: the longest episode has {longest} steps, expected {needed} for context {options.context}; "
            "give longer clips, or lower model.context"
        )
    action = store.spaces.action
    model: LatentActions = LatentActions(
        observation_space=space_to_json(store.spaces.observation),
        action_space=None if action is None else space_to_json(action),
        dataset=store.provenance.get("source"),
        dataset_fingerprint=store.fingerprint,
        environment=store.provenance.get("environment"),
        **dataclasses.asdict(options),
    )
    return model


class LatentActions(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A world whose actions are codes: `encode`, `step`, `decode`; `infer` reads codes off frames; `loss` trains it.

    The state of a world holds `frames`, uint8 [B, context, H, W, C]. Rewards are zero and nothing ends.
    """

    config_name = "config.json"
    mapped_action: Tensor
    mapped_confidence: Tensor

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        observation_space: dict[str, Any],
        action_space: dict[str, Any] | None = None,
        dataset: str | None = None,
        dataset_fingerprint: str | None = None,
        environment: str | None = None,
        levels: tuple[int, ...] = (2, 2, 2),
        context: int = 2,
        channels: tuple[int, ...] = (32, 64),
        width: int = 64,
        unshuffle: int = 1,
        change_weight: float = 20.0,
        model_type: str = "seqwm_latent_actions",
    ) -> None:
        super().__init__()
        divided = unshuffle * 2 ** (len(channels) - 1)
        self.image, shape = image_of("latent_actions", space_from_json(observation_space), divided)
        colours = shape[2]
        self.inverse = InverseDynamics(context + 1, colours, len(levels), width, unshuffle, only_changes=True)
        self.standardise = nn.BatchNorm1d(len(levels), affine=False)
        self.quantise = FiniteScalar(levels)
        self.condition = nn.Sequential(nn.Linear(len(levels), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.forward_model = UNet(context * colours, colours, channels, 1, width, unshuffle)
        self.register_buffer("mapped_action", torch.full((self.codes,), -1))
        self.register_buffer("mapped_confidence", torch.zeros(self.codes))

    @property
    def codes(self) -> int:
        """How many there are; the actions of this world are 0 .. codes - 1."""
        return int(self.quantise.size)

    @property
    def window_length(self) -> int:
        """Rows of the windows that it is trained on, and that a dream begins with."""
        return int(self.config.context) + 1

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What led to the last of frames [B, context + 1, C, H, W] in -1 .. 1.

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

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted squared error of the last frame of each window; how many codes are in use.

        Windows at the beginning of an episode, with fewer frames, count not: nothing was done between a frame and its
        copy.
        """
        recent = Recent.of(batch, self.image, None, self.window_length)
        whole = (recent.place >= 0).all(1).float()
        frames = from_bytes(recent.frames)
        before, after = frames[:, :-1], frames[:, -1]
        _, point, code = self(frames)
        changed = (after - before[:, -1]).abs().amax(1, keepdim=True) > CHANGED
        weight = 1 + self.config.change_weight * changed
        weight = weight / weight.mean()
        error = (weight * (self.foretell(before, point) - after).square()).mean((1, 2, 3))
        loss = (error * whole).sum() / whole.sum().clamp_min(1)
        share = torch.bincount(code, minlength=self.codes) / len(code)
        return loss, {"codes_in_use": (-torch.special.xlogy(share, share).sum()).exp().detach()}

    @torch.no_grad()
    def infer(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Codes int64 [B] of the step to the last of frames uint8 [B, context + 1, H, W, C]; the numbers, [B, D]."""
        numbers, _, code = self(from_bytes(frames))
        return code, numbers

    def encode(self, context: Batch) -> State:
        """The frames up to the last valid row's; before the first stand copies of it."""
        return {"frames": Recent.of(context, self.image, None, self.config.context).frames}

    def step(self, state: State, action: TensorTree, generator: torch.Generator | None) -> Step:
        """The frame that follows where a code (int64 [B]) is done; nothing is drawn."""
        assert isinstance(action, Tensor)
        frames = state["frames"]
        drawn = self.foretell(from_bytes(frames), self.quantise.values(action))
        frames = torch.cat((frames[:, 1:], to_bytes(at_levels(drawn))[:, None]), 1)
        nothing = torch.zeros(len(frames), device=frames.device)
        return Step({"frames": frames}, nothing, nothing.bool())

    def decode(self, state: State) -> TensorTree:
        """The last frame."""
        tree: TensorTree = unflatten({self.image: state["frames"][:, -1]})
        return tree

    def code_of(self, action: Tensor) -> Tensor:
        """The code that stands for each true action with the most confidence, int64 [...].

        Raises:
            ValueError: no code stands for one of them.
        """
        fits = self.mapped_action == action.unsqueeze(-1)
        if not bool(fits.any(-1).all()):
            missing = sorted(set(action[~fits.any(-1)].tolist()))
            known = sorted(set(self.mapped_action[self.mapped_action >= 0].tolist()))
            raise ValueError(
                f"no code stands for the actions {missing}, expected some of {known}; fit the map with more labels "
                "(`seqwm dream RUN --labels 128`), or train longer"
            )
        chosen: Tensor = torch.where(fits, self.mapped_confidence, -1.0).argmax(-1)
        return chosen
