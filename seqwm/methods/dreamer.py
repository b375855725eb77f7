"""Dreamer: learn a world in latent space, and to act in it by dreaming. Versions 1, 2 and 3 as one set of options.

Hafner et al., "Dream to Control", 2020 (V1); "Mastering Atari with Discrete World Models", 2021 (V2); "Mastering
Diverse Domains through World Models", 2023 (V3). Settings from danijar/dreamer, danijar/dreamerv2, and from
danijar/dreamerv3 as it is since 2024, which differs from the preprint that most ports follow.

| | V1 | V2 | V3 |
| --- | --- | --- | --- |
| random state | 30 normal | 32 x 32 categories | 32 x 4 ... 96 categories, 1 % uniform |
| KL | 3 free nats of the mean | balanced 0.8 to 0.2 | 1 and 0.1, 1 free nat a row |
| recurrence | GRU | GRU with layer norm | GRU in 8 blocks with RMS norm |
| numbers | standardised | standardised | symlog; rewards and values two-hot |
| actor's gradient | through the dynamics | discrete: REINFORCE, else dynamics | REINFORCE, returns scaled |
| critic | its own targets | targets of a copy 100 updates old | drawn to its average; learns from logged rows, too |
| optimiser | Adam | Adam | LaProp, gradients clipped to shares of the weights |
| state before a window | zeros | zeros | the one that the last update left there |

**What is notable.** One update learns the world, the actor and the critic from windows that cross the borders of
episodes (`seqwm.data.arrivals`). It is the same with a collector on a growing store and on a finished one, which is
offline training. Everything random in it is a function of (seed, step). What differs from the references: V1 and V2
predict the end of episodes by default, actions of V2 are distributed as V1's, and images go through strided
convolutions down to four pixels in all versions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import gymnasium.spaces
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from seqwm.control.actor_critic import ActorCritic, ActorCriticOptions
from seqwm.core.errors import SpaceError
from seqwm.core.protocols import Policy, Step
from seqwm.core.random import torch_generator
from seqwm.core.spaces import leaf_spaces, space_from_json, space_to_json
from seqwm.core.tree import tree_map
from seqwm.core.types import Batch, Metrics, State, TensorTree
from seqwm.data.arrivals import CrossingWindows, arrivals
from seqwm.nn.latent_world import LatentWorld, WorldOptions
from seqwm.nn.optimisers import LaProp
from seqwm.nn.rssm import RSSMOptions

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore
    from seqwm.training.options import TrainOptions

_NOISE = 1  # the place of an update's noise among the random streams under a seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything in which the versions differ.

    Attributes:
        world: sizes and losses of the world.
        actor_critic: of what learns in it.
        sequence_length: rows in a window.
        imagined_rows: rows of each window, the last ones, that dreams start from.
        replay_loss: scale of the critic's loss on logged rows.
        replayed_latents: whether windows begin in the state that the last update left at their first row.
        exploration: deviation of noise on continuous actions, and share of random discrete ones.
        optimiser: of all networks.
    """

    world: WorldOptions
    actor_critic: ActorCriticOptions
    sequence_length: int
    imagined_rows: int
    replay_loss: float
    replayed_latents: bool
    exploration: float
    optimiser: Literal["adam", "laprop"]


