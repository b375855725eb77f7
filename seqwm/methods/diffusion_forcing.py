"""Diffusion forcing: a transformer over frames that each have a noise level of their own, and a world made of it.

Chen et al., "Diffusion Forcing: Next-token Prediction Meets Full-Sequence Diffusion", 2024; the causal transformer over
space and time is that of today's video worlds (Genie 2, Oasis), in the size that the recipe names.

**Training** gives every frame of a window two levels of its own: one at which it is remembered, and one at which it is
drawn, from its own memory of those before it. All are drawn at once, each as it would be in a dream.

**One step** of a dream denoises one new frame beside the remembered ones, in a few Euler steps (`seqwm.nn.diffusion`),
then passes it once more to be remembered. The cache is exact, so a step costs the same however long the dream is.

**What is notable.**

- Actions are no condition of the data: without any, it learns from video alone, and its one action changes nothing.
  `begin_from` goes on from such a model with data that has actions.
- In training, `action_dropout` of the actions are withheld, so a frame without one remains something it knows.
- In the paper one level serves for both. Then hardly any frame is drawn from such as a dream remembers, which are all
  but clean. Here remembered frames have levels up to `context_noise`.
- What is diffused is the change since the frame before as it is remembered: a still background is copied, not drawn
  again. How large that is grows with the level of the one before, and EDM's scales with it.
- The action that led to a frame modulates that frame, together with its level and that of the frame before.
- `play_noise`: a dream's frames are remembered with that much noise and the level that says so; true frames are not.
  A change since a noisy frame is that noise too, so that what stands still has to be drawn again at every step.
- With `latents` all of this happens in the latents of an autoencoder (`seqwm.nn.frame_autoencoder`) that learns beside
  it, from the same frames. How large their changes are is then measured as they come.
- Reward and end are read off the last two frames and actions, and the frame they led to, by a network of its own
  (`seqwm.nn.frames`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from seqwm.core.errors import CheckpointError
from seqwm.core.protocols import Step
from seqwm.core.spaces import space_from_json
from seqwm.core.tree import flatten, unflatten
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
from seqwm.nn.frame_autoencoder import FrameAutoencoder, LatentOptions
from seqwm.nn.frames import (
    Outcome,
    Recent,
    at_levels,
    change_of,
    following_of,
    from_bytes,
    image_of,
    known_features,
    to_bytes,
    with_action,
    with_frame,
)
from seqwm.nn.leaves import ActionCodec
from seqwm.nn.space_time import Past, SpaceTime
from seqwm.nn.unet import FourierFeatures

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore

_FEATURES = 64  # of a noise level, and of an action
_CONDITION = 128  # features of both together
_CLEAN = 2e-3  # the level at which frames without noise are remembered
_PICTURE = 10.0  # of the autoencoder's squared error in the loss
_FOLLOW = 0.02  # of what a batch's change is off by
_OUTCOME_ROWS = 2
_OUTCOME_WIDTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe.

    Attributes:
        context: frames in a window of training.
        span: frames that attention along time reaches in each layer, the frame's own counted.
        patch: pixels along each side of a token's square, or places of latents, even.
        channels: of the convolutions around the transformer.
        layers, width, heads: of the transformer.
        noise: levels of noise at which frames are drawn.
        context_noise: the largest level of frames in training that others are drawn from; frames are in -1 .. 1.
        steps: of sampling.
        action_dropout: share of actions that training withholds.
        play_noise: the deviation of noise on remembered frames of a dream.
        latents: of frames, to dream in; pixels without.
        begin_from: folder of a trained model of this method and size, with or without actions, to go on from.
    """

    context: int = 8
    span: int = 4
    patch: int = 4
    channels: int = 32
    layers: int = 4
    width: int = 128
    heads: int = 4
    noise: NoiseOptions = field(
        default_factory=lambda: NoiseOptions(sigma_min=1.0, sigma_max=10.0, log_mean=0.5, log_deviation=1.2)
    )
    context_noise: float = 0.3
    steps: int = 2
    action_dropout: float = 0.1
    play_noise: float = 0.0
    latents: LatentOptions | None = None
    begin_from: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("context", 2), ("span", 2), ("patch", 1), ("layers", 1), ("heads", 1), ("steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least {least}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width: found {self.width}, expected an even number for each of the {self.heads} heads")
        if not 0 <= self.action_dropout < 1:
            raise ValueError(f"action_dropout: found {self.action_dropout}, expected a share below 1")
        if self.play_noise < 0:
            raise ValueError(f"play_noise: found {self.play_noise}, expected zero or more")


