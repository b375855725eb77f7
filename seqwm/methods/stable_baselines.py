"""DQN, PPO and SAC of Stable-Baselines3: what learning without a world model reaches, in the same recipes and stores.

Raffin et al., "Stable-Baselines3: Reliable Reinforcement Learning Implementations", JMLR 2021. Networks, losses and
updates are theirs, called through `train`; environments, schedule, evaluation, checkpoints and the store are ours, so
that a learning curve differs from one of ours in the method alone.

What is notable:

- An update is one of their gradient steps for DQN and SAC, and for PPO their training on a full buffer of `n_steps`
  steps in every lane: `collect.updates_per_step` is then 1 / (n_steps * lanes).
- Their replay buffer is filled transition by transition and saved with the checkpoint; `collect.prefill` takes the
  place of their `learning_starts`, `collect.updates_per_step` that of `train_freq` and `gradient_steps`.
- An image is read as one vector of its bytes over 255 by the hidden layers, which suits small ones; dreamer has
  convolutions.
- Buffers draw from NumPy's global generator; it is seeded before every update by (seed, step).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from gymnasium import spaces as gym_spaces
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from seqwm.control.gathering import Transitions
from seqwm.core.errors import MissingPackageError, RecipeError, SpaceError
from seqwm.core.random import key
from seqwm.core.spaces import space_from_json, space_to_json
from seqwm.core.types import Metrics, Spaces, State, TensorTree
from seqwm.nn.logged_config import LoggedConfig

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore
    from seqwm.training.options import TrainOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe.

    Attributes:
        algorithm: which.
        widths: of the hidden layers.
        settings: keyword arguments of Stable-Baselines3's class (gamma, tau, n_steps, ...); learning rate and batch
            size are those of `train:`.
    """

    algorithm: Literal["dqn", "ppo", "sac"]
    widths: tuple[int, ...] = (256, 256)
    settings: dict[str, int | float | bool | str] = field(default_factory=dict)


