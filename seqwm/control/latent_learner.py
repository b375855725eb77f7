"""What learns a world in latent space from windows of a store, and, where there is an actor, to act in dreams of it.

One update is one step of an optimiser on the sum of all losses. Windows cross the borders of episodes, and the store
may be finished or growing. Everything random is a function of (seed, step).

With `replayed_latents` a window begins in the state that the last update left at its first row, instead of zeros: the
row before the window gives that state, the first row's action and its reward, and is not learned from. The states are
kept by row of the store, which never moves, and are saved with the rest.
"""

from __future__ import annotations

import dataclasses
import os
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from seqwm.control.actor_critic import ActorCritic
from seqwm.core.protocols import Policy
from seqwm.core.random import torch_generator
from seqwm.core.types import Metrics, State
from seqwm.data.arrivals import Arrivals, CrossingWindows, arrivals
from seqwm.nn.latent_world import LatentWorld
from seqwm.nn.optimisers import LaProp
from seqwm.nn.rssm import Latents

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore
    from seqwm.training.options import TrainOptions

_NOISE = 1  # the place of an update's noise among the random streams under a seed


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentLearning:
    """How windows are learned from.

    Attributes:
        sequence_length: rows in a window.
        imagined_rows: rows of each window, the last ones, that dreams start from.
        replay_loss: scale of the critic's loss on logged rows.
        imitation: scale of the actor's loss on logged actions.
        replayed_latents: whether windows begin in the state that the last update left at their first row.
        optimiser: of all networks.
        actor_learning_rate, critic_learning_rate: None takes the world's, that of `train:`.
    """

    sequence_length: int
    imagined_rows: int = 1
    replay_loss: float = 0.0
    imitation: float = 0.0
    replayed_latents: bool = False
    optimiser: Literal["adam", "laprop"] = "adam"
    actor_learning_rate: float | None = None
    critic_learning_rate: float | None = None


