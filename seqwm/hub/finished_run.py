"""A finished run as its folder tells it: recipe, record, weights, episodes, pictures (`seqwm.run_folder` writes it)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from seqwm.core.errors import CheckpointError
from seqwm.evaluation.evaluate import Evaluation, Summary


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """What a finished run says of itself.

    Attributes:
        recipe: recipe.yaml.
        record: run.json.
        parameters: numbers in the weights, those of normalisation counted.
        evaluation: every episode, where it was measured.
        pictures: which of curve.png and replay.mp4 there are.
        world: whether the model is one of diffusers, a world without a policy.
    """

    recipe: dict[str, Any]
    record: dict[str, Any]
    parameters: int
    evaluation: Evaluation | None
    pictures: frozenset[str]
    world: bool

    @property
    def environment(self) -> str | None:
        """What it was played in, or was meant for."""
        if self.evaluation is not None:
            return self.evaluation.environment
        own: str | None = self.recipe["evaluate"]["environment"]
        return own or self.record["data"].get("provenance", {}).get("environment")

    @property
    def headline(self) -> Summary | None:
        """The result that stands for all: the highest target's, chosen before anything was measured."""
        if self.evaluation is None:
            return None
        return max(self.evaluation.summaries, key=lambda one: one.target if one.target is not None else 0.0)


def read_finished(run: Path) -> FinishedRun:
    """What stands in the folder of a finished run; CheckpointError naming what is missing."""
    record = _json(run, "run.json")
    if "seconds" not in record:
        mend = "go on with `seqwm train RECIPE --out DIR --resume`"
        raise CheckpointError(f"{run}: found a run that has not finished, expected a trained model; {mend}")
    try:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        evaluated = (run / "evaluation.json").is_file()
        return FinishedRun(
            recipe=recipe,
            record=record,
            parameters=_parameters(run / "model"),
            evaluation=Evaluation.from_json(_json(run, "evaluation.json")) if evaluated else None,
            pictures=frozenset(name for name in ("curve.png", "replay.mp4") if (run / name).is_file()),
            world=any((run / "model").glob("diffusion_pytorch_model*")),
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        mend = "expected the folder of a finished run (recipe.yaml, run.json, model/)"
        raise CheckpointError(f"{run}: found {type(error).__name__}: {error}; {mend}") from error


def _parameters(folder: Path) -> int:
    from safetensors import SafetensorError, safe_open

    count = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "numpy") as weights:
                count += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
        except SafetensorError as error:
            mend = "the file is not whole; train again from the last checkpoint with --resume"
            raise CheckpointError(f"{file}: cannot be read ({error}); {mend}") from error
    return count


def _json(run: Path, name: str) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads((run / name).read_text())
    except (OSError, ValueError) as error:
        mend = "expected the folder of a finished run; train one with `seqwm train RECIPE --out DIR`"
        raise CheckpointError(f"{run}: found no readable {name} ({error}); {mend}") from error
    return value
