"""What a Minari folder says about itself in data/metadata.json, and what one of its episodes holds.

The environment's specification is read for the environment's id and for nothing else: it names an entry point and
wrappers by import path, and `gymnasium.make` would run them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import gymnasium
import numpy as np
import pyarrow as pa
from gymnasium import Space
from gymnasium import spaces as gym_spaces

from seqwm.core.errors import DataError, SpaceError
from seqwm.core.spaces import leaf_spaces, space_from_json
from seqwm.core.types import Array, Scalar, Tree
from seqwm.data.problems import Findings, Problem
from seqwm.data.sources.columns import dense

Format = Literal["hdf5", "arrow", "parquet"]

FILE_NAME = "metadata.json"
_LARGEST_FILE = 256 << 20
_KEPT = ("algorithm_name", "author", "author_email", "code_permalink", "description", "minari_version", "license")


@dataclass(frozen=True, slots=True)
class Metadata:
    """The statements of one data set.

    Attributes:
        file: metadata.json itself.
        dataset_id: the id it was made under, if it says so.
        format: how the episodes are stored.
        jpeg: whether images are stored as JPEG.
        episodes, steps: totals, None where they are not stated.
        observation_space, action_space: None where they are not stated.
        provenance: environment id, authors, versions.
    """

    file: Path
    dataset_id: str | None
    format: Format
    jpeg: bool
    episodes: int | None
    steps: int | None
    observation_space: Space[Any] | None
    action_space: Space[Any] | None
    provenance: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder of the episodes."""
        return self.file.parent


@dataclass(frozen=True, slots=True)
class LoggedEpisode:
    """One episode as its files have it, lengths not compared yet; padding is already cut off.

    Attributes:
        observations, actions: leaves in the dtype they are stored in.
        rewards, terminations, truncations: as stored.
        identity: the id it states, None without one.
        steps: the number of steps it states, None without one.
        meta: seed, options, and whatever scalar was noted beside it.
    """

    observations: Tree
    actions: Tree
    rewards: Array
    terminations: Array
    truncations: Array
    identity: int | None
    steps: int | None
    meta: Mapping[str, Scalar]


def read_metadata(file: Path, findings: Findings) -> Metadata:
    """The metadata of a folder; what it asks to be run goes to `findings`.

    Raises:
        DataError: for metadata that cannot be read, and for a format or a space that is not known.
    """
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"{file.stat().st_size} bytes")
        stated = json.loads(file.read_text())
        if not isinstance(stated, dict):
            raise TypeError("no JSON object")
        totals = [_count(stated, name) for name in ("total_episodes", "total_steps")]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError([_broken(file, error)]) from None
    if (kind := stated.get("data_format", "hdf5")) not in ("hdf5", "arrow", "parquet"):
        expected, mend = "hdf5, arrow or parquet", "convert it with `minari`, or read it with a newer seqwm"
        raise DataError([Problem("unknown-format", f"data_format {kind!r}", expected, mend, str(file))])
    provenance: dict[str, Scalar] = {}
    for name in _KEPT:
        value = stated.get(name)
        if text := ", ".join(sorted(map(str, value))) if isinstance(value, list) else str(value or ""):
            provenance[name] = text
    if (environment := _environment(file, stated.get("env_spec"), findings)) is not None:
        provenance["environment"] = environment
    dataset_id = stated.get("dataset_id")
    return Metadata(
        file=file,
        dataset_id=dataset_id if isinstance(dataset_id, str) else None,
        format=cast(Format, kind),
        jpeg=bool(stated.get("jpeg_encoding", True)),
        episodes=totals[0],
        steps=totals[1],
        observation_space=_space(file, stated, "observation_space"),
        action_space=_space(file, stated, "action_space"),
        provenance=provenance,
    )


def is_jpeg(space: Space[Any] | None) -> bool:
    """Whether Minari stores a leaf as JPEG where it stores images so: uint8 of 32 x 32 or more, 0 to 255."""
    return (
        isinstance(space, gym_spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) in (2, 3)
        and min(space.shape[:2]) >= 32
        and bool((space.low == 0).all() and (space.high == 255).all())
    )


def decode_jpeg(encoded: pa.Array, space: Space[Any]) -> Array:
    """Encoded images as uint8 [rows, *shape].

    Raises:
        UnreadableColumn: for bytes that are no image, and images of another shape.
    """
    shape = tuple(space.shape or ())
    images = pa.StructArray.from_arrays([encoded, pa.nulls(len(encoded), pa.string())], names=["bytes", "path"])
    return dense(images, shape if len(shape) == 3 else (*shape, 1)).reshape(-1, *shape)


def scalars(values: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """The scalars of a nested dict by path, as plain Python; the rest is left out."""
    kept: dict[str, Scalar] = {}
    for name, value in values.items():
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, Mapping):
            kept |= scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (str, int, float, bool)):
            kept[f"{prefix}{name}"] = value
    return kept


def _count(stated: Mapping[str, Any], name: str) -> int | None:
    value = stated.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**40:
        raise ValueError(f"{name} {value!r}")
    return value


def _space(file: Path, stated: Mapping[str, Any], name: str) -> Space[Any] | None:
    if name not in stated:
        return None
    try:
        space = space_from_json(stated[name])
        leaf_spaces(space)
    except SpaceError as error:
        mend = "log spaces of these kinds, or flatten them (gymnasium.wrappers)"
        problem = Problem("unsupported-space", str(error), "Box, Discrete, MultiDiscrete or Dict", mend, str(file))
        raise DataError([problem]) from None
    except (KeyError, TypeError, ValueError, AssertionError, OverflowError, RecursionError) as error:
        raise DataError([_broken(file, error, name)]) from None
    return space


def _environment(file: Path, stated: Any, findings: Findings) -> str | None:
    """The id of the environment, and a warning where more than a registered id is asked for."""
    if stated is None:
        return None
    try:
        specification = json.loads(stated) if isinstance(stated, str) else stated
        environment, wrappers = specification["id"], specification.get("additional_wrappers") or []
        if not isinstance(environment, str):
            raise TypeError(f"id {environment!r}")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        found, mend = f"an env_spec that cannot be read ({error!r})", "nothing: the data can be used without it"
        findings.add(Problem("broken-metadata", found, "JSON with an id", mend, str(file), severity="warning"))
        return None
    if wrappers or environment not in gymnasium.registry:
        found = f"'{environment}'{' with wrappers by import path' if wrappers else ', whose id is not registered here'}"
        mend = "import the package that registers it before evaluating in it; code named in data is never run"
        findings.add(Problem("environment-code", found, "a registered id", mend, str(file), severity="warning"))
    return environment


def _broken(file: Path, error: Exception, column: str | None = None) -> Problem:
    found = f"metadata that cannot be read ({type(error).__name__}: {error})"
    return Problem(
        "broken-metadata", found, "Minari's metadata.json", "fetch the data set again", str(file), None, None, column
    )
