"""One episode of a policy as a video."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from seqwm.control.rollout import play
from seqwm.core.errors import UnfitEnvironmentError
from seqwm.core.protocols import Policy
from seqwm.envs.make import FreezingVectorEnv, make_vector
from seqwm.evaluation.evaluate import Model, Target, acting, model_spaces

_FRAMES_PER_SECOND = 30


def write_replay(
    model: Model | Policy,
    environment: str,
    target: Target,
    seed: int,
    path: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
) -> Path | None:
    """Play one episode and write it as an MP4 (H.264); None and a warning where the environment cannot be rendered.

    Args:
        model: of one of the methods, or any policy.
        environment: a registered Gymnasium id.
        target: the return to ask for; not used where the model takes none.
        seed: the environment is reset with it, so that an evaluated episode can be seen again.
        path: the file.
        options: keyword arguments of the environment.

    Raises:
        UnfitEnvironmentError, RolloutError: as in `evaluate`.
    """
    spaces = model_spaces(model)
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # its default asks for a display, and MuJoCo reads it once
    blind = make_vector(environment, 1, spaces=spaces, options=options)  # what fails without pictures is an error
    blind.close()
    try:
        if "rgb_array" not in (modes := blind.metadata.get("render_modes", [])):
            raise UnfitEnvironmentError(f"it has the render modes {modes}, not 'rgb_array'")
        vector = make_vector(environment, 1, spaces=spaces, options=options, render_mode="rgb_array")
    except UnfitEnvironmentError as error:
        _warn(environment, error)
        return None
    try:
        vector.reset(seed=seed)
        try:
            frame = _frame(vector)
        except Exception as error:
            _warn(environment, error)
            return None
        return _write(vector, acting(model, [target]), seed, Path(path), frame.shape)
    finally:
        vector.close()


def _write(vector: FreezingVectorEnv, policy: Policy, seed: int, path: Path, shape: tuple[int, ...]) -> Path:
    rate = Fraction(vector.metadata.get("render_fps") or _FRAMES_PER_SECOND).limit_denominator(1000)
    height, width = shape[0] - shape[0] % 2, shape[1] - shape[1] % 2  # 4:2:0 chroma has half the rows and columns
    partial = path.with_name(f".{path.name}")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "20"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"

        def show() -> None:
            pixels = np.ascontiguousarray(_frame(vector)[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))

        play(vector, policy, [seed], watch=show)
        container.mux(stream.encode())
    os.replace(partial, path)
    return path


def _frame(vector: FreezingVectorEnv) -> NDArray[np.uint8]:
    """What the first lane looks like, uint8 [H, W, 3]."""
    rendered = vector.render()
    frame: Any = rendered[0] if rendered else None
    if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3:
        raise TypeError(f"found {type(frame).__name__} from render(), expected a frame [H, W, 3]")
    return frame.astype(np.uint8, copy=False)


def _warn(environment: str, error: Exception) -> None:
    warnings.warn(
        f"{environment}: no replay, for it cannot be rendered here ({type(error).__name__}: {error}); MuJoCo needs "
        "EGL or OSMesa (MUJOCO_GL=egl or MUJOCO_GL=osmesa), classic control needs pygame",
        stacklevel=3,
    )