def build(options: Options, store: TrajectoryStore) -> DiffusionForcing:
    """A model for the data of a store, with fresh weights or those of `begin_from`.

    Raises:
        SpaceError: no image, more than one, or one that patches do not fit.
        CheckpointError: `begin_from` holds no model of this size.
    """
    statistics, settings = store.statistics, dataclasses.asdict(options)
    del settings["begin_from"]
    model: DiffusionForcing = DiffusionForcing(
        **store.described(),
        reward_mean=statistics.reward_mean or 0.0,
        reward_deviation=statistics.reward_std or 0.0,
        change=max(change_of(store), 1e-2),
        **settings,
    )
    if options.begin_from is not None:
        _go_on_from(model, Path(options.begin_from))
    return model


def window_options(options: Options) -> dict[str, Any]:
    """What the learner asks of its windows: the frame that follows each, which reward and end are read off, too."""
    return {"following": True}


def _go_on_from(model: DiffusionForcing, folder: Path) -> None:
    """Take over all weights of another model but those that actions enter by, where it knew other ones.

    Those begin at nothing, so that what the model says is at first what the other says of frames without actions.
    """
    folder = folder / "model" if (folder / "model").is_dir() else folder
    try:
        other = DiffusionForcing.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"begin_from: {folder} holds no model of diffusion_forcing: {error}") from error
    earlier = other.state_dict()
    for name, tensor in model.state_dict().items():
        if name in earlier and tensor.shape == earlier[name].shape:
            tensor.copy_(earlier[name])
        elif name == "embed_action.weight":
            tensor.zero_()
        elif not name.startswith(("outcome.", "actions.")):
            found = list(earlier[name].shape) if name in earlier else "missing"
            raise CheckpointError(
                f"begin_from: {folder}: {name} is {found}, expected {list(tensor.shape)}; name the sizes in the recipe "
                "that it was trained with"
            )


@dataclass(frozen=True, slots=True)
class Memory:
    """What a frame is drawn from.

    Attributes:
        frame: the last one, with the noise that it was seen with, [B, C, H, W].
        sigma: the deviation of that noise, [B]. Where there is no frame yet, zeros stand for it, at the deviation of
            frames.
        past: keys and values of those in reach.
    """

    frame: Tensor
    sigma: Tensor
    past: Past


