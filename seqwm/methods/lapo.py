"""LAPO: a policy out of video, a few labels to make it act, and practice in the environment.

Schmidt and Jiang, "Learning to Act without Actions", 2024. Four stages in one run:

    video     a latent action model (`seqwm.nn.latent_action_model`) learns from frames alone what was done in them
    decode    a few true actions, drawn from the logs, say what that means: softmax regression of them on what the
              inverse model sees in a step, of which the code is the rounded extract
    imitate   the policy pi(a | o) learns by cross entropy which decoded action follows the last frames
    practise  it goes on by PPO (`seqwm.control.proximal`) in the environment

What is notable:

- Before `practise` no action is read but those of the `labels` rows, and no reward at all.
- The forward model sees the scene, so a code may stand for two actions where the scene tells which of them an expert
  takes. Hence the labels decode what lies before the rounding. What they get wrong now and then, the policy outvotes:
  it imitates what is decoded in most of the steps that look alike.
- `imitate: labels` leaves the video out and imitates the labelled rows alone: what they are worth by themselves.
- Practice plays whole rounds of its own in every update, from seeds named by (seed, step), so nothing of an environment
  is in a checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces as gym_spaces
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from seqwm.control.proximal import played, proximal_loss, stacked
from seqwm.core.errors import RecipeError, SpaceError
from seqwm.core.random import key, numpy_generator
from seqwm.core.spaces import space_from_json
from seqwm.core.tree import flatten, unflatten
from seqwm.core.types import Batch, Episode, Metrics, Spaces, State, TensorTree
from seqwm.data.store import TrajectoryStore
from seqwm.envs.make import FreezingVectorEnv, make_vector
from seqwm.nn.frames import Recent, from_bytes, image_of
from seqwm.nn.latent_action_model import LatentActionModel, LatentOptions, check_lengths
from seqwm.nn.leaves import Camera
from seqwm.nn.logged_config import LoggedConfig

if TYPE_CHECKING:
    from seqwm.training.options import TrainOptions

_RIDGE = 1e-2  # of the decoder's squared weights, where what it reads is standardised
_LABELS, _PLAY = 1, 2  # places of what is drawn under a seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(LatentOptions):
    """The `model:` section of a recipe: the latent action model's options, and these.

    Attributes:
        labels: transitions of the logs whose action is read.
        imitate: the actions decoded of all frames of the 'video', or those of the 'labels' alone.
        video_share, imitate_share: of the updates; practice has the rest.
        policy_width: features of the policy.
        practice_steps: transitions played before each update of practice.
        practice_lanes: environments side by side.
        practice_rate: learning rate of practice.
    """

    labels: int = 32
    imitate: Literal["video", "labels"] = "video"
    video_share: float = 0.5
    imitate_share: float = 0.5
    policy_width: int = 128
    practice_steps: int = 512
    practice_lanes: int = 32
    practice_rate: float = 3e-4

    def __post_init__(self) -> None:
        LatentOptions.__post_init__(self)  # no super(): a class with slots is another than the one that is written
        for name in ("labels", "policy_width", "practice_steps", "practice_lanes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if min(self.video_share, self.imitate_share) < 0 or self.video_share + self.imitate_share > 1:
            found = f"{self.video_share} and {self.imitate_share}"
            raise ValueError(f"video_share, imitate_share: found {found}, expected two shares, of 1 together at most")
        if self.imitate == "labels" and self.video_share:
            raise ValueError(f"video_share: found {self.video_share} and imitate 'labels', expected 0: it is not used")
        if self.practice_rate <= 0:
            raise ValueError(f"practice_rate: found {self.practice_rate}, expected a positive number")


def learner(options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> LapoLearner:
    """A policy with fresh weights, and what trains it.

    Raises:
        SpaceError: no image, or actions that are not Discrete.
        RecipeError: more labels than transitions; practice, and data that names no environment.
        DataError: clips shorter than the context.
    """
    return LapoLearner(options, store, train, seed)


class LapoConfig(LoggedConfig):
    """The fields of `Options` in one dict, the spaces as JSON, and what the model was trained on."""

    model_type = "seqwm_lapo"

    options: dict[str, Any] | None = None


class Lapo(PreTrainedModel):
    """The latent action model `latent`, the `decoder` of what it sees, and the policy: heads of actions and values."""

    config_class = LapoConfig
    return_conditioned = False

    def __init__(self, config: LapoConfig) -> None:
        super().__init__(config)
        self.options = options = Options(**(config.options or {}))
        self.image, shape = image_of("lapo", space_from_json(config.observation_space or {}), options.divided)
        action = space_from_json(config.action_space or {})
        assert isinstance(action, gym_spaces.Discrete)
        self.start, choices = int(action.start), int(action.n)
        self.latent = LatentActionModel(shape[2], options)
        self.see = Camera((*shape[:2], shape[2] * options.context), options.policy_width)
        self.decoder = nn.Linear(2 * options.width, choices)
        self.actions = nn.Linear(options.policy_width, choices)
        self.value = nn.Linear(options.policy_width, 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        return  # torch's own initial weights, which every layer was made with

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """What to do after frames uint8 [B, context, H, W, C]: log-probabilities [B, A], and the value [B]."""
        features = F.relu(self.see(frames.movedim(1, -2).flatten(-2)))
        return self.actions(features).float().log_softmax(-1), self.value(features).float()[:, 0]

    @torch.no_grad()
    def decoded(self, frames: Tensor) -> Tensor:
        """The action (from 0, int64 [N]) that led to the last of frames uint8 [N, context + 1, H, W, C]."""
        parts = [self.decoder(self.latent.pooled(from_bytes(part))).argmax(-1) for part in frames.split(256)]
        return torch.cat(parts)

    def decode(self, frames: Tensor, actions: Tensor) -> None:
        """Fit the decoder, and nothing else, to labels: frames as of `decoded`, and the actions (from 0, int64 [N])."""
        with torch.no_grad():
            seen = self.latent.pooled(from_bytes(frames)).float()
            mean, deviation = seen.mean(0), seen.std(0).clamp_min(1e-6)
            seen = (seen - mean) / deviation
        weight = torch.zeros_like(self.decoder.weight, requires_grad=True)
        bias = torch.zeros_like(self.decoder.bias, requires_grad=True)
        optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss: Tensor = F.cross_entropy(seen @ weight.T + bias, actions) + _RIDGE * weight.square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.decoder.weight.copy_(weight / deviation)
            self.decoder.bias.copy_(bias - self.decoder.weight @ mean)

    def policy(self, target_returns: Sequence[float] | None = None) -> LapoPolicy:
        """The policy, which does the likeliest action; it takes no target returns."""
        if target_returns is not None:
            raise ValueError("lapo: found target_returns, expected none: it imitates, and practises for all it can get")
        return LapoPolicy(self, explore=False)


class LapoPolicy:
    """State: the last frames, uint8 [B, context, H, W, C]. Exploring, it draws actions from torch's own generator."""

    def __init__(self, model: Lapo, explore: bool) -> None:
        self._model, self._explore = model.eval(), explore

    def initial(self, lanes: int) -> State:
        """Nothing seen."""
        shape = space_from_json(self._model.config.observation_space or {}).shape or ()
        empty = torch.zeros(lanes, self._model.options.context, *shape, dtype=torch.uint8, device=self._model.device)
        return {"frames": empty}

    @torch.no_grad()
    def act(self, state: State, observation: TensorTree, reward: Tensor, first: Tensor) -> tuple[TensorTree, State]:
        """The action of each lane; see `seqwm.core.protocols.Policy`."""
        model = self._model
        seen = observation if isinstance(observation, Tensor) else observation[model.image]
        assert isinstance(seen, Tensor)
        seen = seen.to(model.device)[:, None]
        began = first.to(model.device)[:, None, None, None, None]
        frames = torch.where(began, seen, torch.cat((state["frames"][:, 1:], seen), 1))
        actions, _ = model(frames)
        chosen = torch.distributions.Categorical(logits=actions).sample() if self._explore else actions.argmax(-1)
        return chosen + model.start, {"frames": frames}


