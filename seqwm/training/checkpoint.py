"""Checkpoints that are whole or not there: safetensors and JSON, written aside, checked by hash, then renamed.

    checkpoints/step-00001000/state.safetensors   every tensor, named by its path in the state
                              state.json          every other value
                              manifest.json       the step, and size and sha256 of both files

A process may die at any moment: what it was writing keeps a hidden name and is never read. A checkpoint whose bytes
are not those that were written is passed over, with a warning, for the one before it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from seqwm.core.errors import CheckpointError
from seqwm.core.files import file_sha256, sync_folder, write_atomically
from seqwm.core.tree import flatten, unflatten
from seqwm.core.types import Metrics

KEEP = 2
"""How many checkpoints stay: the last, and one in case a disk damages it."""

EVERY_SECONDS = 60.0

_TENSORS, _VALUES, _MANIFEST = "state.safetensors", "state.json", "manifest.json"


class Checkpoints:
    """The hook of the training loop that saves `state()` now and then, and after the last update.

    Args:
        folder: the folder of checkpoints.
        state: gives what to save.
        every: updates between two checkpoints; None makes one a minute.
    """

    def __init__(self, folder: Path, state: Callable[[], Mapping[str, Any]], every: int | None) -> None:
        self._folder, self._state, self._every = folder, state, every
        self._saved = time.monotonic()

    def __call__(self, step: int, metrics: Metrics, last: bool) -> None:
        """Save if it is time."""
        now = time.monotonic()
        due = (step + 1) % self._every == 0 if self._every else now - self._saved > EVERY_SECONDS
        if due or last:
            save(self._folder, step + 1, self._state())
            self._saved = now


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was saved: the number of updates made, and the state."""

    step: int
    state: dict[str, Any]


def save(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Save `state` after `step` updates; it is on the disk when this returns.

    Args:
        folder: the folder of checkpoints, made if need be.
        step: updates made.
        state: nested dicts of tensors and JSON values; keys without '/'.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*"):  # of a process that died while writing
        shutil.rmtree(leftover)
    final = folder / f"step-{step:08d}"
    partial = folder / f".{final.name}"
    partial.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    for name, leaf in flatten(dict(state)).items():
        if isinstance(leaf, torch.Tensor):
            tensors[name] = leaf.detach().to("cpu", copy=True).contiguous()  # a copy, so that tied weights may be saved
        else:
            values[name] = leaf
    save_file(tensors, partial / _TENSORS)
    _sync(partial / _TENSORS)
    write_atomically(partial / _VALUES, json.dumps(values, indent=1).encode())
    files = {
        name: {"bytes": (partial / name).stat().st_size, "sha256": file_sha256(partial / name)}
        for name in (_TENSORS, _VALUES)
    }
    write_atomically(partial / _MANIFEST, json.dumps({"step": step, "files": files}, indent=1).encode())
    if final.exists():  # a damaged one that a resumed run passed over, or the one this very step was resumed from
        _remove(final)
    os.rename(partial, final)
    sync_folder(folder)
    for old in _finished(folder)[KEEP:]:
        _remove(old)
    return final


def load(path: Path) -> Checkpoint:
    """The checkpoint in a folder `step-...`.

    Raises:
        CheckpointError: naming the file whose bytes are not those that were saved.
    """
    mend = "delete it and resume from the one before"
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        step, files = int(manifest["step"]), manifest["files"]
        recorded = {name: (files[name]["bytes"], files[name]["sha256"]) for name in (_TENSORS, _VALUES)}
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path / _MANIFEST}: missing or damaged; {mend}") from None
    if path.name != f"step-{step:08d}":
        raise CheckpointError(f"{path / _MANIFEST}: found step {step}, expected the one in its folder's name; {mend}")
    for name, (size, digest) in recorded.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size or file_sha256(file) != digest:
            raise CheckpointError(f"{file}: its content is not what was saved; {mend}")
    try:
        leaves = load_file(path / _TENSORS) | json.loads((path / _VALUES).read_bytes())
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {mend}") from None
    return Checkpoint(step, unflatten(leaves))


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; warns of each that it passes over. None where there is none at all.

    Raises:
        CheckpointError: there are checkpoints and every one of them is damaged.
    """
    paths = _finished(folder)
    for path in paths:
        try:
            return load(path)
        except CheckpointError as error:
            warnings.warn(f"passing over a damaged checkpoint: {error}", RuntimeWarning, stacklevel=2)
    if paths:
        raise CheckpointError(f"{folder}: all {len(paths)} checkpoints are damaged; delete the run and train again")
    return None


def _finished(folder: Path) -> list[Path]:
    """Checkpoints, newest first."""
    return sorted(folder.glob("step-*"), key=lambda path: path.name, reverse=True)


def _remove(path: Path) -> None:
    """Remove a checkpoint so that a half removed one is never taken for a damaged one."""
    hidden = path.with_name(f".removed-{path.name}")
    os.rename(path, hidden)
    shutil.rmtree(hidden)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
