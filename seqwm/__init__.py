"""Logged trajectories in, evaluated and published sequence and world models out.

    import seqwm
    store = seqwm.load("minari:mujoco/hopper/medium-v0")      # any source, one store
    batch = store.windows(length=20, batch_size=64).batch(0)  # torch tensors
    run = seqwm.train("recipes/quickstart.yaml")              # a folder with weights, card, curve, replay
    model = seqwm.load_model(run)                             # or a Hub id
    print(seqwm.evaluate(model, "CartPole-v1", targets=[500], episodes=20, seed=0))

Names are imported when they are used, so `import seqwm` stays light and torch loads only with what needs it.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Gymnasium's classic-control rendering starts SDL, which takes over SIGTERM and so makes a run deaf to `timeout`, Slurm
# and Kubernetes; it asks this variable when it loads.
os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")

if TYPE_CHECKING:
    from seqwm.core.types import Batch, Episode, Spaces
    from seqwm.data.load import load
    from seqwm.data.store import TrajectoryStore
    from seqwm.data.validate import validate
    from seqwm.dreaming import dream
    from seqwm.evaluation.evaluate import evaluate
    from seqwm.hub.load import load_model
    from seqwm.hub.publish import publish
    from seqwm.run import train
    from seqwm.study import run_study

__version__ = "0.1.0"

_HOME = {
    "Batch": "seqwm.core.types",
    "Episode": "seqwm.core.types",
    "Spaces": "seqwm.core.types",
    "TrajectoryStore": "seqwm.data.store",
    "dream": "seqwm.dreaming",
    "evaluate": "seqwm.evaluation.evaluate",
    "load": "seqwm.data.load",
    "load_model": "seqwm.hub.load",
    "publish": "seqwm.hub.publish",
    "run_study": "seqwm.study",
    "train": "seqwm.run",
    "validate": "seqwm.data.validate",
}
__all__ = [
    "Batch",
    "Episode",
    "Spaces",
    "TrajectoryStore",
    "dream",
    "evaluate",
    "load",
    "load_model",
    "publish",
    "run_study",
    "train",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'seqwm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