def learner(options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> StableBaselinesLearner:
    """A learner whose replay buffer begins with what a store holds.

    Raises:
        SpaceError: observations of several parts, or actions that the algorithm cannot take.
        RecipeError: settings that its class does not know.
        MissingPackageError: stable-baselines3 is not installed.
    """
    return StableBaselinesLearner(options, store, train, seed)


class StableBaselinesLearner:
    """An algorithm of Stable-Baselines3 without its loop."""

    def __init__(self, options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> None:
        self._options, self._train, self._seed = options, train, seed
        self._facts = {
            "observation_space": space_to_json(store.spaces.observation),
            "action_space": space_to_json(store.spaces.action) if store.spaces.action else None,
            "dataset": store.provenance.get("source"),
            "environment": store.provenance.get("environment"),
        }
        self.algorithm = _algorithm(options, store.spaces, train, seed)
        self._on_policy = options.algorithm == "ppo"
        self._last: Transitions | None = None
        self._sampled: Tensor | None = None  # actions as the network drew them; environments get them within bounds
        if not self._on_policy:
            for episode in store.episodes():
                self._replay(episode)

    def _replay(self, episode: Any) -> None:
        for t, reward in enumerate(episode.rewards.tolist()):
            last = t == len(episode) - 1
            self._remember(
                episode.observations[t], episode.actions[t], reward, episode.observations[t + 1],
                last and episode.terminated, last and episode.truncated,
            )  # fmt: skip

    def _remember(self, before: Any, action: Any, reward: float, after: Any, terminated: bool, truncated: bool) -> None:
        algorithm = self.algorithm
        if isinstance(algorithm.action_space, gym_spaces.Box):
            action = algorithm.policy.scale_action(np.asarray(action))
        row = [np.asarray(part)[None] for part in (before, after, action, reward, terminated or truncated)]
        algorithm.replay_buffer.add(*row, [{"TimeLimit.truncated": truncated and not terminated}])

    def observe(self, transitions: Transitions) -> None:
        """Take what happened into the algorithm's buffer."""
        t, algorithm = transitions, self.algorithm
        self._last = t
        if self._on_policy:
            self._observe_on_policy(t)
            return
        for lane in range(len(t.rewards)):
            self._remember(
                t.observations[lane], t.actions[lane], float(t.rewards[lane]), t.following[lane],  # type: ignore[index]
                bool(t.terminated[lane]), bool(t.truncated[lane]),
            )  # fmt: skip
            if self._options.algorithm == "dqn":
                algorithm._on_step()  # counts towards the next copy of the target network

    @torch.no_grad()
    def _observe_on_policy(self, t: Transitions) -> None:
        from stable_baselines3.common.buffers import RolloutBuffer

        algorithm, lanes = self.algorithm, len(t.rewards)
        if algorithm.rollout_buffer.n_envs != lanes:
            spaces = algorithm.observation_space, algorithm.action_space
            discounts = {"gamma": algorithm.gamma, "gae_lambda": algorithm.gae_lambda}
            algorithm.rollout_buffer = RolloutBuffer(
                algorithm.n_steps, *spaces, device=algorithm.device, n_envs=lanes, **discounts
            )
        assert self._sampled is not None
        before, actions = self._tensor(t.observations), self._sampled
        values, log_probability, _ = algorithm.policy.evaluate_actions(before, actions)
        rewards = t.rewards.copy()
        cut = t.truncated & ~t.terminated
        if cut.any():
            following = algorithm.policy.predict_values(self._tensor(t.following))
            rewards[cut] += algorithm.gamma * following[:, 0].cpu().numpy()[cut]
        taken = actions.cpu().numpy().reshape(lanes, -1)
        algorithm.rollout_buffer.add(t.observations, taken, rewards, t.first, values, log_probability)

    def update(self, step: int) -> Metrics:
        """One gradient step, or for PPO one pass over its buffer when that is full."""
        algorithm = self.algorithm
        algorithm._current_progress_remaining = 1.0 - step / self._train.steps
        named = key(self._seed, step)
        np.random.seed(named % 2**32)  # noqa: NPY002 - what their buffers draw from
        torch.manual_seed(named >> 1)
        if not self._on_policy:
            algorithm.train(1, self._train.batch_size)
        elif algorithm.rollout_buffer.full:
            assert self._last is not None
            with torch.no_grad():
                values = algorithm.policy.predict_values(self._tensor(self._last.following))
            ended = self._last.terminated | self._last.truncated
            algorithm.rollout_buffer.compute_returns_and_advantage(last_values=values, dones=ended)
            algorithm.train()
            algorithm.rollout_buffer.reset()
        algorithm.policy.set_training_mode(False)
        told = algorithm.logger.name_to_value
        metrics = {name[6:]: float(value) for name, value in told.items() if name.startswith("train/")}
        told.clear()
        return metrics

    def policy(self, explore: bool) -> StableBaselinesPolicy:
        """Acts by the network as it is now."""
        share = float(self.algorithm.exploration_rate) if self._options.algorithm == "dqn" else 0.0
        return StableBaselinesPolicy(self.algorithm.policy, self._options.algorithm, explore, share, self)

    def trained(self) -> StableBaselines:
        """The network as a model."""
        sizes = {"algorithm": self._options.algorithm, "widths": list(self._options.widths)}
        model = StableBaselines(StableBaselinesConfig(**self._facts, **sizes))
        model.network.load_state_dict(self.algorithm.policy.state_dict())
        return model

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers, counters, and the replay buffer."""
        algorithm = self.algorithm
        variables = {name: getattr(algorithm, name).detach() for name in algorithm._get_torch_save_params()[1]}
        state: dict[str, Any] = {
            "counters": {"updates": algorithm._n_updates, "calls": getattr(algorithm, "_n_calls", 0)},
            "left": algorithm._current_progress_remaining,
            "parameters": {name.replace(".", "-"): _plain(part) for name, part in algorithm.get_parameters().items()},
            "variables": variables,
        }
        if not self._on_policy:
            buffer = algorithm.replay_buffer
            used = slice(buffer.size())
            arrays = {name: getattr(buffer, name)[used] for name in _BUFFER}
            state["buffer"] = {name: torch.from_numpy(array) for name, array in arrays.items()}
            state["place"] = {"pos": buffer.pos, "full": buffer.full}
            state["exploration"] = float(getattr(algorithm, "exploration_rate", 0.0))
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        algorithm = self.algorithm
        saved = state["parameters"]
        known = {name: (saved[name.replace(".", "-")], part) for name, part in algorithm.get_parameters().items()}
        algorithm.set_parameters({name: _restored(*pair) for name, pair in known.items()}, exact_match=True)
        algorithm._n_updates, algorithm._current_progress_remaining = state["counters"]["updates"], state["left"]
        for name, value in state.get("variables", {}).items():
            getattr(algorithm, name).data.copy_(value)
        if self._on_policy:
            return
        buffer = algorithm.replay_buffer
        for name, tensor in state["buffer"].items():
            getattr(buffer, name)[: len(tensor)] = tensor.numpy()
        buffer.pos, buffer.full = state["place"]["pos"], state["place"]["full"]
        if self._options.algorithm == "dqn":
            algorithm._n_calls, algorithm.exploration_rate = state["counters"]["calls"], state["exploration"]

    def _tensor(self, observations: Any) -> Tensor:
        return torch.as_tensor(np.asarray(observations), device=self.algorithm.device)


_BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class StableBaselinesPolicy:
    """Acts by a network of Stable-Baselines3; exploring it draws from torch's default generator."""

    def __init__(
        self, network: Any, algorithm: str, explore: bool, share: float, learner: StableBaselinesLearner | None = None
    ) -> None:
        self._network, self._algorithm, self._explore, self._share = network, algorithm, explore, share
        self._learner = learner

    def initial(self, lanes: int) -> State:
        """No memory."""
        return {}

    @torch.no_grad()
    def act(self, state: State, observation: TensorTree, reward: Tensor, first: Tensor) -> tuple[TensorTree, State]:
        """Actions [B, ...]."""
        assert isinstance(observation, Tensor)
        observation = observation.to(self._network.device)
        if self._algorithm == "dqn":
            values = self._network.q_net(observation)
            action = values.argmax(1)
            if self._explore:
                anything = torch.randint(values.shape[1], action.shape, device=action.device)
                action = torch.where(torch.rand(action.shape, device=action.device) < self._share, anything, action)
            return action, state
        if self._algorithm == "sac":
            scaled = self._network.actor(observation, deterministic=not self._explore)
            space = self._network.action_space
            low, high = (torch.as_tensor(side, device=scaled.device) for side in (space.low, space.high))
            return low + 0.5 * (scaled + 1.0) * (high - low), state
        distribution = self._network.get_distribution(observation)
        action = distribution.get_actions(deterministic=not self._explore)
        if self._explore and self._learner is not None:
            self._learner._sampled = action
        return action, state


class StableBaselinesConfig(LoggedConfig):
    """Algorithm and sizes, the spaces as JSON, and what it was trained in."""

    model_type = "seqwm_stable_baselines"

    algorithm: str = "dqn"
    widths: list[int] | None = None


class StableBaselines(PreTrainedModel):
    """A trained network; acts without exploration."""

    config_class = StableBaselinesConfig
    return_conditioned = False
    window_length = 1

    def __init__(self, config: StableBaselinesConfig) -> None:
        super().__init__(config)
        spaces = Spaces(space_from_json(config.observation_space or {}), space_from_json(config.action_space or {}))
        with torch.device("cpu"):  # loading builds modules without storage, which theirs cannot be
            self.network: nn.Module = _package(config.algorithm).policy_aliases["MlpPolicy"](
                spaces.observation, spaces.action, lambda progress: 0.0, net_arch=list(config.widths or [])
            )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Their policies draw their own weights."""

    def policy(self, target_returns: Sequence[float] | None = None) -> StableBaselinesPolicy:
        """Without exploration; takes no target returns."""
        return StableBaselinesPolicy(self.network.eval(), self.config.algorithm, False, 0.0)


def _algorithm(options: Options, spaces: Spaces, train: TrainOptions, seed: int) -> Any:
    """An algorithm without environments."""
    kind, action, seen = _package(options.algorithm), spaces.action, spaces.observation
    if not isinstance(seen, (gym_spaces.Box, gym_spaces.Discrete)):
        raise SpaceError(f"found observations {seen}, expected a Box or Discrete; dreamer takes dicts, too")
    counts = isinstance(action, gym_spaces.Discrete) and action.start == 0 and options.algorithm != "sac"
    if not counts and not (isinstance(action, gym_spaces.Box) and options.algorithm != "dqn"):
        expected = {"dqn": "Discrete from 0", "sac": "a Box", "ppo": "Discrete from 0, or a Box"}[options.algorithm]
        raise SpaceError(f"{options.algorithm}: found actions {action}, expected {expected}; ppo and dreamer take both")
    from stable_baselines3.common.logger import Logger

    given: dict[str, Any] = {"learning_rate": train.learning_rate, "batch_size": train.batch_size, **options.settings}
    layers = {"net_arch": list(options.widths)}
    try:
        algorithm = kind("MlpPolicy", None, policy_kwargs=layers, seed=None, _init_setup_model=False, **given)
    except TypeError as error:
        raise RecipeError(f"model.settings: {options.algorithm}: {error}") from None
    algorithm.observation_space, algorithm.action_space, algorithm.n_envs = spaces.observation, action, 1
    if (
        isinstance(action, gym_spaces.Box) and getattr(algorithm, "target_entropy", None) == "auto"
    ):  # else it asks an environment
        algorithm.target_entropy = -float(np.prod(action.shape))
    torch.manual_seed(key(seed, 0) >> 1)
    algorithm._setup_model()
    algorithm.set_logger(Logger(folder=None, output_formats=[]))
    algorithm.policy.set_training_mode(False)
    return algorithm


def _package(algorithm: str) -> Any:
    try:
        import stable_baselines3
    except ImportError:
        raise MissingPackageError("stable-baselines3", "the method stable_baselines") from None
    return getattr(stable_baselines3, algorithm.upper())


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a module or an optimiser with text for keys."""
    if "param_groups" not in part:
        return dict(part)
    moments = {str(number): dict(tensors) for number, tensors in part["state"].items()}
    return {"state": moments, "param_groups": part["param_groups"]}


def _restored(part: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    if "param_groups" not in like:
        return dict(part)
    moments = {int(number): dict(tensors) for number, tensors in part.get("state", {}).items()}
    return {"state": moments, "param_groups": part["param_groups"]}


AutoConfig.register(StableBaselinesConfig.model_type, StableBaselinesConfig)
AutoModel.register(StableBaselinesConfig, StableBaselines)
