"""Genie: a world drawn in tokens, whose actions were found in video that says nothing of them.

Bruce et al., "Genie: Generative Interactive Environments", 2024. Three parts learn side by side from frames alone, each
from its own loss; what one part hands to the next is whole numbers, through which no gradient goes.

- The *tokenizer* turns frames into tokens and tokens into frames: a codebook of squares (`seqwm.tokenizers.frames`) or
  a transformer over space and time (`seqwm.tokenizers.video`).
- The *latent action model* (`seqwm.nn.latent_action_model`) names what led from each frame to the next: a code.
- The *dynamics*, a transformer over frames of tokens (`seqwm.nn.frame_transformer`), fill in the masked tokens of a
  frame (`seqwm.nn.masked_tokens`), given the frames before it and the code that led to it.

**What is notable.**

- A pass of training holds each frame twice: as it is, for those that come after it, and as a draft with some of its
  tokens masked. So every frame is learned from a context without masks, which is what it has in play (in Genie the
  context is masked, too), and the frames that nothing is asked of are never masked, the first among them.
- What a token is to the dynamics follows from its point in the codebook, so that tokens which look alike are alike from
  the start, and a codebook that still moves takes nothing away that was learned.
- A token enters with what stood at its place in the frame before, masked or not, so that a world that stands still is
  nothing to be learned.
- Training and play use one `forward`; the cache of past frames is exact, so a step costs one frame's tokens, a few
  times: `steps` passes to fill it in, one to remember it.
- The code that led to a frame modulates all its layers. What is unknown, before a window's first frame, is one more.
- No action, reward or end is read; rewards are zero and nothing ends.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from seqwm.core.protocols import Step
from seqwm.core.spaces import space_from_json
from seqwm.core.tree import flatten, unflatten
from seqwm.core.types import Batch, State, TensorTree
from seqwm.nn.frame_transformer import FrameTransformer
from seqwm.nn.frames import from_bytes, image_of, to_bytes
from seqwm.nn.latent_action_model import LatentActionModel, LatentOptions, check_lengths
from seqwm.nn.masked_tokens import fill_in, training_mask
from seqwm.nn.space_time import Past
from seqwm.tokenizers.frames import FrameTokenizer, TokenizerOptions
from seqwm.tokenizers.video import VideoTokenizer

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe.

    Attributes:
        tokens: of frames.
        actions: the latent ones, as in latent_actions.
        context: frames in a window of training that others are drawn from.
        span: frames that attention along time reaches in each layer, the frame's own counted.
        layers, width, heads: of the dynamics.
        steps: passes that fill in a frame.
        temperature: that tokens are drawn at.
    """

    tokens: TokenizerOptions = field(default_factory=TokenizerOptions)
    actions: LatentOptions = field(default_factory=LatentOptions)
    context: int = 4
    span: int = 3
    layers: int = 2
    width: int = 64
    heads: int = 2
    steps: int = 4
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("context", 1), ("span", 2), ("layers", 1), ("heads", 1), ("steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least {least}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width: found {self.width}, expected an even number for each of the {self.heads} heads")
        if not self.temperature > 0:
            raise ValueError(f"temperature: found {self.temperature}, expected a positive number")


def build(options: Options, store: TrajectoryStore) -> Genie:
    """A model with fresh weights for the frames of a store.

    Raises:
        SpaceError: no image, more than one, or one that patches do not fit.
        DataError: no episode holds enough frames.
    """
    check_lengths(store, options.actions.context, "model.actions.context")
    model: Genie = Genie(
        **store.described(),
        **dataclasses.asdict(options),
    )
    return model


