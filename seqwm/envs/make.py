"""How a vector environment is made: lanes side by side in one process, each frozen when its episode ends.

Frozen lanes are not stepped, so every lane shows exactly one episode until it is reset by `reset_mask`. Nothing resets
by itself: an automatic reset at an end would give the first observation of one episode to the return-to-go of another.

Only ids that are registered are built, never 'module:Name', for an id may come from a stranger's data.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import Env, Space, spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from seqwm.core.errors import RolloutError, UnfitEnvironmentError
from seqwm.core.spaces import is_image
from seqwm.core.types import Spaces, Tree

_ELSEWHERE = {  # ids that a package registers when it is imported, and our extra that brings it
    "ALE/": ("ale_py", "atari"),
    "BabyAI-": ("minigrid", "minigrid"),
    "MiniGrid-": ("minigrid", "minigrid"),
}
_MINIGRID = ("BabyAI-", "MiniGrid-")
_MINIGRID_TILE_PIXELS = 8


class FreezingVectorEnv(SyncVectorEnv):
    """Environments stepped one after another; one whose episode has ended stands still until it is reset.

    A lane that stands still keeps its last observation and its end; its reward is 0. Infos are left out.
    """

    def __init__(self, name: str, makers: Sequence[Callable[[], Env[Any, Any]]]) -> None:
        """The environments of `makers`, which have the same spaces; `name` stands in errors."""
        super().__init__(makers, autoreset_mode=AutoresetMode.DISABLED)
        self.name = name
        self._env_obs = list(iterate(self.observation_space, self._observations))
        self._autoreset_envs[:] = True  # a lane stands still until its first reset
        self._steps = np.zeros(self.num_envs, np.int64)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tree, dict[str, Any]]:
        """Begin an episode in the lanes of `options['reset_mask']` (bool [B]), or in all; observations [B, ...].

        Args:
            seed: one for each lane, or the first lane's, the others counting on from it.
            options: 'reset_mask', and what the environments themselves know.

        Raises:
            RolloutError: an environment raised.
        """
        passed = dict(options or {})
        mask = passed.pop("reset_mask", np.ones(self.num_envs, np.bool_))
        seeds = [seed + lane for lane in range(self.num_envs)] if isinstance(seed, int) else seed
        for lane in np.flatnonzero(mask).tolist():
            self._steps[lane] = 0
            try:
                self._env_obs[lane], _ = self.envs[lane].reset(seed=seeds[lane] if seeds else None, options=passed)
            except Exception as error:
                raise RolloutError(f"{self.name}: lane {lane}: reset raised {_shown(error)}", lane) from error
        for ends in (self._terminations, self._truncations, self._autoreset_envs):
            ends[mask] = False
        return self._gathered(), {}

    def step(
        self, actions: Tree
    ) -> tuple[Tree, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step the lanes that are running; observations (leaves [B, ...]), rewards, terminations, truncations [B].

        Raises:
            RolloutError: an environment raised.
        """
        self._rewards[:] = 0.0
        for lane, action in enumerate(iterate(self.action_space, actions)):
            if self._autoreset_envs[lane]:
                continue
            try:
                observation, reward, terminated, truncated, _ = self.envs[lane].step(action)
            except Exception as error:
                where = f"{self.name}: lane {lane}: step {self._steps[lane]}"
                raised = f"{where}: the environment raised {_shown(error)} for action {action}"
                raise RolloutError(raised, lane) from error
            self._env_obs[lane], self._rewards[lane] = observation, reward
            self._terminations[lane], self._truncations[lane] = terminated, truncated
            self._steps[lane] += 1
        self._autoreset_envs |= self._terminations | self._truncations
        return self._gathered(), self._rewards.copy(), self._terminations.copy(), self._truncations.copy(), {}

    def _gathered(self) -> Tree:
        """Observations in memory of their own: what was handed out before stays as it was."""
        room: Any = create_empty_array(self.single_observation_space, self.num_envs, fn=np.zeros)
        return cast(Tree, concatenate(self.single_observation_space, self._env_obs, room))