class LapoLearner:
    """The stages one after the other; each has its own AdamW, and a cosine of its own."""

    def __init__(self, options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> None:
        _check(options, store)
        self._options, self._store, self._train, self._seed = options, store, train, seed
        config = LapoConfig(
            **store.described(),
            options=dataclasses.asdict(options),
        )
        self.model: Lapo = Lapo(config).to("cuda" if torch.cuda.is_available() else "cpu")
        self._ends = [round(share * train.steps) for share in np.cumsum([options.video_share, options.imitate_share])]
        if self._ends[1] < train.steps and not store.provenance.get("environment"):
            raise RecipeError(
                f"{store.path}: names no environment to practise in; expected video_share and imitate_share of 1 "
                "together, or logs that `seqwm data collect` made"
            )
        acting = [p for name, p in self.model.named_parameters() if not name.startswith("latent.")]
        self._parts = {"video": [*self.model.latent.parameters()], "imitate": acting, "practise": acting}
        self._optimizers = {
            name: torch.optim.AdamW(part, weight_decay=train.weight_decay) for name, part in self._parts.items()
        }
        self.windows = store.windows(options.context + 1, train.batch_size, seed)
        self._decoded: TrajectoryStore | None = None
        self._arena: FreezingVectorEnv | None = None

    def stage(self, step: int) -> tuple[str, int, int]:
        """'video', 'imitate' or 'practise', the number of the update in it, and how many it has."""
        bounds = [0, *self._ends, self._train.steps]
        number = sum(step >= end for end in self._ends)
        return list(self._parts)[number], step - bounds[number], bounds[number + 1] - bounds[number]

    def update(self, step: int) -> Metrics:
        """An update of the stage."""
        stage, number, length = self.stage(step)
        torch.manual_seed(key(self._seed, step) >> 1)
        own = dataclasses.replace(
            self._train, steps=length, warmup_steps=0 if stage == "practise" else min(self._train.warmup_steps, length)
        )
        rate = self._options.practice_rate if stage == "practise" else own.rate(number)
        for group in self._optimizers[stage].param_groups:
            group["lr"] = rate
        if stage == "practise":
            return self._practise(step)
        half = torch.bfloat16 if self._train.precision == "bf16" else None
        self.model.train()
        with torch.autocast(self.model.device.type, half, enabled=half is not None):
            loss, figures = self._seen(step) if stage == "video" else self._imitated(step)
        norm = self._descend(stage, loss)
        told = {"loss": loss, "gradient_norm": norm, **figures}
        return {name: float(value.detach()) for name, value in told.items()} | {"environment_steps": 0.0}

    def _seen(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        recent = Recent.of(self.windows.batch(step).to(self.model.device), self.model.image, None, self.windows.length)
        loss, _, in_use = self.model.latent.loss(from_bytes(recent.frames), (recent.place >= 0).all(1))
        return loss, {"codes_in_use": in_use}

    def _imitated(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The cross entropy of what followed frames: the decoded action or, of labelled rows, the true one."""
        if self._decoded is None:
            self._decoded = self._decode() if self._options.imitate == "video" else self._store
        rows = self._decoded.windows(self._options.context, self._train.batch_size, self._seed)
        batch = rows.batch(step) if self._options.imitate == "video" else rows.gather(*self._drawn_labels(step))
        frames, wanted = _last(batch.to(self.model.device), self.model.image, self._options.context)
        said, _ = self.model(frames)
        wanted = wanted - self.model.start
        return F.nll_loss(said, wanted), {"agreement": (said.argmax(-1) == wanted).float().mean()}

    def _decode(self) -> TrajectoryStore:
        """Fit the decoder to the labels; the logs with decoded actions, and the true ones where they are labelled."""
        self.model.eval()
        rows: dict[int, list[int]] = {}
        for number, step in zip(*(part.tolist() for part in self.label_rows()), strict=True):
            rows.setdefault(number, []).append(step)
        labelled = [(*self._steps(number), steps) for number, steps in rows.items()]
        frames = torch.cat([frames[steps] for frames, _, steps in labelled])
        actions = torch.cat([actions[steps] for _, actions, steps in labelled])
        self.model.decode(frames.to(self.model.device), (actions - self.model.start).to(self.model.device))
        spaces = Spaces(self._store.spaces.observation, self._store.spaces.action)
        made = TrajectoryStore.create(None, spaces, rewards=False)
        for number, episode in enumerate(self._store.episodes()):
            frames, actions = self._steps(number)
            told = self.model.decoded(frames.to(self.model.device)).cpu() + self.model.start
            told[rows.get(number, [])] = actions[rows.get(number, [])]
            kept = {path: np.asarray(leaf)[: len(told) + 1] for path, leaf in flatten(episode.observations).items()}
            made.append(Episode(unflatten(kept), told.numpy(), None, False, True))
        self.model.train()
        return made

    def _steps(self, number: int) -> tuple[Tensor, Tensor]:
        """Of an episode what led to each frame but the first: frames uint8 [T, context + 1, H, W, C], actions [T]."""
        episode = self._store.episode(number)
        frames = stacked(flatten(episode.observations)[self.model.image], self._options.context + 1)[1:]
        actions = torch.from_numpy(np.array(next(iter(flatten(episode.actions).values()))))
        return frames, actions[: len(frames)]

    def label_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Episode and step of the transitions whose action is read, int64 [labels]; the same for either `imitate`."""
        # without a last frame nobody sees what the last action did
        ends = np.array([self._store.episode(number).final_observation for number in range(len(self._store))])
        lengths = self._store.lengths - ~ends
        chosen = numpy_generator(self._seed, _LABELS).choice(int(lengths.sum()), self._options.labels, replace=False)
        firsts = np.concatenate([[0], np.cumsum(lengths)])
        episodes = np.searchsorted(firsts, chosen, side="right") - 1
        return episodes, chosen - firsts[episodes]

    def _drawn_labels(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        episodes, steps = self.label_rows()
        drawn = numpy_generator(self._seed, _LABELS, step).integers(len(episodes), size=self._train.batch_size)
        return episodes[drawn], steps[drawn]

    def _practise(self, step: int) -> Metrics:
        """Play, then learn from what was played."""
        o = self._options
        if self._arena is None:
            known = self._store.provenance
            options = known.get("environment_options")
            self._arena = make_vector(
                known["environment"], o.practice_lanes, spaces=self._store.spaces, options=options
            )
        acting = LapoPolicy(self.model, explore=True)
        round_ = played(
            self._arena, acting, self._evaluated, o.practice_steps, o.context, key(self._seed, _PLAY, step) >> 1
        )
        figures: dict[str, float] = {}
        for rows in round_.minibatches(torch.default_generator):
            actions, value = self.model(rows.frames)
            loss, figures = proximal_loss(actions, value, rows)
            figures["gradient_norm"] = float(self._descend("practise", loss))
        done = (step - self._ends[1] + 1) * o.practice_steps
        return figures | {"environment_steps": float(done), "collected_return": round_.mean_return}

    @torch.no_grad()
    def _evaluated(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of actions [N, A] and values [N] after frames uint8 [N, context, H, W, C]."""
        parts = [self.model(part.to(self.model.device)) for part in frames.split(256)]
        actions, values = (torch.cat([part[at] for part in parts]) for at in range(2))
        return actions, values

    def _descend(self, stage: str, loss: Tensor) -> Tensor:
        optimizer = self._optimizers[stage]
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parts[stage], self._train.gradient_clip or float("inf"))
        optimizer.step()
        return norm

    def policy(self, explore: bool) -> LapoPolicy:
        """What acts now; exploring, it draws its actions."""
        return LapoPolicy(self.model, explore)

    def trained(self) -> Lapo:
        """The model."""
        self.model.eval()
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Weights, and AdamW's moments by stage and place."""
        moments = {}
        for name, optimizer in self._optimizers.items():
            entries = enumerate(self._parts[name])
            moments[name] = {str(place): dict(optimizer.state[p]) for place, p in entries if optimizer.state[p]}
        return {"model": self.model.state_dict(), "moments": moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        for name, places in state.get("moments", {}).items():
            for place, tensors in places.items():
                self._optimizers[name].state[self._parts[name][int(place)]] = tensors


def _last(batch: Batch, image: str, context: int) -> tuple[Tensor, Tensor]:
    """Frames uint8 [B, context, H, W, C] up to each window's last valid row, and the action there, int64 [B]."""
    recent = Recent.of(batch, image, None, context)
    assert isinstance(batch.actions, Tensor)
    return recent.frames, batch.actions.gather(1, batch.valid.sum(1, keepdim=True) - 1)[:, 0]


def _check(options: Options, store: TrajectoryStore) -> None:
    action = store.spaces.action
    if not isinstance(action, gym_spaces.Discrete):
        raise SpaceError(
            f"{store.path}: found actions {action}, expected one Discrete of which `labels` are read; without any, "
            "train latent_actions and behavior_cloning on what `seqwm data label` writes"
        )
    if options.labels >= store.rows:
        raise RecipeError(
            f"labels: found {options.labels}, expected fewer than the {store.rows} transitions of the logs"
        )
    check_lengths(store, options.context)


AutoConfig.register(LapoConfig.model_type, LapoConfig)
AutoModel.register(LapoConfig, Lapo)