class Genie(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A world whose actions are codes: `encode`, `step`, `decode`; `latent` reads codes off frames; `loss` trains it.

    Its state is what is remembered (`seqwm.nn.space_time.Past`), the `tokens` of the last frame, int64 [B, N], and the
    last of the `frames`, uint8 [B, 1, H, W, C].
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
        tokens: dict[str, Any] | None = None,
        actions: dict[str, Any] | None = None,
        context: int = 4,
        span: int = 3,
        layers: int = 2,
        width: int = 64,
        heads: int = 2,
        steps: int = 4,
        temperature: float = 1.0,
        model_type: str = "seqwm_genie",
    ) -> None:
        super().__init__()
        squares, inferring = TokenizerOptions(**(tokens or {})), LatentOptions(**(actions or {}))
        divided = math.lcm(squares.patch, inferring.divided)
        self.image, (high, wide, colours) = image_of("genie", space_from_json(observation_space), divided)
        kind = VideoTokenizer if squares.levels else FrameTokenizer
        self.tokenizer = kind(colours, (high, wide), squares)
        self.latent = LatentActionModel(colours, inferring)
        self.embed = nn.Embedding(self.tokenizer.codes + 1, width)
        numbers = self.tokenizer.points.shape[1]
        self.meaning = nn.Linear(numbers, width, bias=False)
        self.stood = nn.Linear(width, width, bias=False)
        self.act = nn.Embedding(self.latent.codes + 1, width)
        self.dynamics = FrameTransformer(self.tokenizer.rows, self.tokenizer.columns, layers, width, heads, span)
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(self.tokenizer.codes))
        nn.init.normal_(self.embed.weight, std=0.1 * width**-0.5)
        nn.init.normal_(self.meaning.weight, std=(numbers * width) ** -0.5)
        nn.init.eye_(self.stood.weight)

    @property
    def window_length(self) -> int:
        """Rows of the windows that it is trained on: before what is kept stand those that its first code needs."""
        return int(self.config.context) + self.latent.reach - 1

    @property
    def masked(self) -> int:
        """The token that stands for one to be filled in."""
        return self.tokenizer.codes

    @property
    def unknown(self) -> int:
        """The code that stands for one that nobody saw."""
        return self.latent.codes

    def forward(
        self,
        tokens: Tensor,
        stood: Tensor,
        codes: Tensor,
        past: Past,
        times: Tensor | None = None,
        draft: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """How likely every token is at every place of frames.

        Args:
            tokens: int64 [B, T, N], some of them masked.
            stood: the tokens of the frame before each, int64 [B, T, N]; masked where there is none.
            codes: of what led to each frame, int64 [B, T].
            past: kept frames before them.
            times: of each, counted from the past's next, int64 [T]; one after the other where None.
            draft: whether other frames see it not, bool [T]; they see all where None.

        Returns:
            Logits [B, T, N, V], and keys and values to remember the frames by.
        """
        frames = torch.arange(tokens.shape[1], device=tokens.device)
        times = frames if times is None else times
        draft = torch.zeros_like(frames, dtype=torch.bool) if draft is None else draft
        known = self.embed.weight[:-1] + self.meaning(self.tokenizer.points)
        table = torch.cat((known, self.embed.weight[-1:]))
        entering = F.embedding(tokens, table) + self.stood(F.embedding(stood, table))
        x, keys, values = self.dynamics(entering, self.act(codes), past, times, draft)
        logits: Tensor = F.linear(self.norm(x), known, self.bias)
        return logits, keys, values

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of tokenizer, latent actions and dynamics; how many codes and tokens are in use."""
        frames, valid = self._frames(batch), batch.valid
        drawn, tokens = self.tokenizer(frames)
        before = torch.cat((frames[:, :1], frames[:, :-1]), 1).flatten(0, 1)
        weight = self.latent.weight(before, frames.flatten(0, 1))
        error = (weight * (drawn - frames).flatten(0, 1).square()).mean((1, 2, 3)).view_as(valid)
        parts = {"frame": (error * valid).sum() / valid.sum()}

        reach = self.latent.reach
        clips = frames.unfold(1, reach, 1).movedim(-1, 2)
        whole = valid.unfold(1, reach, 1).all(-1)
        parts["latent"], codes, in_use = self.latent.loss(clips.flatten(0, 1), whole.flatten())

        # Every frame that a code leads to is a draft; it sees those before it, of which the first has no code.
        tokens, codes = tokens[:, reach - 2 :], codes.view_as(whole)
        hidden = training_mask(tuple(tokens[:, 1:].shape), tokens.device)
        said = self._drafted(tokens, torch.where(hidden, self.masked, tokens[:, 1:]), codes)
        asked = hidden & whole.unsqueeze(-1)
        surprise = F.cross_entropy(said[asked].float(), tokens[:, 1:][asked], reduction="sum")
        parts["tokens"] = surprise / asked.sum().clamp_min(1)
        figures = {f"loss_{name}": part.detach() for name, part in parts.items()}
        figures |= {"codes_in_use": in_use, "tokens_in_use": tokens.flatten().bincount().count_nonzero()}
        return torch.stack(list(parts.values())).sum(), figures

    def _drafted(self, tokens: Tensor, drafts: Tensor, codes: Tensor) -> Tensor:
        """Logits [B, T, N, V] of drafts of all but the first of frames [B, T + 1, N], which codes [B, T] led to."""
        kept = torch.arange(drafts.shape[1], device=tokens.device)
        first = torch.full_like(codes[:, :1], self.unknown)
        stood = self._before(tokens)
        said: Tensor = self(
            torch.cat((tokens[:, :-1], drafts), 1),
            torch.cat((stood[:, :-1], stood[:, 1:]), 1),
            torch.cat((first, codes[:, :-1], codes), 1),
            self.dynamics.empty(len(tokens), tokens.device),
            torch.cat((kept, kept + 1)),
            torch.arange(2 * len(kept), device=tokens.device) >= len(kept),
        )[0]
        return said[:, len(kept) :]

    def encode(self, context: Batch) -> State:
        """What is remembered of the window up to its last valid row; its codes are inferred from its frames."""
        frames = self._frames(context)
        reach, length = self.latent.reach, frames.shape[1]
        padded = torch.cat((frames[:, :1].expand(-1, reach - 2, -1, -1, -1), frames), 1)
        codes = torch.full((len(frames), length), self.unknown, device=frames.device)
        if length > 1:
            clips = padded.unfold(1, reach, 1).movedim(-1, 2)
            codes[:, 1:] = self.latent(clips.flatten(0, 1))[2].view(-1, length - 1)
        past = self.dynamics.empty(len(frames), frames.device)
        tokens = self.tokenizer.encode(frames)
        _, keys, values = self(tokens, self._before(tokens), codes, past)
        past = past.remember(keys, values, context.valid.sum(1))
        return {**_packed(past), "tokens": tokens[:, -1], "frames": to_bytes(frames[:, -1:])}

    def step(self, state: State, action: TensorTree, generator: torch.Generator | None) -> Step:
        """The frame that follows where a code (int64 [B]) is done, filled in and remembered."""
        assert isinstance(action, Tensor)
        past, codes = Past(*(state[name] for name in ("keys", "values", "filled", "time"))), action[:, None]
        stood = state["tokens"][:, None]
        blank = torch.full((len(action), self.tokenizer.places), self.masked, device=action.device)
        tokens = fill_in(
            lambda tokens: self(tokens[:, None], stood, codes, past)[0][:, 0],
            blank, self.masked, self.config.steps, self.config.temperature, generator,
        )  # fmt: skip
        _, keys, values = self(tokens[:, None], stood, codes, past)
        past = past.remember(keys, values, torch.ones_like(past.time))
        nothing = torch.zeros(len(tokens), device=tokens.device)
        following = {**_packed(past), "tokens": tokens, "frames": to_bytes(self.tokenizer.decode(tokens[:, None]))}
        return Step(following, nothing, nothing.bool())

    def decode(self, state: State) -> TensorTree:
        """The last frame."""
        tree: TensorTree = unflatten({self.image: state["frames"][:, -1]})
        return tree

    def _before(self, tokens: Tensor) -> Tensor:
        """What stood in the frame before each of frames of tokens [B, T, N]; before the first, nothing is known."""
        return torch.cat((torch.full_like(tokens[:, :1], self.masked), tokens[:, :-1]), 1)

    def _frames(self, batch: Batch) -> Tensor:
        """Frames [B, T, C, H, W] in -1 .. 1; in place of rows that are not valid stand copies of the last that is."""
        last = batch.valid.sum(1, keepdim=True) - 1
        rows = torch.arange(batch.valid.shape[1], device=last.device).minimum(last)
        lanes = torch.arange(len(rows), device=last.device)[:, None]
        return from_bytes(flatten(batch.observations)[self.image][lanes, rows])


def _packed(past: Past) -> State:
    return {"keys": past.keys, "values": past.values, "filled": past.filled, "time": past.time}
