"""Gymnasium spaces to JSON and back, and their leaves by name.

The JSON is Minari's form (type, shape, dtype, low, high, n, nvec, spaces), so its metadata reads as it is. Supported:
Box, Discrete, MultiDiscrete and Dict of those; what else a log may name is refused with the mend.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from seqwm.core.errors import SpaceError


def space_to_json(space: Space[Any]) -> dict[str, Any]:
    """A JSON object that `space_from_json` turns into an equal space."""
    match space:
        case spaces.Box():
            return {
                "type": "Box",
                "dtype": str(space.dtype),
                "shape": list(space.shape),
                "low": _bounds_to_json(space.low),
                "high": _bounds_to_json(space.high),
            }
        case spaces.Discrete():
            return {"type": "Discrete", "dtype": str(space.dtype), "start": int(space.start), "n": int(space.n)}
        case spaces.MultiDiscrete():
            return {
                "type": "MultiDiscrete",
                "dtype": str(space.dtype),
                "nvec": space.nvec.tolist(),
                "start": space.start.tolist(),
            }
        case spaces.Dict():
            return {"type": "Dict", "subspaces": {name: space_to_json(sub) for name, sub in space.spaces.items()}}
    raise SpaceError(
        f"space {space}: seqwm stores Box, Discrete, MultiDiscrete and Dict spaces; "
        "flatten it first (gymnasium.wrappers.FlattenObservation) or log one of those"
    )


def space_from_json(description: dict[str, Any] | str) -> Space[Any]:
    """The space of a JSON object or text, as written by `space_to_json` or by Minari."""
    if isinstance(description, str):
        description = json.loads(description)
    assert isinstance(description, dict)
    kind = description.get("type")
    if kind == "Box":
        dtype = np.dtype(description["dtype"])
        shape = tuple(description["shape"])
        low, high = (_bounds_from_json(description[side], shape, dtype) for side in ("low", "high"))
        return spaces.Box(low=low, high=high, shape=shape, dtype=dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(int(description["n"]), start=int(description.get("start", 0)))
    if kind == "MultiDiscrete":
        nvec = np.asarray(description["nvec"], dtype=np.int64)
        return spaces.MultiDiscrete(nvec, start=np.asarray(description.get("start", np.zeros_like(nvec))))
    if kind == "Dict":
        subspaces = description["subspaces"]
        return spaces.Dict({name: space_from_json(sub) for name, sub in subspaces.items()})
    raise SpaceError(f"space type {kind!r}: expected Box, Discrete, MultiDiscrete or Dict")


def leaf_spaces(space: Space[Any], prefix: str = "") -> dict[str, Space[Any]]:
    """Leaf spaces by path ('camera/front'; '' for a space that is itself a leaf), in the space's own order."""
    if isinstance(space, spaces.Dict):
        leaves: dict[str, Space[Any]] = {}
        for name, sub in space.spaces.items():
            if "/" in name or not name:
                raise SpaceError(f"Dict space: the name {name!r} is empty or contains '/'; rename it")
            leaves |= leaf_spaces(sub, f"{prefix}/{name}" if prefix else name)
        return leaves
    space_to_json(space)  # refuses what cannot be stored
    return {prefix: space}


def is_image(space: Space[Any]) -> bool:
    """Whether a leaf holds images: a uint8 Box [H, W, C] with 1, 3 or 4 channels."""
    return (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and space.shape[2] in (1, 3, 4)
    )


def _bounds_to_json(bounds: np.ndarray) -> Any:
    first = bounds.flat[0].item() if bounds.size else 0
    same = bounds.size == 0 or bool((bounds == first).all())
    values = first if same else bounds.tolist()  # one number for 64x64x3 equal bounds
    return json.loads(json.dumps(values))  # Infinity stays a JSON number, as Minari writes it


def _bounds_from_json(value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    return np.broadcast_to(np.asarray(value, dtype=np.float64 if dtype.kind == "f" else np.int64), shape).astype(dtype)
