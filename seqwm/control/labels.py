"""A store whose actions are what a model of latent actions saw in its frames.

Codes are discrete actions like any other: a policy cloned from such a store acts in codes, a world trained on it obeys
codes, and a dream in it takes codes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces as gym_spaces
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from seqwm.core.errors import DataError, SpaceError
from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.core.tree import flatten, unflatten
from seqwm.core.types import Episode, Spaces
from seqwm.data.problems import Problem
from seqwm.data.store import TrajectoryStore

_BATCH = 256


def labelled(
    model: Any, store: TrajectoryStore, out: str | Path | None = None, *, progress: bool = True
) -> TrajectoryStore:
    """The episodes of a store with codes as their actions; rewards and ends stay.

    Args:
        model: a world of latent actions; its `latent` is a `seqwm.nn.latent_action_model`.
        store: one image is observed; its own actions are not read.
        out: the folder of the new store, which must not exist yet; None keeps it in memory.
        progress: show a bar.

    Raises:
        DataError: `out` holds something, or an episode is a single frame.
        SpaceError: an image of another size than the model's.
    """
    _check_frames(model, store)
    provenance = dict(store.provenance) | {
        "latent_actions_of": store.provenance.get("source"),
        "codes": model.latent.codes,
    }
    spaces = Spaces(store.spaces.observation, gym_spaces.Discrete(model.latent.codes))
    made = TrajectoryStore.create(out, spaces, provenance=provenance, rewards=store.has_rewards)
    bar = tqdm(store.episodes(), total=len(store), desc="label", unit="episode", disable=None if progress else True)
    for number, episode in enumerate(bar):
        frames = next(iter(flatten(episode.observations).values()))
        if len(frames) < 2:
            mend = "leave it out"
            raise DataError([Problem("no-transition", "1 frame", "two at least", mend, str(store.path), number)])
        codes, _ = inferred(model, np.asarray(frames))
        rewards = None if episode.rewards is None else np.asarray(episode.rewards)[: len(codes)]
        kept = {path: np.asarray(leaf)[: len(codes) + 1] for path, leaf in flatten(episode.observations).items()}
        # Nobody saw what a last action without a frame behind it did, so a log without a final observation loses it.
        whole = episode.final_observation
        ends = episode.terminated and whole, episode.truncated or (episode.terminated and not whole)
        made.append(Episode(unflatten(kept), codes, rewards, *ends, meta=episode.meta))
    made.flush()
    return made


def inferred(model: Any, frames: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Codes [T] and the numbers they were rounded from [T, D] of the steps between frames uint8 [T + 1, H, W, C].

    Before the first frame stand copies of it.
    """
    reach = model.latent.reach
    padded = torch.from_numpy(np.concatenate([np.repeat(frames[:1], reach - 2, 0), frames]))
    windows = padded.unfold(0, reach, 1).movedim(-1, 1)
    parts: list[tuple[Tensor, Tensor]] = [
        model.latent.infer(part.contiguous().to(model.device)) for part in windows.split(_BATCH)
    ]
    codes, numbers = (torch.cat([part[at] for part in parts]).cpu().numpy() for at in range(2))
    return codes, numbers


def _check_frames(model: Any, store: TrajectoryStore) -> None:
    leaves = leaf_spaces(store.spaces.observation)
    found = [tuple(leaf.shape or ()) for leaf in leaves.values() if is_image(leaf)]
    expected = tuple(model.config.observation_space["shape"]) if "shape" in model.config.observation_space else None
    if len(leaves) != 1 or len(found) != 1 or (expected is not None and found[0] != expected):
        raise SpaceError(
            f"{store.path}: found frames {found}, expected one of {expected} as the model was trained on; resize them"
        )