class DiffusionForcing(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A world: `encode`, `step` and `decode`; `loss` trains it.

    Its state is what is remembered (`seqwm.nn.space_time.Past`), and the last two `frames` uint8 [B, 2, H, W, C] with
    the features of the actions that followed them, as in `seqwm.nn.frames.Recent`.
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
        reward_mean: float = 0.0,
        reward_deviation: float = 0.0,
        context: int = 8,
        span: int = 4,
        change: float = 0.2,
        patch: int = 4,
        channels: int = 32,
        layers: int = 4,
        width: int = 128,
        heads: int = 4,
        context_noise: float = 0.3,
        noise: dict[str, float] | None = None,
        steps: int = 2,
        action_dropout: float = 0.1,
        play_noise: float = 0.0,
        latents: dict[str, int] | None = None,
        model_type: str = "seqwm_diffusion_forcing",
    ) -> None:
        super().__init__()
        self.noise = NoiseOptions(**(noise or {}))
        factor = latents["factor"] if latents else 1
        space = space_from_json(observation_space)
        self.image, (high, wide, colours) = image_of("diffusion_forcing", space, factor * patch)
        self.actions = ActionCodec(space_from_json(action_space)) if action_space else None
        features = self.actions.size if self.actions else 0
        self.wave = FourierFeatures(_FEATURES)
        self.embed_action = nn.Linear(features + 1, _FEATURES)
        self.condition = nn.Sequential(
            nn.Linear(3 * _FEATURES, _CONDITION), nn.SiLU(), nn.Linear(_CONDITION, _CONDITION)
        )
        self.autoencoder = FrameAutoencoder(colours, LatentOptions(**latents)) if latents else None
        self.shape = (latents["channels"] if latents else colours, high // factor, wide // factor)
        self.register_buffer("apart", torch.tensor(change))  # how far a frame is from the one before, as a deviation
        self.network = SpaceTime(
            2 * self.shape[0], self.shape[0], self.shape[1:], patch, channels, layers, width, heads, span, _CONDITION
        )
        self.outcome = Outcome(
            _OUTCOME_ROWS, colours, features, _OUTCOME_WIDTH, factor * patch, reward_mean, reward_deviation
        )

    @property
    def window_length(self) -> int:
        """Rows of the windows that it is trained on."""
        return int(self.config.context)

    def forward(
        self, noisy: Tensor, sigma: Tensor, actions: Tensor, known: Tensor, memory: Memory | None = None
    ) -> Tensor:
        """D(x; sigma), what is left of frames without noise, [B, T, C, H, W].

        Args:
            noisy: frames with noise, [B, T, C, H, W].
            sigma: its deviation in each, [B, T].
            actions: features of the action that led to each, [B, T, A].
            known: whether there is one, bool [B, T].
            memory: of the frames before them.
        """
        memory = self.empty(len(noisy), noisy.device) if memory is None else memory
        base, deviation, _ = self._prior(noisy, sigma, memory)
        c = precondition(sigma[:, :, None, None, None], deviation[:, :, None, None, None])
        said = self.network(*self._shown(noisy, sigma, actions, known, memory), memory.past)
        denoised: Tensor = base + c.skip * (noisy - base) + c.out * said.float()
        return denoised

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The denoising error of every frame but the first, in F's unit of variance, and those of reward and end.

        What a frame is drawn from is what a dream would remember of those before it.
        """
        frames, parts = from_bytes(flatten(batch.observations)[self.image]), {}
        if self.autoencoder is not None:
            frames, missed = self.autoencoder(frames)
            parts["picture"] = _PICTURE * _mean(missed, batch.valid)
            self._measure(frames, batch.valid)
        actions, known = self._leading(batch)
        known = known & (torch.rand(known.shape, device=known.device) >= self.config.action_dropout)
        memory = self._before_each(frames, actions, known)
        target, led, told = (x[:, 1:].flatten(0, 1)[:, None] for x in (frames, actions, known))
        sigma = training_sigmas(tuple(told.shape), self.noise, frames.device)
        noisy = target + sigma[:, :, None, None, None] * torch.randn_like(target)
        _, deviation, _ = self._prior(noisy, sigma, memory)
        denoised = self(noisy, sigma, led, told, memory)
        error = (denoised - target).square().mean((2, 3, 4)) / precondition(sigma, deviation).out.square()
        parts["frame"] = _mean(error, batch.valid[:, 1:].flatten(0, 1)[:, None])
        last = Recent.of(batch, self.image, self.actions, _OUTCOME_ROWS)
        parts |= self.outcome.losses(last, batch, following_of(batch, self.image))
        return torch.stack(list(parts.values())).sum(), {f"loss_{name}": part.detach() for name, part in parts.items()}

    def empty(self, lanes: int, device: torch.device | str) -> Memory:
        """No frame yet."""
        frame = torch.zeros(lanes, *self.shape, device=device)
        return Memory(frame, torch.full((lanes,), SIGMA_DATA, device=device), self.network.empty(lanes, device))

    def encode(self, context: Batch) -> State:
        """What is remembered of the window up to its last valid row."""
        frames = self._seen(flatten(context.observations)[self.image])
        actions, known = self._leading(context)
        memory = self.empty(len(frames), frames.device)
        sigma = torch.full(known.shape, _CLEAN, device=frames.device)
        memory = self._remember(memory, frames, sigma, actions, known, context.valid.sum(1))
        return {**_packed(memory), **Recent.of(context, self.image, self.actions, _OUTCOME_ROWS).state()}

    def step(self, state: State, action: TensorTree, generator: torch.Generator | None) -> Step:
        """The next frame, drawn and remembered; the mean reward; and whether the task ended."""
        last = state["frames"][:, -1]
        features = last.new_zeros(len(last), 0, dtype=torch.float32)
        if self.actions is not None:
            features = self.actions.features(action)
        actions, known = with_action(state, features)
        led, told = features[:, None], torch.full((len(last), 1), self.actions is not None, device=last.device)
        memory = _unpacked(state)
        frames = from_bytes(state["frames"])
        noise, blur, chance = torch.zeros_like(memory.frame[:, None]), torch.zeros_like(memory.frame[:, None]), None
        level = _CLEAN
        if generator is not None:
            level = max(self.config.play_noise, level)
            noise.normal_(generator=generator)
            blur.normal_(0, self.config.play_noise, generator=generator)
            chance = torch.rand(len(last), generator=generator, device=last.device)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            sigmas = torch.full((len(x), 1), sigma, device=x.device)
            denoised = self(x, sigmas, led, told, memory)
            return at_levels(denoised) if self.autoencoder is None else denoised

        start = memory.frame[:, None] + start_scale(self.noise) * noise
        drawn = sample(denoise, start, sampling_sigmas(self.config.steps, self.noise))
        frame = to_bytes(drawn if self.autoencoder is None else self.autoencoder.decode(drawn))
        levels = torch.full((len(last), 1), level, device=last.device)
        one = torch.ones_like(memory.past.time)
        memory = self._remember(memory, self._seen(frame) + blur, levels, led, told, one)
        following = {**_packed(memory), **with_frame(state, actions, known, frame[:, 0])}
        return Step(following, *self.outcome.draw(frames, actions, known, from_bytes(frame[:, 0]), chance))

    def decode(self, state: State) -> TensorTree:
        """The last frame."""
        tree: TensorTree = unflatten({self.image: state["frames"][:, -1]})
        return tree

    def _seen(self, frames: Tensor) -> Tensor:
        """What frames uint8 [B, T, H, W, C] are to the network: themselves in -1 .. 1, or their latents."""
        seen = from_bytes(frames)
        return seen if self.autoencoder is None else self.autoencoder.encode(seen)

    @torch.no_grad()
    def _measure(self, latents: Tensor, valid: Tensor) -> None:
        """Follow the deviation of the change from one frame's latents [B, T, C, H, W] to the next one's."""
        found = _mean(latents.diff(dim=1).square().mean((2, 3, 4)), valid[:, 1:]).sqrt().clamp_min(1e-2)
        self.apart.lerp_(found, _FOLLOW)

    def _prior(self, noisy: Tensor, sigma: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """The frame before each [B, T, C, H, W], how far from it a frame is, as a deviation, and its noise, [B, T]."""
        before = torch.cat((memory.frame[:, None], noisy[:, :-1]), 1)
        levels = torch.cat((memory.sigma[:, None], sigma[:, :-1]), 1)
        return before, (levels.square() + self.apart.square()).sqrt(), levels

    def _shown(
        self, noisy: Tensor, sigma: Tensor, actions: Tensor, known: Tensor, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        """What the network sees of frames [B, T, 2 C, H, W], and their conditions [B, T, F]."""
        base, deviation, before = self._prior(noisy, sigma, memory)
        c = precondition(sigma[:, :, None, None, None], deviation[:, :, None, None, None])
        levels = self.wave(precondition(torch.stack((sigma, before), -1)).noise).flatten(2)
        condition = self.condition(torch.cat((levels, self.embed_action(known_features(actions, known))), -1))
        return torch.cat((c.into * (noisy - base), base), 2), condition

    def _before_each(self, frames: Tensor, actions: Tensor, known: Tensor) -> Memory:
        """What is remembered before each frame but the first, as B * (T - 1) lanes; each has a level of its own."""
        sigma = self.config.context_noise * torch.rand(known.shape, device=frames.device)
        sigma = sigma.clamp_min(_CLEAN)
        seen = frames + sigma[:, :, None, None, None] * torch.randn_like(frames)
        memory = self.empty(len(frames), frames.device)
        past = self.network.before_each(*self.network.look(*self._shown(seen, sigma, actions, known, memory)))
        return Memory(seen[:, :-1].flatten(0, 1), sigma[:, :-1].flatten(), past)

    def _remember(
        self, memory: Memory, frames: Tensor, sigma: Tensor, actions: Tensor, known: Tensor, count: Tensor
    ) -> Memory:
        """The memory behind the first `count` (int64 [B]) of frames [B, T, C, H, W] with noise of deviation sigma."""
        keys, values = self.network.look(*self._shown(frames, sigma, actions, known, memory), memory.past)
        lanes = torch.arange(len(frames), device=frames.device)
        past = memory.past.remember(keys, values, count)
        return Memory(frames[lanes, count - 1], sigma[lanes, count - 1], past)

    def _leading(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features of the action that led to each row [B, T, A], and whether it is known, bool [B, T]."""
        if self.actions is None or batch.actions is None:
            size = self.actions.size if self.actions else 0
            return torch.zeros(*batch.valid.shape, size, device=batch.valid.device), torch.zeros_like(batch.valid)
        features = self.actions.features(batch.actions)
        led = torch.cat((torch.zeros_like(features[:, :1]), features[:, :-1]), 1)
        known = batch.valid.clone()
        known[:, 0] = False
        return led, known


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """Of the values that are valid, zero where none is."""
    return (values * valid).sum() / valid.sum().clamp_min(1)


def _packed(memory: Memory) -> State:
    past = memory.past
    kept = {"keys": past.keys, "values": past.values, "filled": past.filled, "time": past.time}
    return {"last": memory.frame, "level": memory.sigma, **kept}


def _unpacked(state: State) -> Memory:
    past = Past(state["keys"], state["values"], state["filled"], state["time"])
    return Memory(state["last"], state["level"], past)
