"""Video diffusion: a world that draws its next frame, given the last ones and the action taken.

Alonso et al., "Diffusion for World Modeling: Visual Details Matter in Atari" (DIAMOND), 2024; layout and noise levels
from eloialonso/diamond.

**One step.** The last `context` frames stand beside the noisy next one as channels of a UNet (`seqwm.nn.unet`); the
actions that followed each of them and the noise level enter its group norms. A few Euler steps (`seqwm.nn.diffusion`)
turn noise into the frame. What the next frame is drawn as has 256 levels at every step, so that the frames a dream goes
on from are such as the logs hold. A small network beside it says from the same frames and actions what reward comes
and whether the task ends.

**What is notable.**

- a_t belongs to the step from o_t to o_{t+1}: the action of a step is the last one that its frame is conditioned on.
- `predict: change` diffuses the difference to the last frame, scaled to the deviation that it has in the data. What
  stands still is then copied, not drawn again; DIAMOND's own is `predict: frame`. Changes are few and large, so that
  noise hides them, and the action must be heeded, only at higher levels than frames need: those of the defaults here.
  Below them nothing is left to decide, and a step there would only add the network's errors at another level.
- Where several frames may follow, a few Euler steps draw their mean, which no log holds; `heun` draws one of them.
- Dreams drift, because training shows true frames and a dream its own. Three remedies: `context_noise` adds noise to
  the frames given, and tells how much (as in GameNGen and DIAMOND's CSGO branch); `rollout` trains on frames that the
  model drew itself (one step from noise) for so many steps; `play_noise` adds noise to a dream's frames.
- Reward and end are read off the frames before the step and the one it led to, the last of an episode among them;
  DIAMOND reads them through an LSTM besides.
- Before the beginning of an episode stand copies of its first frame, with no action.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from seqwm.core.errors import SpaceError
from seqwm.core.protocols import Step
from seqwm.core.spaces import space_from_json
from seqwm.core.tree import unflatten
from seqwm.core.types import Batch, State, TensorTree
from seqwm.nn.diffusion import (
    SIGMA_DATA,
    NoiseOptions,
    precondition,
    sample,
    sampling_sigmas,
    start_scale,
    training_sigmas,
)
from seqwm.nn.frames import (
    Outcome,
    Recent,
    at_levels,
    change_of,
    end_weight,
    following_of,
    from_bytes,
    image_of,
    known_features,
    to_bytes,
    with_action,
    with_frame,
)
from seqwm.nn.leaves import ActionCodec
from seqwm.nn.unet import FourierFeatures, Modulations, UNet

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore

_FEATURES = 64  # of a number that is embedded


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe.

    Attributes:
        context: frames that the next one is drawn from.
        channels: of the UNet's levels.
        blocks: residual blocks of each level.
        width: features of the condition, and of the network for reward and end.
        unshuffle: pixels along each side that become channels; 1 leaves them.
        attention: in the middle of the UNet, as DIAMOND has it.
        group: channels of a group of its norms.
        predict: diffuse the next 'frame', or its 'change' from the last one.
        given: of the frames before the last, the network sees 'frames', or the 'changes' from one to the next, scaled
            as the next change is: of few pixels that move, in a context with little noise, it learns the motion sooner.
        noise: levels of noise.
        steps: of sampling.
        heun: whether those are Heun's, with twice the network calls less one.
        context_noise: the largest deviation of noise on the given frames in training; frames are in -1 .. 1.
        rollout: steps that training goes on from its own frames; 1 has true ones only.
        play_noise: the deviation of noise on the given frames in a dream.
        ends: share of the windows in training that end where an episode does; reward and end there count no more for
            it, but are learned from more examples.
    """

    context: int = 2
    channels: tuple[int, ...] = (32, 64)
    blocks: int = 1
    width: int = 128
    unshuffle: int = 2
    attention: bool = False
    group: int = 16
    predict: Literal["frame", "change"] = "change"
    given: Literal["frames", "changes"] = "frames"
    noise: NoiseOptions = field(
        default_factory=lambda: NoiseOptions(sigma_min=3.0, sigma_max=20.0, log_mean=2.0, log_deviation=0.6)
    )
    steps: int = 2
    heun: bool = False
    context_noise: float = 0.0
    rollout: int = 1
    play_noise: float = 0.0
    ends: float = 0.0

    def __post_init__(self) -> None:
        for name in ("context", "blocks", "width", "unshuffle", "group", "steps", "rollout"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels: found {list(self.channels)}, expected one positive number for each level")
        if not 0 <= self.ends < 1:
            raise ValueError(f"ends: found {self.ends}, expected a share of the windows, less than 1")
        if not 0 <= self.play_noise <= self.context_noise:
            raise ValueError(
                f"play_noise: found {self.play_noise}, expected no more than context_noise {self.context_noise}, the "
                "most that training shows"
            )


def build(options: Options, store: TrajectoryStore) -> VideoDiffusion:
    """A model with fresh weights for the data of a store.

    Raises:
        SpaceError: no actions, no image, more than one, or one whose sides the UNet cannot halve.
    """
    if store.spaces.action is None:
        raise SpaceError(
            f"{store.path}: the data has no actions, and video_diffusion draws what they lead to; diffusion_forcing "
            "learns from video alone"
        )
    statistics, settings = store.statistics, dataclasses.asdict(options)
    del settings["ends"]
    model: VideoDiffusion = VideoDiffusion(
        **store.described(),
        reward_mean=statistics.reward_mean or 0.0,
        reward_deviation=statistics.reward_std or 0.0,
        scale=_scale(options, store),
        end_weight=end_weight(options.ends, store.rows / len(store)),
        **settings,
    )
    return model


def window_options(options: Options) -> dict[str, Any]:
    """What the learner asks of its windows: the frame that follows each, the last of an episode among them."""
    return {"following": True, "ends": options.ends}


def _scale(options: Options, store: TrajectoryStore) -> float:
    """What is diffused is divided by this, which gives it the deviation SIGMA_DATA."""
    if options.predict == "frame":
        return 1.0  # frames in -1 .. 1 have about that deviation
    return max(math.sqrt(change_of(store) ** 2 + options.context_noise**2 / 3) / SIGMA_DATA, 1e-2)


class VideoDiffusion(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A world: `encode`, `step` and `decode`; `loss` trains it.

    The state of a world holds `frames` uint8 [B, context, H, W, C], the features of the actions that followed them
    [B, context, A], and whether those are `known`, bool [B, context]; the last action is yet to come.
    """

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        observation_space: dict[str, Any],
        action_space: dict[str, Any],
        dataset: str | None = None,
        dataset_fingerprint: str | None = None,
        environment: str | None = None,
        reward_mean: float = 0.0,
        reward_deviation: float = 0.0,
        scale: float = 1.0,
        end_weight: float = 1.0,
        context: int = 2,
        channels: tuple[int, ...] = (32, 64),
        blocks: int = 1,
        width: int = 128,
        unshuffle: int = 2,
        attention: bool = False,
        group: int = 16,
        predict: str = "change",
        given: str = "frames",
        noise: dict[str, float] | None = None,
        steps: int = 2,
        heun: bool = False,
        context_noise: float = 0.0,
        rollout: int = 1,
        play_noise: float = 0.0,
        model_type: str = "seqwm_video_diffusion",
    ) -> None:
        super().__init__()
        self.noise = NoiseOptions(**(noise or {}))
        divided = unshuffle * 2 ** (len(channels) - 1)
        self.image, shape = image_of("video_diffusion", space_from_json(observation_space), divided)
        self.actions = ActionCodec(space_from_json(action_space))
        colours = shape[2]
        self.embed_noise = FourierFeatures(_FEATURES)
        self.embed_context_noise = FourierFeatures(_FEATURES) if context_noise else None
        heard = _FEATURES * (2 if context_noise else 1) + context * (self.actions.size + 1)
        self.condition = nn.Sequential(nn.Linear(heard, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.unet = UNet(
            (context + 1) * colours, colours, channels, blocks, width, unshuffle, attention=attention, group=group
        )
        self.outcome = Outcome(
            context, colours, self.actions.size, width, unshuffle, reward_mean, reward_deviation, end_weight
        )

    @property
    def window_length(self) -> int:
        """Rows of the windows that it is trained on; the last frame to be drawn is the one that follows them."""
        return int(self.config.context + self.config.rollout - 1)

    def forward(
        self, noisy: Tensor, sigma: Tensor, frames: Tensor, actions: Tensor, known: Tensor, level: Tensor
    ) -> Tensor:
        """What the network F says, float32 [B, C, H, W].

        Args:
            noisy: what is diffused, times c_in, [B, C, H, W].
            sigma: its noise level, [B].
            frames: given ones, in -1 .. 1, [B, context, C, H, W].
            actions: features of those that followed them, [B, context, A].
            known: bool [B, context]; actions that are not count as none.
            level: deviation of the noise on `frames`, [B].
        """
        return self._said(noisy, frames, self._heard(sigma, actions, known, level))

    def _heard(self, sigma: Tensor, actions: Tensor, known: Tensor, level: Tensor) -> Modulations:
        """What the UNet's norms hear of noise levels and actions."""
        parts = [self.embed_noise(precondition(sigma).noise), known_features(actions, known).flatten(1)]
        if self.embed_context_noise is not None:
            parts.append(self.embed_context_noise(level))
        return self.unet.modulations(self.condition(torch.cat(parts, -1)))

    def _said(self, noisy: Tensor, frames: Tensor, heard: Modulations) -> Tensor:
        if self.config.given == "changes":
            frames = torch.cat((frames.diff(dim=1) / self.config.scale, frames[:, -1:]), 1)
        out: Tensor = self.unet(torch.cat((noisy, frames.flatten(1, 2)), 1), heard)
        return out.float()

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The denoising error of the next frame, and the losses of reward and end."""
        context, rows = self.config.context, self.window_length
        recent = Recent.of(batch, self.image, self.actions, rows)
        following = following_of(batch, self.image)
        actions, known = recent.actions, recent.known
        frames = torch.cat((from_bytes(recent.frames), following[:, None]), 1)
        past = list(frames[:, :context].unbind(1))
        losses, weights = [], []
        for row in range(context, rows + 1):
            span = slice(row - context, row)
            given, told = torch.stack(past[span], 1), (actions[:, span], known[:, span])
            within = recent.place[:, row - 1] >= 0  # there is nothing to draw the first frame of an episode from
            weights.append(within.float())
            losses.append(self._denoising_loss(frames[:, row], given, *told))
            if row < rows:
                noise = torch.randn_like(frames[:, row])
                with torch.no_grad():
                    drawn = self._draw(given, *told, noise, torch.zeros_like(given), 0.0, steps=1)
                past.append(torch.where(within[:, None, None, None], drawn, frames[:, row]))
        frame = (torch.stack(losses) * torch.stack(weights)).sum() / torch.stack(weights).sum().clamp_min(1)
        last = Recent.of(batch, self.image, self.actions, context)
        parts = {"frame": frame, **self.outcome.losses(last, batch, following)}
        return torch.stack(list(parts.values())).sum(), {f"loss_{name}": part.detach() for name, part in parts.items()}

    def encode(self, context: Batch) -> State:
        """The frames up to the last valid row's."""
        return Recent.of(context, self.image, self.actions, self.config.context).state()

    def step(self, state: State, action: TensorTree, generator: torch.Generator | None) -> Step:
        """The next frame, drawn; the mean reward; and whether the task ended."""
        actions, known = with_action(state, self.actions.features(action))
        frames = from_bytes(state["frames"])
        noise, blur, level, chance = torch.zeros_like(frames[:, 0]), torch.zeros_like(frames), 0.0, None
        if generator is not None:
            level = self.config.play_noise
            noise.normal_(generator=generator)
            blur.normal_(0, level, generator=generator)
            chance = torch.rand(len(frames), generator=generator, device=frames.device)
        drawn = self._draw(frames, actions, known, noise, blur, level)
        outcome = self.outcome.draw(frames, actions, known, drawn, chance)
        return Step(with_frame(state, actions, known, to_bytes(drawn)), *outcome)

    def decode(self, state: State) -> TensorTree:
        """The last frame."""
        tree: TensorTree = unflatten({self.image: state["frames"][:, -1]})
        return tree

    def _denoising_loss(self, target: Tensor, given: Tensor, actions: Tensor, known: Tensor) -> Tensor:
        """The mean squared error of F's unit-variance target in each lane, [B]."""
        level = self.config.context_noise * torch.rand(len(target), device=target.device)
        given = given + level[:, None, None, None, None] * torch.randn_like(given)
        clean = (target - self._base(given)) / self.config.scale
        sigma = training_sigmas((len(target),), self.noise, target.device)
        c = precondition(sigma[:, None, None, None])
        noisy = clean + sigma[:, None, None, None] * torch.randn_like(clean)
        said = self(c.into * noisy, sigma, given, actions, known, level)
        error: Tensor = (said - (clean - c.skip * noisy) / c.out).square()
        return error.mean((1, 2, 3))

    def _draw(
        self,
        frames: Tensor,
        actions: Tensor,
        known: Tensor,
        noise: Tensor,
        blur: Tensor,
        level: float,
        steps: int | None = None,
    ) -> Tensor:
        """The next frame in -1 .. 1, at one of 256 levels, [B, C, H, W], from noise of deviation 1."""
        given = frames + blur
        base, scale = self._base(given), float(self.config.scale)
        grid, lanes = sampling_sigmas(steps or self.config.steps, self.noise), len(frames)
        sigmas = torch.tensor(grid[:-1], device=frames.device).repeat_interleave(lanes)  # what all calls hear at once
        again = len(grid) - 1
        heard = self._heard(sigmas, actions.repeat(again, 1, 1), known.repeat(again, 1), torch.full_like(sigmas, level))
        of_level = {sigma: heard[lanes * place : lanes * (place + 1)] for place, sigma in enumerate(grid[:-1])}

        def denoise(x: Tensor, sigma: float) -> Tensor:
            c = precondition(torch.tensor(sigma, device=x.device))
            denoised = c.skip * x + c.out * self._said(c.into * x, given, of_level[sigma])
            return (at_levels(base + scale * denoised) - base) / scale

        drawn = sample(denoise, start_scale(self.noise) * noise, grid, heun=self.config.heun)
        return at_levels(base + scale * drawn)

    def _base(self, given: Tensor) -> Tensor:
        """What the diffused is added to."""
        last = given[:, -1]
        base: Tensor = last if self.config.predict == "change" else torch.zeros_like(last)
        return base
