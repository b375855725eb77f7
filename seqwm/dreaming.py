"""A world model beside reality: what `seqwm dream` writes.

OUT/dream.json    errors against horizon, the return so far in dream and reality, with intervals; how it was measured
    dream.png     the same as curves
    rollout.png   the longest prediction beside what happened, number by number, where the observation has no frames
    calibration.png    of an ensemble: its predicted deviations beside its errors, and how often its intervals hold
    strip.png     frames at growing horizons, where the observation has any: reality above, the dream beneath
    dream.mp4     the same as a film
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqwm.core import shipped
from seqwm.core.errors import CheckpointError
from seqwm.core.protocols import Policy, WorldModel
from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.recipe import parse_recipe
from seqwm.run_folder import write_json

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore
    from seqwm.evaluation.calibration import Calibration
    from seqwm.evaluation.dream_gap import DreamGap
    from seqwm.evaluation.prediction import Prediction

_FILMED = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Dream:
    """What was measured.

    Attributes:
        prediction: errors against what was logged.
        gap: returns in dream and reality; None where there is no environment.
        calibration: of an ensemble; None of other worlds.
        folder: where the files are.
    """

    prediction: Prediction
    gap: DreamGap | None
    calibration: Calibration | None
    folder: Path

    def __str__(self) -> str:
        """Errors at growing horizons, and the table of the gap."""
        from seqwm.evaluation.dream_gap import shown_horizons

        lines = []
        named = {**self.prediction.observations, "reward": self.prediction.reward}
        for name, curve in named.items():
            if curve is not None:
                cells = [f"{h}: {curve.error[h - 1]:.3g}" for h in shown_horizons(len(curve.error))]
                lines.append(f"error of {name or 'the observation'} ({curve.unit}) at {', '.join(cells)}")
        lines += [str(part) for part in (self.calibration, self.gap) if part]
        return "\n".join([*lines, f"figures in {self.folder}"])


def dream(
    run_or_repository: str | Path,
    *,
    data: str | None = None,
    environment: str | None = None,
    policy: Policy | str | None = None,
    horizon: int = 50,
    contexts: int = 256,
    episodes: int = 32,
    seed: int = 0,
    out: str | Path | None = None,
    revision: str | None = None,
) -> Dream:
    """Compare a trained world model with what was logged, and its dreams with what an environment gives.

    Args:
        run_or_repository: the folder of a run, or a Hub repository.
        data: logs to predict and to begin dreams from; what the run collected or learned from when None.
        environment: a Gymnasium id; the one of the run or of the data when None.
        policy: acts in dream and reality: one of its own kind, 'random', a run or a repository; the model's own when
            None, a random one where it has none.
        horizon: steps.
        contexts: logged moments to predict from.
        episodes: in dream and in reality.
        seed: names moments, dreams and episodes.
        out: folder to write; RUN/dream, or ./dream for a repository, when None.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        CheckpointError: the model is no world model, or there are no logs.
        UnfitEnvironmentError, RolloutError: as in `evaluate`.
    """
    from seqwm.evaluation.calibration import draw_calibration
    from seqwm.evaluation.dream_figures import draw_dream, write_film, write_strip
    from seqwm.evaluation.prediction import predict, prediction_error
    from seqwm.evaluation.rollout_figure import draw_rollout

    model, folder = _world(run_or_repository, revision)
    home = folder if (folder / "recipe.yaml").is_file() else folder.parent
    source, store = _logs(run_or_repository, home, data)
    environment = environment or model.config.environment or store.provenance.get("environment")
    out = Path(out) if out is not None else (home / "dream" if (home / "run.json").is_file() else Path("dream"))
    out.mkdir(parents=True, exist_ok=True)

    rollouts = predict(model, store.windows(model.window_length, 1), horizon=horizon, contexts=contexts, seed=seed)
    prediction = prediction_error(rollouts, store)
    calibrated = _calibration(model, store, home if data is None else None)
    gap = _gap(model, policy, store, environment, horizon, episodes, seed) if environment else None
    measured = {
        "model": str(run_or_repository), "data": source, "environment": environment, "horizon": horizon,
        "episodes": episodes, "seed": seed,
        "prediction": dataclasses.asdict(prediction), "gap": dataclasses.asdict(gap) if gap else None,
        "calibration": dataclasses.asdict(calibrated) if calibrated else None,
    }  # fmt: skip
    write_json(out / "dream.json", measured)
    draw_dream(prediction, gap, out / "dream.png")
    frames = next((path for path, leaf in leaf_spaces(store.spaces.observation).items() if is_image(leaf)), None)
    if frames is None:
        draw_rollout(rollouts, out / "rollout.png")
    else:
        longest = rollouts.there.sum(1).argsort(kind="stable")[::-1][:_FILMED]
        shown = rollouts.happened[frames][longest], rollouts.predicted[frames][longest]
        write_strip(*shown, out / "strip.png")
        write_film(*shown, out / "dream.mp4")
    if calibrated is not None:
        draw_calibration(calibrated, out / "calibration.png")
    return Dream(prediction, gap, calibrated, out)


def _world(name: str | Path, revision: str | None) -> tuple[Any, Path]:
    """The model and the folder that it was loaded from."""
    from seqwm.hub.load import find_model, load_model

    model = load_model(name, revision=revision)
    if not isinstance(model, WorldModel):
        raise CheckpointError(
            f"{name}: {type(model).__name__} is no world model; expected one with encode, step and decode"
        )
    return model, find_model(name, revision=revision)


def _logs(name: str | Path, home: Path, data: str | None) -> tuple[str, TrajectoryStore]:
    """The logs to compare with: those that are named, that the run collected, or that it learned from."""
    from seqwm.data.load import load
    from seqwm.data.store import TrajectoryStore

    if data is None and TrajectoryStore.is_store(home / "replay"):
        return str(home / "replay"), TrajectoryStore.open(home / "replay")
    if data is None and (home / "recipe.yaml").is_file():
        recipe = parse_recipe((home / "recipe.yaml").read_text(), str(home / "recipe.yaml"))
        data = recipe.data.source if recipe.data else None
    if data is None:
        raise CheckpointError(f"{name}: names no data; give logs of its environment, for example --data logs/random")
    return data, load(shipped.locate_source(data))


def _calibration(model: Any, store: TrajectoryStore, home: Path | None) -> Calibration | None:
    """Of a model that holds an ensemble; on what it never learned from, where the logs are those of its `home`."""
    from seqwm.control.ensemble_fit import held_out
    from seqwm.evaluation.calibration import calibration
    from seqwm.nn.ensemble_world import EnsembleWorld

    world = getattr(model, "world", None)
    if not isinstance(world, EnsembleWorld):
        return None
    if home is None:
        return calibration(world, store)
    recipe = parse_recipe((home / "recipe.yaml").read_text(), str(home / "recipe.yaml"))
    return calibration(world, store, held_out(len(store), recipe.seed))


def _gap(
    model: Any,
    policy: Policy | str | None,
    store: TrajectoryStore,
    environment: str,
    horizon: int,
    episodes: int,
    seed: int,
) -> DreamGap:
    from seqwm.control.dream import make_dream
    from seqwm.control.policies import RandomPolicy
    from seqwm.envs.make import make_vector
    from seqwm.evaluation.dream_gap import dream_gap
    from seqwm.hub.load import load_model

    asleep = make_dream(episodes, model, store, horizon)
    with contextlib.closing(make_vector(environment, episodes, spaces=store.spaces)) as awake:
        if policy == "random" or (policy is None and not hasattr(model, "policy")):
            policy = RandomPolicy(awake.single_action_space, seed)
        elif policy is None or isinstance(policy, str):
            policy = (model if policy is None else load_model(policy)).policy()
        assert isinstance(policy, Policy)
        return dream_gap(asleep, awake, policy, horizon, seed=seed)
