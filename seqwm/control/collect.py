"""Collecting: a policy plays, and what happens goes straight into a store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seqwm.control.policies import Distracted, RandomPolicy
from seqwm.control.rollout import gather
from seqwm.core.protocols import Policy
from seqwm.core.types import Spaces
from seqwm.data.store import TrajectoryStore
from seqwm.envs.make import make_vector


def collect(
    environment: str,
    policy: Policy | None,
    steps: int,
    out: str | Path | None,
    *,
    lanes: int = 16,
    seed: int = 0,
    spaces: Spaces | None = None,
    options: Mapping[str, Any] | None = None,
    name: str | None = None,
    random: float = 0.0,
    progress: bool = True,
) -> TrajectoryStore:
    """A new store with `steps` transitions of a policy in an environment.

    Args:
        environment: a registered Gymnasium id.
        policy: acts; None draws from the action space.
        steps: transitions, over all lanes.
        out: the folder of the store, which must not exist yet; None keeps it in memory.
        lanes: environments side by side; other lanes are other episodes.
        seed: names every episode's reset, and the draws of the random policy.
        spaces: those that the policy was made for, where they are not the environment's.
        options: keyword arguments of the environment.
        name: what the provenance calls the policy; its class when None.
        random: share of the actions that are drawn from the action space instead.
        progress: show a bar.

    Raises:
        UnfitEnvironmentError: the environment cannot be built, or does not fit `spaces`.
        SpaceError: its spaces cannot be stored.
        RolloutError: it failed on the way or gave what a store refuses; what was collected by then is in the store.
        DataError: `out` holds something.
    """
    vector = make_vector(environment, lanes, spaces=spaces, options=options)
    try:
        own = Spaces(vector.single_observation_space, vector.single_action_space)
        provenance = {
            "source": f"collect:{environment}",
            "environment": environment,
            **({"environment_options": dict(options)} if options else {}),
            "policy": name or ("random" if policy is None else type(policy).__name__),
            **({"random": random} if random else {}),
            "steps": steps,
            "lanes": vector.num_envs,
            "seed": seed,
        }
        store = TrajectoryStore.create(out, own, provenance=provenance)
        with tqdm(total=steps, desc=f"collect {environment}", unit="step", disable=None if progress else True) as bar:
            acting = policy or RandomPolicy(vector.single_action_space, seed)
            if random:
                acting = Distracted(acting, random, vector.single_action_space, seed)
            gather(vector, acting, store, steps, seed=seed, progress=bar)
    finally:
        vector.close()
    return store
