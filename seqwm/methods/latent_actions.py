"""Latent actions: what was done in a video that says nothing of it, and a world that obeys.

Bruce et al., "Genie: Generative Interactive Environments", 2024 (the latent action model); Schmidt and Jiang, "Learning
to Act without Actions" (LAPO), 2024.

**One step.** The latent action model (`seqwm.nn.latent_action_model`) infers the code of each step, one of 8 by
default, and its forward model draws the next frame from the last ones and a code: so it is a world whose actions are
codes.

**What is notable.**

- No action is read, in training or after it: `loss` and `encode` look at frames only. Rewards and ends are not read
  either, and none are given.
- A few labels give codes their meaning (`seqwm.evaluation.action_report`); the map travels with the weights.
- What was inferred for a whole store is a store again (`seqwm.control.labels`), in which any other method acts.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from seqwm.core.protocols import Step
from seqwm.core.spaces import space_from_json
from seqwm.core.tree import unflatten
from seqwm.core.types import Batch, State, TensorTree
from seqwm.nn.frames import Recent, at_levels, from_bytes, image_of, to_bytes
from seqwm.nn.latent_action_model import LatentActionModel, LatentOptions, check_lengths

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore


Options = LatentOptions
"""The `model:` section of a recipe."""


def build(options: Options, store: TrajectoryStore) -> LatentActions:
    """A model with fresh weights for the frames of a store.

    Raises:
        SpaceError: no image, more than one, or one whose sides cannot be halved as often as `channels` asks.
        DataError: no episode holds enough frames.
    """
    check_lengths(store, options.context)
    model: LatentActions = LatentActions(
        **store.described(),
        options=dataclasses.asdict(options),
    )
    return model


class LatentActions(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A world whose actions are codes: `encode`, `step`, `decode`; `latent` reads codes off frames; `loss` trains it.

    The state of a world holds `frames`, uint8 [B, context, H, W, C]. Rewards are zero and nothing ends.
    """

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        observation_space: dict[str, Any],
        action_space: dict[str, Any] | None = None,
        dataset: str | None = None,
        dataset_fingerprint: str | None = None,
        environment: str | None = None,
        options: dict[str, Any] | None = None,
        model_type: str = "seqwm_latent_actions",
    ) -> None:
        super().__init__()
        latent = LatentOptions(**(options or {}))
        self.image, shape = image_of("latent_actions", space_from_json(observation_space), latent.divided)
        self.latent = LatentActionModel(shape[2], latent)

    @property
    def window_length(self) -> int:
        """Rows of the windows that it is trained on, and that a dream begins with."""
        return self.latent.reach

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted squared error of the last frame of each window; how many codes are in use.

        Windows at the beginning of an episode, with fewer frames, count not: nothing was done between a frame and its
        copy.
        """
        recent = Recent.of(batch, self.image, None, self.window_length)
        loss, _, in_use = self.latent.loss(from_bytes(recent.frames), (recent.place >= 0).all(1))
        return loss, {"codes_in_use": in_use}

    def encode(self, context: Batch) -> State:
        """The frames up to the last valid row's; before the first stand copies of it."""
        return {"frames": Recent.of(context, self.image, None, self.latent.options.context).frames}

    def step(self, state: State, action: TensorTree, generator: torch.Generator | None) -> Step:
        """The frame that follows where a code (int64 [B]) is done; nothing is drawn."""
        assert isinstance(action, Tensor)
        frames = state["frames"]
        drawn = self.latent.foretell(from_bytes(frames), self.latent.quantise.values(action))
        frames = torch.cat((frames[:, 1:], to_bytes(at_levels(drawn))[:, None]), 1)
        nothing = torch.zeros(len(frames), device=frames.device)
        return Step({"frames": frames}, nothing, nothing.bool())

    def decode(self, state: State) -> TensorTree:
        """The last frame."""
        tree: TensorTree = unflatten({self.image: state["frames"][:, -1]})
        return tree
