"""World Models: see by V, remember by M, act by C, which is trained in the dream of V and M.

Ha and Schmidhuber, "Recurrent World Models Facilitate Policy Evolution", 2018.

    V   a variational autoencoder: a frame to z, a normal distribution of `latent` numbers
    M   an LSTM over (z, action) with a mixture density network on (z, action, h): z' as one of `mixtures` normals,
        reward and end
    C   one linear map of (z, h), found by CMA-ES; its fitness is its return in dreams of M

What is notable:

- An update is one gradient step of V, then of M, then one generation of C, as the recipe's shares say; with `rounds`
  above one that begins anew, on what C has collected by then.
- In a dream z' is drawn at `temperature` tau: mixture logits divided by tau, deviations multiplied by its root. A
  hotter dream is harder to exploit.
- `controller_in: environment` measures candidates in the environment instead, on V and M as they are: what a perfect
  dream would give. Those steps are not among what the run collects.
- z' is one of the normals whole, where the paper mixes each of its numbers apart: which way a ball flies is told by all
  numbers together. Each of M's heads has a hidden layer: a linear map of h alone could not tell whether ball and
  paddle meet.
- V learns to see, not to tell what matters; `vision_reward` adds a linear head on (z, action) that has to tell the
  reward.
- All candidates of a generation dream from the same frames, in one batch. The state of CMA-ES is never saved: what it
  drew is named by (seed, generation), so telling it the same fitnesses again brings it back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces as gym_spaces
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from seqwm.control.dream import unroll
from seqwm.control.rollout import play
from seqwm.core.errors import DataError, MissingPackageError, RecipeError, SpaceError
from seqwm.core.protocols import Step
from seqwm.core.random import indices, key, torch_generator
from seqwm.core.spaces import is_image, space_from_json
from seqwm.core.types import Batch, Metrics, State, TensorTree
from seqwm.data.problems import Problem
from seqwm.envs.make import make_vector
from seqwm.nn.leaves import ActionCodec
from seqwm.nn.logged_config import LoggedConfig
from seqwm.nn.mixture import Mixture, draw, likeliest, mixture_log_probability, mixture_of, outputs_of
from seqwm.nn.variational import SMALLEST, VariationalFrames, divergence, scaled

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore
    from seqwm.training.options import TrainOptions

_HEAD = 256  # width of the hidden layer of M's heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe.

    Attributes:
        latent: numbers in z.
        hidden: of the LSTM.
        mixtures: normals of z'.
        context_length: rows of a window that M learns from.
        pixel_deviation: of the decoder's normal distribution of a pixel in 0 .. 1; smaller ones show smaller things.
        divergence_tolerance: divergence of a number of z, in nats, below which none is counted.
        vision_reward: weight of the reward in V's loss.
        vision_share, memory_share: of the updates of a round; generations of C are the rest.
        rounds: how often V, M and C take turns.
        controller_in: where the fitness of C is measured.
        temperature: of dreams.
        population: candidates of a generation.
        dreams: of each candidate.
        horizon: steps of a dream.
        deviation: of the first generation's weights.
    """

    latent: int = 32
    hidden: int = 256
    mixtures: int = 5
    context_length: int = 32
    pixel_deviation: float = 0.5**0.5
    divergence_tolerance: float = 0.5
    vision_reward: float = 0.0
    vision_share: float = 0.4
    memory_share: float = 0.4
    rounds: int = 1
    controller_in: Literal["dream", "environment"] = "dream"
    temperature: float = 1.0
    population: int = 64
    dreams: int = 16
    horizon: int = 100
    deviation: float = 0.1

    def __post_init__(self) -> None:
        for name in ("latent", "hidden", "mixtures", "rounds", "dreams", "horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if self.context_length < 2 or self.population < 2:
            found = f"{self.context_length}, {self.population}"
            raise ValueError(f"context_length, population: found {found}, expected at least 2 each")
        for name in ("temperature", "deviation", "pixel_deviation"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected a positive number")
        if min(self.vision_share, self.memory_share) < 0 or self.vision_share + self.memory_share > 1:
            found = f"{self.vision_share} and {self.memory_share}"
            raise ValueError(f"vision_share, memory_share: found {found}, expected shares that leave some for C")


def learner(options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> WorldModelsLearner:
    """V, M and C with fresh weights, and what trains them.

    Raises:
        SpaceError: observations that are no square frames of 4, 8, 16, ... pixels; actions that are not Discrete,
            MultiDiscrete or a bounded Box.
        DataError: no rewards.
        RecipeError: the controller is to be trained in an environment, and the data names none.
        MissingPackageError: cma is not installed.
    """
    if options.controller_in == "environment" and not store.provenance.get("environment"):
        raise RecipeError(
            f"controller_in: found 'environment', and data of {store.path} that names none; expected 'dream', or a "
            "recipe that collects"
        )
    return WorldModelsLearner(options, store, train, seed)


class WorldModelsConfig(LoggedConfig):
    """The fields of `Options`, the spaces as JSON, and what the model was trained on."""

    model_type = "seqwm_world_models"

    latent: int = 32
    hidden: int = 256
    mixtures: int = 5
    context_length: int = 32
    pixel_deviation: float = 0.5**0.5
    divergence_tolerance: float = 0.5
    vision_reward: float = 0.0
    vision_share: float = 0.4
    memory_share: float = 0.4
    rounds: int = 1
    controller_in: Literal["dream", "environment"] = "dream"
    temperature: float = 1.0
    population: int = 64
    dreams: int = 16
    horizon: int = 100
    deviation: float = 0.1


class WorldModels(PreTrainedModel):
    """V, M and C. As a world its state is z float32 [B, Z] and the LSTM's hidden and cell float32 [B, D]."""

    config_class = WorldModelsConfig
    return_conditioned = False

    def __init__(self, config: WorldModelsConfig) -> None:
        super().__init__(config)
        observation, action = (space_from_json(part or {}) for part in (config.observation_space, config.action_space))
        assert observation.shape is not None
        self.actions = ActionCodec(action)
        size = config.latent + self.actions.size
        self.vision = VariationalFrames(observation.shape, config.latent)
        self.vision_reward = nn.Linear(size, 1)
        self.memory = nn.LSTMCell(size, config.hidden)
        self.mixture = _head(size + config.hidden, outputs_of(config.latent, config.mixtures))
        self.outcome = _head(size + config.hidden, 2)  # reward, logit of an end
        self.controller = nn.Linear(config.latent + config.hidden, self.actions.size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Torch's own, and a controller that begins at zero."""
        if module is getattr(self, "controller", None):
            nn.init.zeros_(self.controller.weight)
            nn.init.zeros_(self.controller.bias)

    @property
    def window_length(self) -> int:
        """Rows of a window."""
        length: int = self.config.context_length
        return length

    # -- learning ---------------------------------------------------------------------------------------------------

    def vision_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The negative evidence bound of frames, up to its constant; the paper's decoder has a variance of 1/2.

        Args:
            batch: windows.
            noise: standard normal [B, T, Z].
        """
        assert isinstance(batch.observations, Tensor)
        frames = batch.observations[batch.valid]
        mean, deviation = self.vision.encode(frames)
        z = mean + deviation * noise[batch.valid]
        error = (self.vision.decode(z) - scaled(frames)).square().sum((1, 2, 3)) / (2 * self.config.pixel_deviation**2)
        apart = divergence(mean, deviation).sum(-1)
        floor = self.config.divergence_tolerance * mean.shape[-1]
        loss = (error + apart.clamp_min(floor)).mean()
        figures = {"reconstruction": error.mean(), "divergence": apart.mean()}
        if self.config.vision_reward and batch.rewards is not None and batch.actions is not None:
            features = torch.cat([z, self.actions.features(batch.actions)[batch.valid]], -1)
            missed = (self.vision_reward(features)[:, 0] - batch.rewards[batch.valid]).square().mean()
            loss, figures["vision_reward"] = loss + self.config.vision_reward * missed, missed
        return loss, figures

    def memory_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-likelihood of the next z, squared error of the reward, cross entropy of the end.

        Args:
            batch: windows.
            noise: standard normal [B, T, Z].
        """
        assert isinstance(batch.observations, Tensor)
        assert batch.actions is not None
        assert batch.rewards is not None
        with torch.no_grad():
            mean, deviation = self.vision.encode(batch.observations.flatten(0, 1))
            z = (mean + deviation * noise.flatten(0, 1)).unflatten(0, batch.valid.shape)
        inputs = torch.cat([z, self.actions.features(batch.actions)], -1)
        hidden, cell = (inputs.new_zeros(len(inputs), self.config.hidden) for _ in range(2))
        states = []
        for t in range(inputs.shape[1]):
            hidden, cell = self.memory(inputs[:, t], (hidden, cell))
            states.append(hidden)
        followed = batch.valid[:, 1:]
        known = torch.cat([inputs, torch.stack(states, 1)], -1)
        surprise = -mixture_log_probability(self._mixture(known[:, :-1][followed]), z[:, 1:][followed]).mean()
        reward, end = self.outcome(known[batch.valid]).unbind(-1)
        missed = (reward - batch.rewards[batch.valid]).square().mean()
        ended = F.binary_cross_entropy_with_logits(end, batch.terminated[batch.valid].float())
        return surprise + missed + ended, {"surprise": surprise, "reward": missed, "end": ended}

    def _mixture(self, known: Tensor) -> Mixture:
        return mixture_of(self.mixture(known), self.config.latent)

    # -- a world ----------------------------------------------------------------------------------------------------

    def encode(self, context: Batch) -> State:
        """The state at the last valid row's frame."""
        assert isinstance(context.observations, Tensor)
        assert context.actions is not None
        z = self.vision.encode(context.observations.flatten(0, 1))[0].unflatten(0, context.valid.shape)
        features = torch.cat([z, self.actions.features(context.actions)], -1)
        hidden, cell = (z.new_zeros(len(z), self.config.hidden) for _ in range(2))
        last = context.valid.sum(1) - 1
        for t in range(z.shape[1] - 1):
            reading = (t < last)[:, None]
            after = self.memory(features[:, t], (hidden, cell))
            hidden, cell = torch.where(reading, after[0], hidden), torch.where(reading, after[1], cell)
        return {"z": z[torch.arange(len(z), device=z.device), last], "hidden": hidden, "cell": cell}

    def step(self, state: State, action: TensorTree, generator: torch.Generator | None = None) -> Step:
        """Drawn at the temperature with a generator; the mean of the likeliest normals without one."""
        hidden, cell = self.remember(state, action)
        known = torch.cat([state["z"], self.actions.features(action), hidden], -1)
        mixture = self._mixture(known)
        reward, end = self.outcome(known).unbind(-1)
        if generator is None:
            return Step({"z": likeliest(mixture), "hidden": hidden, "cell": cell}, reward, end > 0)
        z = draw(mixture, self.config.temperature, generator)
        ended = torch.rand(end.shape, generator=generator, device=end.device) < end.sigmoid()
        return Step({"z": z, "hidden": hidden, "cell": cell}, reward, ended)

    def remember(self, state: State, action: TensorTree) -> tuple[Tensor, Tensor]:
        """Hidden and cell of the LSTM once it has read z and the action."""
        read: tuple[Tensor, Tensor] = self.memory(
            torch.cat([state["z"], self.actions.features(action)], -1), (state["hidden"], state["cell"])
        )
        return read

    def decode(self, state: State) -> TensorTree:
        """The frame uint8 [B, H, W, C]."""
        frames = (self.vision.decode(state["z"]).clamp(0, 1) * 255).round().to(torch.uint8)
        return frames.movedim(1, -1)

    def policy(self, target_returns: Sequence[float] | None = None, explore: float = 0.0) -> WorldModelsPolicy:
        """C with V and M; takes no target returns."""
        return WorldModelsPolicy(self, explore)


class WorldModelsPolicy:
    """State: z, hidden and cell as the world's; action, what was done last; weight and bias of the lane's controller.

    Args:
        model: sees and remembers.
        explore: deviation of noise on the controller's outputs.
        controllers: weight [B, A, Z + D] and bias [B, A] of each lane's; the model's own in all lanes when None.
    """

    def __init__(self, model: WorldModels, explore: float, controllers: tuple[Tensor, Tensor] | None = None) -> None:
        self._model, self._explore, self._controllers = model.eval(), explore, controllers

    def initial(self, lanes: int) -> State:
        """Nothing seen."""
        config, device = self._model.config, self._model.device
        sizes = {"z": config.latent, "hidden": config.hidden, "cell": config.hidden}
        state = {name: torch.zeros(lanes, size, device=device) for name, size in sizes.items()}
        own = self._model.controller.weight.detach()[None], self._model.controller.bias.detach()[None]
        weight, bias = self._controllers or (part.expand(lanes, *part.shape[1:]) for part in own)
        return state | {"action": self._model.actions.zeros(lanes)[""], "weight": weight, "bias": bias}

    @torch.no_grad()
    def act(self, state: State, observation: TensorTree, reward: Tensor, first: Tensor) -> tuple[TensorTree, State]:
        """Actions [B, ...] for frames [B, H, W, C]; exploring adds normal noise to C's outputs."""
        assert isinstance(observation, Tensor)
        model, began = self._model, first.to(self._model.device)[:, None]
        hidden, cell = (part.masked_fill(began, 0.0) for part in model.remember(state, state["action"]))
        z = model.vision.encode(observation.to(model.device))[0]
        controller = {"weight": state["weight"], "bias": state["bias"]}
        outputs = _controlled({"z": z, "hidden": hidden}, **controller)
        if self._explore:
            outputs = outputs + self._explore * torch.randn(outputs.shape, device=outputs.device)
        action = model.actions.decode(outputs)
        assert isinstance(action, Tensor)
        return action, {"z": z, "hidden": hidden, "cell": cell, "action": action, **controller}


class WorldModelsLearner:
    """V, M and C in turns."""

    def __init__(self, options: Options, store: TrajectoryStore, train: TrainOptions, seed: int) -> None:
        _check(store)
        torch.manual_seed(key(seed, 0) >> 1)
        config = WorldModelsConfig(
            **store.described(),
            **dataclasses.asdict(options),
        )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: WorldModels = WorldModels(config).to(device)
        self._options, self._train, self._seed = options, train, seed
        overrun = options.context_length - 1  # else an end could only ever be a window's last row
        self.windows = store.windows(options.context_length, train.batch_size, seed, overrun=overrun)
        self._starts = store.windows(1, 1)
        model, rate = self.model, train.learning_rate
        seeing = [*model.vision.parameters(), *model.vision_reward.parameters()]
        memory = (model.memory, model.mixture, model.outcome)
        remembering = [p for part in memory for p in part.parameters()]
        self._parts = {"vision": seeing, "memory": remembering}
        self._optimizers = {name: torch.optim.Adam(part, lr=rate) for name, part in self._parts.items()}
        self._evolution: Any = None
        self._start = torch.zeros(())  # C's weights when this round's first generation was drawn
        self._fitness: list[Tensor] = []  # of every generation of this round
        self._arena: Any = None

    def phase(self, step: int) -> tuple[str, bool]:
        """'vision', 'memory' or 'controller', and whether a round begins."""
        length = self._train.steps / self._options.rounds
        within = step - math.floor(step / length) * length
        names = {
            "vision": self._options.vision_share,
            "memory": self._options.vision_share + self._options.memory_share,
        }
        found = next((name for name, share in names.items() if within < share * length), "controller")
        return found, within < 1

    def update(self, step: int) -> Metrics:
        """A gradient step of V or M, or a generation of C."""
        phase, begins = self.phase(step)
        if begins:
            self._evolution, self._fitness = None, []
        if phase == "controller":
            return self._evolve(step)
        self.model.train()
        batch = self.windows.batch(step).to(self.model.device)
        noise = torch.randn(*batch.valid.shape, self._options.latent, generator=torch_generator(self._seed, 1, step))
        losses = {"vision": self.model.vision_loss, "memory": self.model.memory_loss}
        loss, figures = losses[phase](batch, noise.to(self.model.device))
        optimizer = self._optimizers[phase]
        optimizer.param_groups[0]["lr"] = self._train.rate(step)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parts[phase], self._train.gradient_clip or math.inf)
        optimizer.step()
        told = {"loss": loss, "gradient_norm": norm, **figures}
        return {f"{phase}_{name}" if name != "loss" else name: float(value.detach()) for name, value in told.items()}

    def _evolve(self, step: int) -> Metrics:
        generation = len(self._fitness)
        if self._evolution is None:
            self._start = nn.utils.parameters_to_vector(self.model.controller.parameters()).detach().cpu()
            self._evolution = self._begun()
        candidates = self._ask(generation)
        measure = self._dreamt if self._options.controller_in == "dream" else self._played
        fitness = measure(torch.from_numpy(candidates).float(), step)
        self._tell(candidates, fitness)
        self._fitness.append(fitness)
        with torch.no_grad():
            favourite = torch.from_numpy(self._evolution.result.xfavorite).float().to(self.model.device)
            nn.utils.vector_to_parameters(favourite, self.model.controller.parameters())
        where = self._options.controller_in
        return {f"{where}_return": float(fitness.mean()), f"{where}_return_best": float(fitness.max())}

    @torch.no_grad()
    def _dreamt(self, candidates: Tensor, step: int) -> Tensor:
        """Mean return of every candidate [P] over the same beginnings."""
        o, model, store = self._options, self.model.eval(), self.windows.store
        episodes = indices(key(self._seed, 2, step), np.arange(o.dreams, dtype=np.uint64), len(store))
        state = model.encode(self._starts.gather(episodes, np.zeros_like(episodes)).to(model.device))
        state = {name: tensor.repeat(len(candidates), 1) for name, tensor in state.items()}
        controllers = _controllers(candidates.to(model.device), model, o.dreams)

        def act(state: State) -> TensorTree:
            decoded: TensorTree = model.actions.decode(_controlled(state, *controllers))
            return decoded

        total = torch.zeros(len(candidates) * o.dreams, device=model.device)
        going = torch.ones_like(total)
        generator = torch_generator(self._seed, 3, step, device=model.device.type)
        for _, happened in unroll(model, state, act, o.horizon, generator):
            total += going * happened.reward
            going = going * ~happened.terminated
        return total.view(len(candidates), -1).mean(1).cpu()

    def _played(self, candidates: Tensor, step: int) -> Tensor:
        """Mean return of every candidate [P] over the same episodes of the environment."""
        o, model = self._options, self.model.eval()
        if self._arena is None:
            self._arena = make_vector(
                model.config.environment, len(candidates) * o.dreams, spaces=self.windows.store.spaces
            )
        controllers = _controllers(candidates.to(model.device), model, o.dreams)
        seeds = [key(self._seed, 5, step, episode) for episode in range(o.dreams)] * len(candidates)
        outcomes = play(self._arena, WorldModelsPolicy(model, 0.0, controllers), seeds)
        return torch.tensor([outcome.achieved for outcome in outcomes]).view(len(candidates), -1).mean(1)

    def _begun(self) -> Any:
        try:
            import cma
        except ImportError:
            raise MissingPackageError("cma", "the method world_models") from None
        settings = {"popsize": self._options.population, "verbose": -9, "seed": math.nan}
        return cma.CMAEvolutionStrategy(self._start.double().numpy(), self._options.deviation, settings)

    def _ask(self, generation: int) -> Any:
        np.random.seed(key(self._seed, 4, generation) % 2**32)  # noqa: NPY002 - what cma draws from
        return np.stack(self._evolution.ask())

    def _tell(self, candidates: Any, fitness: Tensor) -> None:
        self._evolution.tell(list(candidates), (-fitness.double()).tolist())

    def policy(self, explore: bool) -> WorldModelsPolicy:
        """C as it is now; exploring, with noise as wide as its first generation's outputs."""
        return self.model.policy(explore=0.5 if explore else 0.0)

    def trained(self) -> WorldModels:
        """The model."""
        self.model.eval()
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Weights, Adam's moments by place, and the fitness of this round's generations."""
        moments = {}
        for name, optimizer in self._optimizers.items():
            entries = enumerate(self._parts[name])
            moments[name] = {str(place): dict(optimizer.state[p]) for place, p in entries if optimizer.state[p]}
        state: dict[str, Any] = {"model": self.model.state_dict(), "moments": moments}
        if self._fitness:
            state |= {"start": self._start, "fitness": torch.stack(self._fitness)}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        for name, places in state.get("moments", {}).items():
            for place, tensors in places.items():
                self._optimizers[name].state[self._parts[name][int(place)]] = tensors
        if "fitness" in state:
            self._start = state["start"]
            self._evolution = self._begun()
            for generation, fitness in enumerate(state["fitness"]):
                self._tell(self._ask(generation), fitness)
                self._fitness.append(fitness)


def _head(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, _HEAD), nn.ReLU(), nn.Linear(_HEAD, outputs))


def _controllers(candidates: Tensor, model: WorldModels, lanes: int) -> tuple[Tensor, Tensor]:
    """Weight [B, A, Z + D] and bias [B, A] of candidates [P, (Z + D) A + A], each in so many lanes."""
    split = candidates.split([candidates.shape[1] - model.actions.size, model.actions.size], 1)
    weight = split[0].unflatten(1, (model.actions.size, -1))
    return weight.repeat_interleave(lanes, 0), split[1].repeat_interleave(lanes, 0)


def _controlled(state: State, weight: Tensor, bias: Tensor) -> Tensor:
    """Outputs [B, A] of a controller for each lane."""
    seen = torch.cat([state["z"], state["hidden"]], -1)
    return torch.baddbmm(bias[..., None], weight, seen[..., None])[..., 0]


def _check(store: TrajectoryStore) -> None:
    observation, action = store.spaces.observation, store.spaces.action
    shape = observation.shape or ()
    if not is_image(observation) or shape[0] != shape[1] or shape[0] < SMALLEST or shape[0] & (shape[0] - 1):
        raise SpaceError(
            f"world_models: found observations {observation}, expected square frames of 4, 8, 16, 32 or 64 pixels; "
            "dreamer takes vectors, too"
        )
    bounded = isinstance(action, gym_spaces.Box) and action.is_bounded()
    if not bounded and not isinstance(action, (gym_spaces.Discrete, gym_spaces.MultiDiscrete)):
        raise SpaceError(f"world_models: found actions {action}, expected Discrete, MultiDiscrete or a bounded Box")
    if not store.has_rewards:
        mend = "log rewards; without them there is nothing to choose a controller by"
        raise DataError([Problem("no-rewards", "no rewards", "a reward in every row", mend, str(store.path))])


AutoConfig.register(WorldModelsConfig.model_type, WorldModelsConfig)
AutoModel.register(WorldModelsConfig, WorldModels)