class LatentLearner:
    """World, actor and critic, learned together.

    Of `train:`, `gradient_clip` is with Adam the largest norm of the gradient of each of world, actor and critic, and
    with LaProp that of each tensor as a share of the tensor's own norm. `precision: bf16` makes products in bf16, as
    danijar/dreamerv3 does; weights, norms, distributions and losses stay in float32.

    Args:
        model: a torch module with fresh weights, `policy()` and `explorer()`.
        world, actor_critic: within it; None learns a world alone.
        learning: how.
        store: finished or growing.
        train: of the updates.
        seed: of windows and noise.

    Raises:
        ValueError: fp16 or several processes are asked for.
    """

    def __init__(
        self,
        model: Any,
        world: LatentWorld,
        actor_critic: ActorCritic | None,
        learning: LatentLearning,
        store: TrajectoryStore,
        train: TrainOptions,
        seed: int,
    ) -> None:
        if train.precision == "fp16":
            raise ValueError("train.precision: found fp16, expected float32 or bf16 for a latent world")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("found several processes, expected one: latent worlds are learned in one process")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.world, self.actor_critic = model.to(self.device), world, actor_critic
        self.learning, self.train, self.seed = learning, train, seed
        # One row more than is learned from: it gives the next one its action, reward and state.
        self.windows = CrossingWindows(store, learning.sequence_length + 1, train.batch_size, seed)
        groups = [(world.parameters(), train.learning_rate)]
        if actor_critic is not None:
            groups.append((actor_critic.actor.parameters(), learning.actor_learning_rate or train.learning_rate))
            groups.append((actor_critic.critic.parameters(), learning.critic_learning_rate or train.learning_rate))
        self._peaks = [peak for _, peak in groups]
        self._optimiser = _optimiser([{"params": list(p), "lr": lr} for p, lr in groups], learning.optimiser, train)
        self._names = {p: name for name, p in self.model.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for p, name in self._names.items()} if train.ema is not None else {}
        # The state behind each row of the store; zeros, the initial one, where none was left yet.
        self._latents = torch.zeros(0, world.rssm.feature_size, device=self.device)

    def update(self, step: int) -> Metrics:
        """Update number `step`; every loss, figures of the dreams, and the gradient's norm."""
        self.model.train()
        rows = self.windows.rows(step)
        arrived = arrivals(self.windows.gather(rows).to(self.device), context=1)
        places = torch.from_numpy(rows).to(self.device)
        generator = torch_generator(self.seed, _NOISE, step, device=self.device.type)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.train.precision == "bf16"):
            latents, losses, figures = self._losses(arrived, self._state_before(places[:, 0]), generator)
        loss = torch.stack(list(losses.values())).sum()
        figures = {"loss": loss.detach(), **{f"loss_{name}": part.detach() for name, part in losses.items()}, **figures}
        figures["gradient_norm"] = self._descend(loss, step)
        if self.actor_critic is not None:
            self.actor_critic.follow(step)
        if self.learning.replayed_latents:
            self._latents[places[:, 1:]] = latents.features.detach()
        values = torch.stack([value.detach().float() for value in figures.values()]).tolist()
        return dict(zip(figures, values, strict=True)) | {"learning_rate": self._optimiser.param_groups[0]["lr"]}

    def _losses(
        self, arrived: Arrivals, before: State, generator: torch.Generator
    ) -> tuple[Latents, dict[str, Tensor], dict[str, Tensor]]:
        """The states of the rows, every loss, and figures of the dreams."""
        world, actor_critic, learning = self.world, self.actor_critic, self.learning
        lanes, length = arrived.first.shape
        noise = world.rssm.noise(lanes, length, generator=generator, device=self.device)
        latents, _ = world.observe(arrived, before, noise)
        losses = world.losses(arrived, latents)
        if actor_critic is None:
            return latents, losses, {}
        last = slice(length - learning.imagined_rows, length)
        start = {
            "deterministic": latents.deterministic[:, last].flatten(0, 1),
            "stochastic": latents.stochastic[:, last].flatten(0, 1),
        }
        dreamt = actor_critic.losses(world, start, generator)
        losses |= {"actor": dreamt.actor, "critic": dreamt.critic}
        if learning.replay_loss:
            imagined = dreamt.returns[0].unflatten(0, (lanes, -1))
            tail = dataclasses.replace(
                arrived, **{name: getattr(arrived, name)[:, last] for name in ("rewards", "terminated", "last")}
            )
            logged = actor_critic.replay_loss(latents.features[:, last], tail, imagined, world.options.discount)
            losses["replay"] = learning.replay_loss * logged
        if learning.imitation:
            actions = world.actions.features(arrived.actions)
            losses["imitation"] = learning.imitation * actor_critic.imitation_loss(latents.features, arrived, actions)
        return latents, losses, dreamt.figures

    def _state_before(self, rows: Tensor) -> State:
        """The state behind these rows, [B], as it was last left there."""
        rssm, total = self.world.rssm, sum(len(part) for part in self.windows.store.parts)
        if not self.learning.replayed_latents:
            return rssm.initial(len(rows), self.device)
        if total > len(self._latents):
            grown = self._latents.new_zeros(max(total, 2 * len(self._latents)), self._latents.shape[1])
            grown[: len(self._latents)] = self._latents
            self._latents = grown
        stochastic, deterministic = self._latents[rows].split([rssm.size, rssm.options.deterministic], -1)
        return {"deterministic": deterministic, "stochastic": stochastic}

    def _descend(self, loss: Tensor, step: int) -> Tensor:
        """One step of the optimiser; the norm of the whole gradient, before it is clipped."""
        loss.backward()
        gradients = [p.grad for p in self._names if p.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        share = self.train.rate(step) / self.train.learning_rate
        for group, peak in zip(self._optimiser.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share
            if self.train.gradient_clip is not None and not isinstance(self._optimiser, LaProp):
                torch.nn.utils.clip_grad_norm_(group["params"], self.train.gradient_clip)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        if self._average:
            weight = 1 - min(self.train.ema or 0.0, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self._average.values()), [p.data for p in self._names], weight)
        return norm

    def trained(self) -> Any:
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
        """Exploring, with the weights as they go on learning; else with those that `trained` gives."""
        policy: Policy = self.model.explorer() if explore else self.trained().policy()
        return policy

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
    return torch.optim.AdamW(groups, betas=train.betas, eps=1e-5, weight_decay=train.weight_decay, fused=True)
