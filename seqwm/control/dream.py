"""Dreams: any world model as a Gymnasium vector environment, and its imagination for methods that learn inside it.

Two entry points to one `world.step`. `DreamEnv` is for whatever takes an environment (policies, evaluation, people): it
gives observations as arrays, without gradients. `imagine` and `unroll` are for what lives in the latent state: nothing
is decoded and gradients flow.

    dream = gymnasium.make_vec("seqwm/Dream-v0", num_envs=8, world=model, store=logs, horizon=50)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from gymnasium import spaces as gym_spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from seqwm.core.errors import RolloutError, SpaceError
from seqwm.core.protocols import Step, WorldModel
from seqwm.core.random import indices, key, torch_generator
from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.core.tree import flatten, tree_map, unflatten
from seqwm.core.types import Spaces, State, TensorTree, Tree
from seqwm.data.store import TrajectoryStore
from seqwm.data.windows import Windows
from seqwm.nn.quick import quick

_FLAGS = ("steps", "terminated", "truncated", "standing")

Begin: TypeAlias = Literal["first", "anywhere"]
Act: TypeAlias = Callable[[State], TensorTree] | TensorTree
"""What acts in a latent state: a function of it, or a plan (leaves [B, H, ...])."""


class DreamEnv(VectorEnv[Any, Any, NDArray[Any]]):
    """A world model in which policies act as in a real environment.

    Nothing resets by itself, as in `seqwm.envs.make`: a lane whose dream has ended stands still, with reward 0, until
    it is reset by `options['reset_mask']`. The same seeds and actions dream the same; what happens in one lane does not
    depend on the actions in another.

    Args:
        world: the model.
        spaces: of the logs it was trained on; observations are given within their bounds.
        contexts: windows as long as the model reads, of logs that dreams begin from.
        lanes: dreams side by side.
        horizon: steps after which a dream is truncated.
        begin: at the 'first' observation of a logged episode, or behind a window that ends 'anywhere' in one.
        sample: draw from the model's distributions; otherwise the likeliest happens.
        exact: in float32; otherwise frames are drawn in bf16 where the machine computes in it (`seqwm.nn.quick`).
        render_mode: 'rgb_array' where the observation holds an image, which is then what is shown.
        name: stands in errors.

    Raises:
        SpaceError: no actions, or no image to render.
    """

    def __init__(
        self,
        world: WorldModel,
        spaces: Spaces,
        contexts: Windows,
        lanes: int,
        horizon: int,
        *,
        begin: Begin = "first",
        sample: bool = True,
        exact: bool = False,
        render_mode: str | None = None,
        name: str = "dream",
    ) -> None:
        if spaces.action is None:
            raise SpaceError(f"{name}: the logs have no actions, expected an action space to act in")
        self._leaves = leaf_spaces(spaces.observation)
        self._frames = next((path for path, leaf in self._leaves.items() if is_image(leaf)), None)
        if render_mode is not None and (render_mode != "rgb_array" or self._frames is None):
            raise SpaceError(
                f"{name}: found render_mode {render_mode!r} and observations {spaces.observation}; expected "
                "'rgb_array' and an image among the observations"
            )
        self.num_envs, self.name, self.render_mode = lanes, name, render_mode
        self.single_observation_space, self.single_action_space = spaces.observation, spaces.action
        self.observation_space = batch_space(spaces.observation, lanes)
        self.action_space = batch_space(spaces.action, lanes)
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": ["rgb_array"], "render_fps": 15}
        self.world, self.contexts, self.horizon = world if exact else quick(world), contexts, horizon
        self._begin, self._sample = begin, sample
        self._device = torch.device(getattr(world, "device", "cpu"))
        self._generator: torch.Generator | None = None
        self._state: State | None = None
        self._observation: Tree = {}
        self._steps = np.zeros(lanes, np.int64)
        self._terminated, self._truncated = np.zeros(lanes, np.bool_), np.zeros(lanes, np.bool_)
        self._standing = np.ones(lanes, np.bool_)

    @torch.inference_mode()
    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tree, dict[str, Any]]:
        """Begin a dream in the lanes of `options['reset_mask']` (bool [B]), or in all; observations [B, ...].

        Args:
            seed: one for each lane, or the first lane's, the others counting on from it. A lane's seed chooses the logs
                it begins from; the seeds of all lanes that are reset name what the model draws from then on.
            options: 'reset_mask'.
        """
        chosen = np.flatnonzero((options or {}).get("reset_mask", np.ones(self.num_envs, np.bool_)))
        given = [seed + lane for lane in range(self.num_envs)] if isinstance(seed, int) else seed
        seeds = [_seed(given[lane] if given else None) for lane in chosen.tolist()]
        if self._sample:
            self._generator = torch_generator(*seeds, device=self._device.type)
        begun = self.world.encode(self.contexts.gather(*self._places(seeds)).to(self._device))
        if self._state is None:  # lanes that are not reset hold something that is never stepped
            held = torch.zeros(self.num_envs, dtype=torch.int64, device=self._device)
            self._state = {name: tensor[held.to(tensor.device)] for name, tensor in begun.items()}
        self._state = {
            name: tensor.index_copy(0, torch.from_numpy(chosen).to(tensor.device), begun[name])
            for name, tensor in self._state.items()
        }
        self._steps[chosen] = 0
        for flags in (self._terminated, self._truncated, self._standing):
            flags[chosen] = False
        self._observation = self._seen(self._state)
        return self._observation, {}

    @torch.inference_mode()
    def step(
        self, actions: Tree
    ) -> tuple[Tree, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Dream on in the lanes that run; observations (leaves [B, ...]), rewards, terminations, truncations [B].

        Raises:
            RolloutError: the model gave something that is no number.
        """
        assert self._state is not None, "reset first"
        after = self.world.step(self._state, self._tensors(actions), self._generator)
        rewards = after.reward.double().cpu().numpy()
        running = ~self._standing
        if not np.isfinite(rewards[running]).all():
            lane = int(np.flatnonzero(running & ~np.isfinite(rewards))[0])
            raise RolloutError(
                f"{self.name}: lane {lane}: step {self._steps[lane]}: the model's reward is {rewards[lane]}, expected "
                "a number; dream for fewer steps, or act as the logs do",
                lane=lane,
            )
        self._state = after.state if running.all() else _kept(self._state, after.state, self._standing)
        self._steps[running] += 1
        self._terminated[running] = after.terminated.cpu().numpy()[running]
        self._truncated[running] = (self._steps[running] >= self.horizon) & ~self._terminated[running]
        self._standing |= self._terminated | self._truncated
        self._observation = self._seen(self._state)
        ends = self._terminated.copy(), self._truncated.copy()
        return self._observation, np.where(running, rewards, 0.0), *ends, {}

    def state_dict(self) -> dict[str, Any]:
        """Where every lane is: what the model holds of it, and what it will draw."""
        flags = (self._steps, self._terminated, self._truncated, self._standing)
        return {
            "world": dict(self._state or {}),
            "lanes": dict(zip(_FLAGS, (torch.from_numpy(flag.copy()) for flag in flags), strict=True)),
            "generator": self._generator.get_state() if self._generator is not None else None,
        }

    @torch.inference_mode()
    def load_state_dict(self, state: dict[str, Any]) -> Tree:
        """Dream on from what `state_dict` gave; the observations of all lanes."""
        self._state = {name: tensor.to(self._device) for name, tensor in state.get("world", {}).items()} or None
        for own, name in zip((self._steps, self._terminated, self._truncated, self._standing), _FLAGS, strict=True):
            own[:] = state["lanes"][name].numpy()
        if state.get("generator") is not None:
            self._generator = torch.Generator(self._device)
            self._generator.set_state(state["generator"].cpu())
        if self._state is not None:
            self._observation = self._seen(self._state)
        return self._observation

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """A frame of every lane, where `render_mode` asks for it."""
        if self.render_mode is None or self._frames is None:
            return None
        frames = flatten(self._observation)[self._frames]
        return tuple(np.repeat(frame, 3, -1) if frame.shape[-1] == 1 else frame[..., :3] for frame in frames)

    def _places(self, seeds: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The episodes and steps that the contexts of these seeds end at."""
        store: TrajectoryStore = self.contexts.store
        bound = len(store) if self._begin == "first" else store.rows
        draws = np.array([indices(seed, np.zeros(1, np.uint64), bound)[0] for seed in seeds], np.int64)
        if self._begin == "first":
            return draws, np.zeros_like(draws)
        episodes = np.searchsorted(store.ends, draws, side="right")
        return episodes, draws - store.ends[episodes] + store.lengths[episodes]

    def _seen(self, state: State) -> Tree:
        """What a state looks like, in the dtypes and within the bounds of the observation space."""
        leaves = {}
        for path, leaf in flatten(self.world.decode(state)).items():
            space, values = self._leaves[path], leaf.detach().cpu().numpy()
            if isinstance(space, gym_spaces.Box):
                wrong = ~np.isfinite(values).reshape(len(values), -1).all(1) & ~self._standing
                if wrong.any():
                    lane = int(np.flatnonzero(wrong)[0])
                    raise RolloutError(
                        f"{self.name}: lane {lane}: step {self._steps[lane]}: the model's observation is no number; "
                        "dream for fewer steps, or act as the logs do",
                        lane=lane,
                    )
                values = np.clip(values, space.low, space.high)
            leaves[path] = values.astype(space.dtype)
        tree: Tree = unflatten(leaves)
        return tree

    def _tensors(self, actions: Tree) -> TensorTree:
        """Actions as a world takes them: float32 or int64."""

        def tensor(leaf: NDArray[Any]) -> Tensor:
            leaf = np.asarray(leaf)
            return torch.from_numpy(leaf.astype(np.float32 if leaf.dtype.kind == "f" else np.int64)).to(self._device)

        tree: TensorTree = tree_map(tensor, actions)
        return tree


def make_dream(
    num_envs: int, world: Any, store: TrajectoryStore, horizon: int, render_mode: str | None = None, **options: Any
) -> DreamEnv:
    """What `gymnasium.make_vec("seqwm/Dream-v0", ...)` makes: a model of this package dreaming from a store's logs.

    Args:
        num_envs: dreams side by side.
        world: a model with `window_length`.
        store: logs of its environment.
        horizon: steps of a dream.
        render_mode: as `DreamEnv`.
        options: `begin`, `sample` and `exact` of `DreamEnv`.
    """
    contexts = store.windows(world.window_length, 1)
    return DreamEnv(world, store.spaces, contexts, num_envs, horizon, render_mode=render_mode, **options)


@dataclass(frozen=True, slots=True)
class Imagined:
    """H steps imagined in B lanes.

    Attributes:
        states: the state before each step and the last one, leaves [B, H+1, ...].
        actions: leaves [B, H, ...].
        rewards: float32 [B, H], r_t follows a_t.
        terminated: bool [B, H]. The world steps on behind an end; what stands there means nothing.
    """

    states: State
    actions: TensorTree
    rewards: Tensor
    terminated: Tensor


def imagine(
    world: WorldModel, state: State, act: Act, horizon: int, generator: torch.Generator | None = None
) -> Imagined:
    """`horizon` steps from a state, nothing decoded; gradients flow wherever `world.step` and `act` let them.

    Args:
        world: the model.
        state: B lanes to begin from.
        act: gives actions (leaves [B, ...]) in a state, or is a plan (leaves [B, H, ...]).
        horizon: H.
        generator: names the model's draws; the likeliest happens without one.
    """
    states, actions, rewards, ends = [state], [], [], []
    for action, step in unroll(world, state, act, horizon, generator):
        actions.append(flatten(action))
        states.append(step.state)
        rewards.append(step.reward)
        ends.append(step.terminated)
    return Imagined(
        {name: torch.stack([one[name] for one in states], 1) for name in state},
        unflatten({path: torch.stack([one[path] for one in actions], 1) for path in actions[0]}),
        torch.stack(rewards, 1),
        torch.stack(ends, 1),
    )


def unroll(
    world: WorldModel, state: State, act: Act, horizon: int, generator: torch.Generator | None = None
) -> Iterator[tuple[TensorTree, Step]]:
    """The steps of `imagine` one by one, for what need not keep them all."""
    for t in range(horizon):
        action = act(state) if callable(act) else tree_map(operator.itemgetter((slice(None), t)), act)
        step = world.step(state, action, generator)
        yield action, step
        state = step.state


def _kept(before: State, after: State, standing: NDArray[np.bool_]) -> State:
    """`after`, with the lanes that stand still as they were."""
    kept = {}
    for name, tensor in after.items():
        mask = torch.from_numpy(standing).to(tensor.device).view(-1, *[1] * (tensor.ndim - 1))
        kept[name] = torch.where(mask, before[name], tensor)
    return kept


def _seed(given: int | None) -> int:
    return int(np.random.default_rng().integers(2**63)) if given is None else key(given)