def make_vector(
    environment: str,
    lanes: int,
    *,
    spaces: Spaces | None = None,
    options: Mapping[str, Any] | None = None,
    render_mode: str | None = None,
) -> FreezingVectorEnv:
    """`lanes` environments of a registered id, side by side.

    Args:
        environment: a Gymnasium id with its version; 'ALE/', 'BabyAI-' and 'MiniGrid-' ids need their extras.
        lanes: how many.
        spaces: a model's or a log's. Frames of Atari are resized to them, and MiniGrid is seen whole from above;
            float32 in place of float64, other bounds of a Box and fewer actions fit too.
        options: keyword arguments of the environment.
        render_mode: as Gymnasium has it.

    Raises:
        UnfitEnvironmentError: an id that is not registered, a package that is missing, or spaces that do not fit.
    """
    _check_registered(environment)
    arguments = dict(options or {}) | ({"render_mode": render_mode} if render_mode else {})

    def make() -> Env[Any, Any]:
        try:
            env: Env[Any, Any] = gymnasium.make(environment, disable_env_checker=True, **arguments)
        except Exception as error:
            failed = f"{environment}: cannot be built: {_shown(error)}"
            raise UnfitEnvironmentError(failed + _mend(environment)) from error
        return _fitted(environment, env, spaces)

    return FreezingVectorEnv(environment, [make] * lanes)


def _check_registered(environment: str) -> None:
    prefix = next((prefix for prefix in _ELSEWHERE if environment.startswith(prefix)), None)
    if prefix is not None:
        package, _ = _ELSEWHERE[prefix]
        try:
            gymnasium.register_envs(importlib.import_module(package))
        except ImportError as error:
            raise UnfitEnvironmentError(
                f"{environment}: found no package '{package}', which registers it{_mend(environment)}"
            ) from error
    if environment not in gymnasium.registry:
        close = difflib.get_close_matches(environment, gymnasium.registry, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else "gymnasium.pprint_registry() lists what there is"
        raise UnfitEnvironmentError(f"{environment}: not a registered environment; {hint}")


def _fitted(environment: str, env: Env[Any, Any], wanted: Spaces | None) -> Env[Any, Any]:
    """The environment seen as the model needs it, where one of the known ways leads there."""
    if wanted is not None and not _takes(wanted, env):
        seen = wanted.observation
        if environment.startswith("ALE/") and is_image(seen) and is_image(env.observation_space):
            assert seen.shape is not None
            env = gymnasium.wrappers.ResizeObservation(env, (seen.shape[0], seen.shape[1]))
    if environment.startswith(_MINIGRID) and (wanted is None or not _takes(wanted, env)):
        from minigrid.wrappers import ImgObsWrapper, RGBImgObsWrapper  # its own observation holds text

        env = ImgObsWrapper(RGBImgObsWrapper(env, tile_size=_MINIGRID_TILE_PIXELS))
    if wanted is not None and not _takes(wanted, env):
        raise UnfitEnvironmentError(
            f"{environment}: found observations {env.observation_space} and actions {env.action_space}, expected "
            f"observations {wanted.observation} and actions {wanted.action}, those of the model; name the environment "
            "that its data came from"
        )
    return env


def _takes(wanted: Spaces, env: Env[Any, Any]) -> bool:
    """Whether the model knows every observation that comes, and every action that it can choose exists."""
    if wanted.action is None:
        return _within(env.observation_space, wanted.observation)
    return _within(env.observation_space, wanted.observation) and _within(wanted.action, env.action_space)


def _within(inner: Space[Any], outer: Space[Any]) -> bool:
    """Whether values of `inner` mean something in `outer`; bounds of a Box are left aside, logs often lack them."""
    match inner, outer:
        case spaces.Dict(), spaces.Dict():
            return inner.keys() == outer.keys() and all(_within(inner[name], outer[name]) for name in inner)
        case spaces.Discrete(), spaces.Discrete():
            return bool(outer.start <= inner.start and inner.start + inner.n <= outer.start + outer.n)
        case spaces.MultiDiscrete(), spaces.MultiDiscrete():
            within = inner.shape == outer.shape and np.all(outer.start <= inner.start)
            return bool(within and np.all(inner.start + inner.nvec <= outer.start + outer.nvec))
        case spaces.Box(), spaces.Box():
            kinds = {space.dtype.kind == "f" for space in (inner, outer)}
            return inner.shape == outer.shape and len(kinds) == 1 and is_image(inner) == is_image(outer)
    return False


def _mend(environment: str) -> str:
    """What to install for an environment that could not be built."""
    for prefix, (_, extra) in _ELSEWHERE.items():
        if environment.startswith(prefix):
            return f"; pip install 'seqwm[{extra}]'"
    spec = gymnasium.registry.get(environment)
    if spec is not None and ".mujoco" in str(spec.entry_point):
        return "; pip install 'seqwm[mujoco]', and name the newest version of the environment"
    if spec is not None and str(spec.entry_point).startswith(("gymnasium.envs.box2d", "seqwm.envs.racing")):
        return "; pip install 'seqwm[racing]'"
    return ""


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().removesuffix(".").removesuffix(":")
