"""What a run with a `collect` section begins with: environments, and a store of its own in RUN/replay.

The store starts with the episodes of the recipe's data, where it names any, and with random actions; then it grows as
the learner acts (`seqwm.training.collector`). A resumed run finds it as it was at the checkpoint.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqwm.core.errors import RecipeError
from seqwm.core.random import key
from seqwm.core.types import Spaces
from seqwm.recipe import Collect
from seqwm.worlds import DREAM, open_dream

if TYPE_CHECKING:
    from seqwm.control.dream import DreamEnv
    from seqwm.control.lanes import Lanes
    from seqwm.data.store import TrajectoryStore
    from seqwm.envs.make import FreezingVectorEnv

_PREFILL = 4  # the place of random actions among the random streams under a seed


def open_environments(options: Collect, data: TrajectoryStore | None) -> FreezingVectorEnv | DreamEnv:
    """The environments to act in, which fit the data where there is any; or dreams of a world (`seqwm.worlds`)."""
    from seqwm.envs.make import make_vector

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError("collect: found several processes, expected one: learning while acting is not distributed")
    if options.environment == DREAM:
        return open_dream(options.environment_options, options.lanes)
    spaces = data.spaces if data is not None else None
    return make_vector(options.environment, options.lanes, spaces=spaces, options=options.environment_options)


def open_replay(
    folder: Path,
    vector: Lanes,
    options: Collect,
    data: TrajectoryStore | None,
    seed: int,
    collected: dict[str, Any] | None,
) -> TrajectoryStore:
    """The store that grows: filled for the first update, or as it was when a collector's state was saved.

    Args:
        folder: of the store.
        vector: the environments.
        options: the `collect` section.
        data: to begin with.
        seed: of the run.
        collected: the state of the collector in the checkpoint that the run goes on from.
    """
    from seqwm.control.policies import RandomPolicy
    from seqwm.control.rollout import gather
    from seqwm.data.store import TrajectoryStore
    from seqwm.training.collector import rewind

    if collected is not None:
        store = TrajectoryStore.open(folder)
        rewind(store, collected)
        return store
    if folder.exists():  # of a run that died before its first checkpoint
        shutil.rmtree(folder)
    spaces = data.spaces if data is not None else Spaces(vector.single_observation_space, vector.single_action_space)
    store = TrajectoryStore.create(folder, spaces, provenance={**options.provenance, "seed": seed})
    for episode in data.episodes() if data is not None else ():
        store.append(episode)
    if options.prefill:
        random = RandomPolicy(vector.single_action_space, key(seed, _PREFILL, 0) >> 1)
        gather(vector, random, store, options.prefill, seed=key(seed, _PREFILL, 1) >> 1)
    return store