V3 = Settings(
    world=WorldOptions(rssm=RSSMOptions(deterministic=512, stochastic=32, classes=4, hidden=64), depth=4),
    actor_critic=ActorCriticOptions(),
    sequence_length=64,
    imagined_rows=64,
    replay_loss=0.3,
    replayed_latents=True,
    exploration=0.0,
    optimiser="laprop",
)
_V1_CELL = RSSMOptions(
    deterministic=200,
    stochastic=30,
    classes=0,
    hidden=200,
    recurrence="gru",
    prior_layers=1,
    norm="none",
    activation="elu",
)
V1 = Settings(
    world=WorldOptions(
        rssm=_V1_CELL,
        layers=3,
        width=400,
        head_layers=2,
        depth=32,
        units="standardised",
        rewards="squared",
        discount=0.99,
        reconstruction_scale=0.5,
        dynamics_scale=1.0,
        representation_scale=1.0,
        free_nats=3.0,
        free_of="batch",
    ),
    actor_critic=ActorCriticOptions(
        width=400,
        norm="none",
        activation="elu",
        entropy=0.0,
        dynamics_share=1.0,
        normalise_returns=False,
        values="squared",
        slow="none",
        continuous="tanh_normal",
        uniform=0.0,
    ),
    sequence_length=50,
    imagined_rows=50,
    replay_loss=0.0,
    replayed_latents=False,
    exploration=0.3,
    optimiser="adam",
)
V2 = Settings(
    world=replace(
        V1.world,
        rssm=replace(_V1_CELL, deterministic=600, stochastic=32, classes=32, hidden=600, norm="layer", uniform=0.0),
        layers=4,
        head_layers=4,
        depth=48,
        dynamics_scale=0.8,
        representation_scale=0.2,
        free_nats=0.0,
    ),
    actor_critic=replace(
        V1.actor_critic,
        layers=4,
        entropy=2e-3,
        dynamics_share=0.0,
        slow="targets",
        slow_rate=1.0,
        slow_every=100,
    ),
    sequence_length=50,
    imagined_rows=50,
    replay_loss=0.0,
    replayed_latents=False,
    exploration=0.0,
    optimiser="adam",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe; what is null is as in the version's reference (V3: its smallest size).

    Attributes:
        version: 'v1', 'v2' or 'v3'.
        sequence_length: rows in a window.
        deterministic, stochastic, classes, hidden, blocks: of the state-space model (`seqwm.nn.rssm`).
        layers, width: of encoder, decoder, actor and critic.
        depth: channels of the first convolution on images.
        horizon: imagined steps.
        imagined_rows: rows of each window, the last ones, that dreams start from; fewer are cheaper.
        discount: of imagination.
        return_lambda: how much of the imagined future counts beside the critic's word on it.
        entropy: its weight in the actor's loss.
        dynamics_share: of the gradient through the dynamics in the actor's.
        free_nats: of the KL.
        replay_loss: scale of the critic's loss on logged rows.
        actor_learning_rate, critic_learning_rate: null takes the one of `train:`.
    """

    version: Literal["v1", "v2", "v3"] = "v3"
    sequence_length: int | None = None
    deterministic: int | None = None
    stochastic: int | None = None
    classes: int | None = None
    hidden: int | None = None
    blocks: int | None = None
    layers: int | None = None
    width: int | None = None
    depth: int | None = None
    horizon: int | None = None
    imagined_rows: int | None = None
    discount: float | None = None
    return_lambda: float | None = None
    entropy: float | None = None
    dynamics_share: float | None = None
    free_nats: float | None = None
    replay_loss: float | None = None
    actor_learning_rate: float | None = None
    critic_learning_rate: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < (0 if field.name == "classes" else 1):
                raise ValueError(f"{field.name}: found {value}, expected at least 1")
        if self.discount is not None and not 0 < self.discount <= 1:
            raise ValueError(f"discount: found {self.discount}, expected a number above 0 and at most 1")
        cell = settings(self).world.rssm
        if cell.recurrence == "block_gru" and cell.deterministic % cell.blocks:
            raise ValueError(
                f"deterministic: found {cell.deterministic}, expected a multiple of the {cell.blocks} blocks"
            )


def settings(options: Options, *, discrete: bool = True) -> Settings:
    """The version's settings with what the options change; V2's gradient depends on the kind of actions."""
    base = {"v1": V1, "v2": V2, "v3": V3}[options.version]
    if options.version == "v2" and not discrete:
        base = replace(base, actor_critic=replace(base.actor_critic, dynamics_share=1.0, entropy=1e-4))
    given = {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
    result: Settings = replace(
        _changed(base, given),
        world=_changed(replace(base.world, rssm=_changed(base.world.rssm, given)), given),
        actor_critic=_changed(base.actor_critic, given),
    )
    return replace(result, imagined_rows=min(result.imagined_rows, result.sequence_length))


def _changed(options: Any, given: dict[str, Any]) -> Any:
    names = {field.name for field in dataclasses.fields(options)}
    return replace(options, **{name: value for name, value in given.items() if name in names})


def build(options: Options, store: TrajectoryStore) -> Dreamer:
    """A model with fresh weights for the data of a store.

    Raises:
        SpaceError: the store has no actions, without which there are no dynamics; or actions without bounds.
    """
    if store.spaces.action is None:
        raise SpaceError(
            f"{store.path}: the data has no actions; dreamer needs them: what a world does is the answer to actions"
        )
    leaves = leaf_spaces(store.spaces.action).values()
    discrete = all(not isinstance(leaf, gymnasium.spaces.Box) for leaf in leaves)
    chosen = settings(options, discrete=discrete)
    if not store.has_rewards:
        chosen = replace(chosen, world=replace(chosen.world, rewards="none"))
    config = DreamerConfig(
        observation_space=space_to_json(store.spaces.observation),
        action_space=space_to_json(store.spaces.action),
        dataset=store.provenance.get("source"),
        dataset_fingerprint=store.fingerprint,
        environment=store.provenance.get("environment"),
        version=options.version,
        sequence_length=chosen.sequence_length,
        exploration=chosen.exploration,
        world=dataclasses.asdict(chosen.world),
        actor_critic=dataclasses.asdict(chosen.actor_critic),
    )
    model = Dreamer(config)
    statistics = store.statistics
    model.world.observations.fit(statistics.observation_mean, statistics.observation_std)
    return model


def learner(options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> DreamerLearner:
    """What trains a fresh model on a store, finished or growing."""
    return DreamerLearner(build(options, store), options, store, train, seed)


class DreamerConfig(PreTrainedConfig):
    """`WorldOptions` and `ActorCriticOptions` as JSON, the spaces, and what the model was trained on."""

    model_type = "seqwm_dreamer"

    observation_space: dict[str, Any] | None = None
    action_space: dict[str, Any] | None = None
    dataset: str | None = None
    dataset_fingerprint: str | None = None
    environment: str | None = None
    version: str = "v3"
    sequence_length: int = 64
    exploration: float = 0.0
    world: dict[str, Any] | None = None
    actor_critic: dict[str, Any] | None = None


class Dreamer(PreTrainedModel):
    """A world and an actor in it: `encode`, `step` and `decode` of the one, `policy` of the other."""

    config_class = DreamerConfig
    return_conditioned = False

    def __init__(self, config: DreamerConfig) -> None:
        super().__init__(config)
        world = dict(config.world or {})
        world["rssm"] = RSSMOptions(**world.get("rssm", {}))
        spaces = space_from_json(config.observation_space or {}), space_from_json(config.action_space or {})
        self.world = LatentWorld(WorldOptions(**world), *spaces)
        options = ActorCriticOptions(**(config.actor_critic or {}))
        self.actor_critic = ActorCritic(options, self.world.rssm.feature_size, spaces[1])
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        return  # the initial weights that every layer was made with

    @property
    def window_length(self) -> int:
        """Rows of the windows that it was trained on."""
        return int(self.config.sequence_length)

    def encode(self, context: Batch) -> State:
        """The most likely state at the last valid row's observation."""
        return self.world.encode(context)

    def step(self, state: State, action: TensorTree, generator: torch.Generator | None) -> Step:
        """The state behind an action, its reward, and whether the task ended."""
        return self.world.step(state, action, generator)

    def decode(self, state: State) -> TensorTree:
        """The observation that a state stands for."""
        return self.world.decode(state)

    def policy(self, target_returns: Sequence[float] | None = None) -> DreamerPolicy:
        """What acts without exploring; `target_returns` must be None.

        Raises:
            SpaceError: the model was trained on data without rewards, so it knows the world but not what to do in it.
        """
        if target_returns is not None:
            raise ValueError("dreamer: found target_returns, expected none: it looks for the largest return")
        return DreamerPolicy(self, explore=False)


class DreamerPolicy:
    """Acts in a batch of lanes on the state of each; draws from torch's default generator where it explores.

    State: deterministic, stochastic, and the features of the last action, float32 [B, A].
    """

    def __init__(self, model: Dreamer, *, explore: bool) -> None:
        if model.world.options.rewards == "none":
            raise SpaceError("dreamer: the data had no rewards, so there is a world and no policy; log rewards for one")
        self.model, self.explore = model, explore

    def initial(self, lanes: int) -> State:
        """Zeros, as before any row."""
        model, device = self.model, self.model.device
        actions = torch.zeros(lanes, model.world.actions.size, device=device)
        return {**model.world.rssm.initial(lanes, device), "action": actions}

    @torch.no_grad()
    def act(self, state: State, observation: TensorTree, reward: Tensor, first: Tensor) -> tuple[TensorTree, State]:
        """Actions and the states they were chosen in; see `seqwm.core.protocols.Policy`."""
        world, lanes = self.model.world, len(first)
        observation = tree_map(lambda leaf: leaf.to(self.model.device), observation)
        noise = world.rssm.noise(lanes, generator=None, device=self.model.device) if self.explore else None
        embedded = world.observations.encode(observation)
        following = world.rssm.update(state, embedded, state["action"], first, noise)
        chosen = self.model.actor_critic.policy(world.features(following))
        features = chosen.sample(chosen.noise(None)) if self.explore else chosen.mode()
        if self.explore and self.model.config.exploration:
            features = self._stray(features)
        action = world.actions.restore(features)
        return action, {**following, "action": world.actions.features(action)}

    def _stray(self, features: Tensor) -> Tensor:
        """V1's exploration: noise on continuous actions, now and then another discrete one."""
        scale, parts = float(self.model.config.exploration), []
        for leaf, part in zip(
            self.model.actor_critic.leaves,
            features.split([leaf.size for leaf in self.model.actor_critic.leaves], -1),
            strict=True,
        ):
            if leaf.sizes:
                elsewhere = torch.rand(len(part), 1, device=part.device) < scale
                parts.append(torch.where(elsewhere, torch.rand_like(part), part))
            else:
                parts.append((part + scale * torch.randn_like(part)).clamp(-1, 1))
        return torch.cat(parts, -1)


class DreamerLearner:
    """World, actor and critic, learned together from windows of a store.

    Of `train:`, `gradient_clip` is the largest norm of the gradient of each of world, actor and critic for V1 and V2,
    and for V3 that of each tensor as a share of the tensor's own norm.

    Args:
        model: with fresh weights.
        options: those it was built with.
        store: finished or growing.
        train: of the updates.
        seed: of windows and noise.

    Raises:
        ValueError: half precision, or a rate that falls, is asked for.
    """

    def __init__(
        self, model: Dreamer, options: Options, store: TrajectoryStore, train: TrainOptions, seed: int
    ) -> None:
        for name, only in (("precision", "float32"), ("schedule", "constant")):
            if getattr(train, name) != only:
                raise ValueError(f"train.{name}: found {getattr(train, name)}, expected {only}: dreamer has no other")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Dreamer = model.to(self.device)
        self.train, self.seed = train, seed
        chosen = settings(options, discrete=True)
        self._chosen, self._length, self._starts = chosen, chosen.sequence_length, chosen.imagined_rows
        # One row more than is learned from: it gives the next one its action, reward and, of V3, its state.
        self.windows = CrossingWindows(store, chosen.sequence_length + 1, train.batch_size, seed)
        self._acts = model.world.options.rewards != "none"
        groups = [
            (self.model.world.parameters(), train.learning_rate),
            (self.model.actor_critic.actor.parameters(), options.actor_learning_rate or train.learning_rate),
            (self.model.actor_critic.critic.parameters(), options.critic_learning_rate or train.learning_rate),
        ]
        self._names = {p: name for name, p in self.model.named_parameters() if p.requires_grad}
        self._peaks = [peak for _, peak in groups]
        self._optimiser = _optimiser([{"params": list(p), "lr": lr} for p, lr in groups], chosen.optimiser, train)
        self._average = {name: p.detach().clone() for p, name in self._names.items()} if train.ema is not None else {}
        # The state behind each row of the store; zeros, the initial one, where none was left yet.
        self._latents = torch.zeros(0, self.model.world.rssm.feature_size, device=self.device)

    def update(self, step: int) -> Metrics:
        """Update number `step`; every loss, figures of the dreams, and the gradient's norm."""
        model, world = self.model.train(), self.model.world
        rows = torch.from_numpy(self.windows.rows(step)).to(self.device)
        arrived = arrivals(self.windows.gather(rows.cpu().numpy()).to(self.device), context=1)
        lanes, length = arrived.first.shape
        generator = torch_generator(self.seed, _NOISE, step, device=self.device.type)
        noise = world.rssm.noise(lanes, length, generator=generator, device=self.device)
        latents, _ = world.observe(arrived, self._state_before(rows[:, 0]), noise)
        losses = world.losses(arrived, latents)
        figures: dict[str, Tensor] = {}
        if self._acts:
            last = slice(length - self._starts, length)
            start = {
                "deterministic": latents.deterministic[:, last].flatten(0, 1),
                "stochastic": latents.stochastic[:, last].flatten(0, 1),
            }
            dreamt = model.actor_critic.losses(world, start, generator)
            losses |= {"actor": dreamt.actor, "critic": dreamt.critic}
            figures |= dreamt.figures
            if self._chosen.replay_loss:
                imagined = dreamt.returns[0].unflatten(0, (lanes, -1))
                tail = dataclasses.replace(
                    arrived, **{name: getattr(arrived, name)[:, last] for name in ("rewards", "terminated", "last")}
                )
                logged = model.actor_critic.replay_loss(
                    latents.features[:, last], tail, imagined, world.options.discount
                )
                losses["replay"] = self._chosen.replay_loss * logged
        loss = torch.stack(list(losses.values())).sum()
        figures = {"loss": loss.detach(), **{f"loss_{name}": part.detach() for name, part in losses.items()}, **figures}
        figures["gradient_norm"] = self._descend(loss, step)
        model.actor_critic.follow(step)
        if self._chosen.replayed_latents:
            self._latents[rows[:, 1:]] = latents.features.detach()
        values = torch.stack([value.detach().float() for value in figures.values()]).tolist()
        return dict(zip(figures, values, strict=True)) | {"learning_rate": self._optimiser.param_groups[0]["lr"]}

    def _state_before(self, rows: Tensor) -> State:
        """The state behind these rows, [B], as it was last left there."""
        model, total = self.model, sum(len(part) for part in self.windows.store.parts)
        if not self._chosen.replayed_latents:
            return model.world.rssm.initial(len(rows), self.device)
        if total > len(self._latents):
            grown = self._latents.new_zeros(max(total, 2 * len(self._latents)), self._latents.shape[1])
            grown[: len(self._latents)] = self._latents
            self._latents = grown
        stochastic, deterministic = self._latents[rows].split(
            [model.world.rssm.size, model.world.options.rssm.deterministic], -1
        )
        return {"deterministic": deterministic, "stochastic": stochastic}

    def _descend(self, loss: Tensor, step: int) -> Tensor:
        """One step of the optimiser; the norm of the whole gradient, before it is clipped."""
        loss.backward()
        gradients = [p.grad for p in self._names if p.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        rise = min(1.0, (step + 1) / self.train.warmup_steps) if self.train.warmup_steps else 1.0
        for group, peak in zip(self._optimiser.param_groups, self._peaks, strict=True):
            group["lr"] = peak * rise
            if self.train.gradient_clip is not None and not isinstance(self._optimiser, LaProp):
                torch.nn.utils.clip_grad_norm_(group["params"], self.train.gradient_clip)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        if self._average:
            weight = 1 - min(self.train.ema or 0.0, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self._average.values()), [p.data for p in self._names], weight)
        return norm

    def trained(self) -> Dreamer:
        """The model to evaluate and to save; with averaged weights where `train.ema` asks for them."""
        self.model.eval()
        if not self._average:
            return self.model
        averaged = deepcopy(self.model)
        for name, p in averaged.named_parameters():
            if name in self._average:
                p.data.copy_(self._average[name])
        return averaged

    def policy(self, explore: bool) -> Policy:
        """Exploring, the model as it goes on learning; else the one that `trained` gives."""
        return DreamerPolicy(self.model, explore=True) if explore else self.trained().policy()

    def state_dict(self) -> dict[str, Any]:
        """Weights, buffers, the optimiser's moments by parameter, the average, and the states behind the rows."""
        moments = {name: dict(self._optimiser.state[p]) for p, name in self._names.items()}
        state: dict[str, Any] = {"model": self.model.state_dict(), "latents": self._latents}
        state |= {"optimiser": {name: tensors for name, tensors in moments.items() if tensors}}
        if self._average:
            state |= {"average": self._average}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        for p, name in self._names.items():
            if name in state.get("optimiser", {}):
                tensors = state["optimiser"][name]
                self._optimiser.state[p] = {
                    part: tensor if part == "step" else tensor.to(self.device) for part, tensor in tensors.items()
                }
        for name, tensor in state.get("average", {}).items():
            self._average[name].copy_(tensor)
        self._latents = state["latents"].to(self.device)


def _optimiser(
    groups: list[dict[str, Any]], kind: Literal["adam", "laprop"], train: TrainOptions
) -> torch.optim.Optimizer:
    if kind == "laprop":
        return LaProp(groups, betas=train.betas, clip=train.gradient_clip, weight_decay=train.weight_decay)
    return torch.optim.AdamW(groups, betas=train.betas, eps=1e-5, weight_decay=train.weight_decay)


AutoConfig.register(DreamerConfig.model_type, DreamerConfig)
AutoModel.register(DreamerConfig, Dreamer)
