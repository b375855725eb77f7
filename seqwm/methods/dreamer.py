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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import gymnasium.spaces
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from seqwm.control.actor_critic import ActorCritic, ActorCriticOptions
from seqwm.control.latent_learner import LatentLearner, LatentLearning
from seqwm.control.latent_model import LatentModel, world_of
from seqwm.core.errors import SpaceError
from seqwm.core.spaces import leaf_spaces
from seqwm.core.tree import tree_map
from seqwm.core.types import State, TensorTree
from seqwm.nn.latent_world import WorldOptions
from seqwm.nn.logged_config import LoggedConfig
from seqwm.nn.observations import Units
from seqwm.nn.rssm import RSSMOptions

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore
    from seqwm.training.options import TrainOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything in which the versions differ.

    Attributes:
        world: sizes and losses of the world.
        actor_critic: of what learns in it.
        learning: how windows are learned from.
        exploration: deviation of noise on continuous actions, and share of random discrete ones.
    """

    world: WorldOptions
    actor_critic: ActorCriticOptions
    learning: LatentLearning
    exploration: float = 0.0


V3 = Settings(
    world=WorldOptions(rssm=RSSMOptions(deterministic=512, stochastic=32, classes=4, hidden=64), depth=4),
    actor_critic=ActorCriticOptions(),
    learning=LatentLearning(
        sequence_length=64, imagined_rows=64, replay_loss=0.3, replayed_latents=True, optimiser="laprop"
    ),
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
    learning=LatentLearning(sequence_length=50, imagined_rows=50),
    exploration=0.3,
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
    learning=V1.learning,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe; what is null is as in the version's reference (V3: its smallest size).

    Attributes:
        version: 'v1', 'v2' or 'v3'.
        sequence_length: rows in a window.
        deterministic, stochastic, classes, hidden, blocks: of the state-space model (`seqwm.nn.rssm`).
        layers, width: of encoder, decoder, actor and critic.
        units: of numbers that are observed, 'symlog' or 'standardised' by the store's mean and deviation.
        reconstruction_scale: of the loss of what is observed, beside the KL's of about 1; what is blurred below what
            matters needs more.
        depth: channels of the first convolution on images.
        horizon: imagined steps.
        imagined_rows: rows of each window, the last ones, that dreams start from; fewer are cheaper.
        discount: of imagination.
        return_lambda: how much of the imagined future counts beside the critic's word on it.
        entropy: its weight in the actor's loss.
        dynamics_share: of the gradient through the dynamics in the actor's.
        free_nats: of the KL.
        replay_loss: scale of the critic's loss on logged rows.
        imitation: scale of the actor's loss on logged actions, for what learns from logs alone.
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
    units: Units | None = None
    reconstruction_scale: float | None = None
    depth: int | None = None
    horizon: int | None = None
    imagined_rows: int | None = None
    discount: float | None = None
    return_lambda: float | None = None
    entropy: float | None = None
    dynamics_share: float | None = None
    free_nats: float | None = None
    replay_loss: float | None = None
    imitation: float | None = None
    actor_learning_rate: float | None = None
    critic_learning_rate: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < (0 if field.name == "classes" else 1):
                raise ValueError(f"{field.name}: found {value}, expected at least 1")
        if self.discount is not None and not 0 < self.discount <= 1:
            raise ValueError(f"discount: found {self.discount}, expected a number above 0 and at most 1")
        chosen = settings(self)
        if chosen.learning.replay_loss and chosen.learning.imagined_rows < 2:
            raise ValueError(
                "imagined_rows: found 1, expected at least 2: logged rows bootstrap from the dreams of those behind "
                "them; or set replay_loss to 0"
            )
        cell = chosen.world.rssm
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
    learning = _changed(base.learning, given)
    return replace(
        base,
        world=_changed(replace(base.world, rssm=_changed(base.world.rssm, given)), given),
        actor_critic=_changed(base.actor_critic, given),
        learning=replace(learning, imagined_rows=min(learning.imagined_rows, learning.sequence_length)),
    )


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
        **store.described(),
        version=options.version,
        sequence_length=chosen.learning.sequence_length,
        exploration=chosen.exploration,
        world=dataclasses.asdict(chosen.world),
        actor_critic=dataclasses.asdict(chosen.actor_critic),
    )
    model = Dreamer(config)
    statistics = store.statistics
    model.world.observations.fit(statistics.observation_mean, statistics.observation_std)
    return model


def learner(options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> LatentLearner:
    """What trains a fresh model on a store, finished or growing; without rewards, the world alone."""
    model, learning = build(options, store), settings(options).learning
    actor_critic = model.actor_critic if store.has_rewards else None
    return LatentLearner(model, model.world, actor_critic, learning, store, train, seed)


class DreamerConfig(LoggedConfig):
    """`WorldOptions` and `ActorCriticOptions` as JSON, the spaces, and what the model was trained on."""

    model_type = "seqwm_dreamer"

    version: str = "v3"
    sequence_length: int = 64
    exploration: float = 0.0
    world: dict[str, Any] | None = None
    actor_critic: dict[str, Any] | None = None


class Dreamer(LatentModel, PreTrainedModel):
    """A world and an actor in it: `encode`, `step` and `decode` of the one, `policy` of the other."""

    config_class = DreamerConfig

    def __init__(self, config: DreamerConfig) -> None:
        super().__init__(config)
        self.world, actions = world_of(config)
        options = ActorCriticOptions(**(config.actor_critic or {}))
        self.actor_critic = ActorCritic(options, self.world.rssm.feature_size, actions)
        self.post_init()

    def policy(self, target_returns: Sequence[float] | None = None) -> DreamerPolicy:
        """What acts without exploring; `target_returns` must be None.

        Raises:
            SpaceError: the model was trained on data without rewards, so it knows the world but not what to do in it.
        """
        if target_returns is not None:
            raise ValueError("dreamer: found target_returns, expected none: it looks for the largest return")
        return DreamerPolicy(self, explore=False)

    def explorer(self) -> DreamerPolicy:
        """What acts while it learns."""
        return DreamerPolicy(self, explore=True)


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
            features = world.actions.stray(features, self.model.config.exploration)
        action = world.actions.restore(features)
        return action, {**following, "action": world.actions.features(action)}


AutoConfig.register(DreamerConfig.model_type, DreamerConfig)
AutoModel.register(DreamerConfig, Dreamer)
