"""A world model beside reality: what `seqwm dream` writes.

OUT/dream.json    errors against horizon, the return so far in dream and reality, with intervals; how it was measured;
                  of frames also PSNR, on all pixels and on those that move, beside what copying gives, and SSIM
    dream.png     the same as curves
    rollout.png   the longest prediction beside what happened, number by number, where the observation has no frames;
                  both with the predictions of a second world, where one is named
    calibration.png    of an ensemble: its predicted deviations beside its errors, and how often its intervals hold
    strip.png     frames at growing horizons, where the observation has any: reality above, the dream beneath
    dream.mp4     the same as a film
    actions.json  of latent actions: what codes mean and whether they are actions at all; actions.png shows it
    driven.mp4    a dream under actions that were asked for; driven.png shows its frames

A world of latent actions is measured under the codes that it infers from the logs. Where those tell the true actions,
its map from codes to actions is fitted with a few of them and saved with the run's model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqwm.core.errors import SpaceError
from seqwm.core.protocols import Policy
from seqwm.core.spaces import is_image, leaf_spaces, space_from_json
from seqwm.core.tree import tree_map
from seqwm.core.types import Spaces
from seqwm.recipe import Evaluate, measured_in, parse_recipe
from seqwm.run_folder import say, write_json
from seqwm.worlds import logs_of, world_of

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore
    from seqwm.evaluation.action_report import ActionReport
    from seqwm.evaluation.calibration import Calibration
    from seqwm.evaluation.dream_gap import DreamGap
    from seqwm.evaluation.frame_table import FrameTable
    from seqwm.evaluation.prediction import Prediction

_FILMED = 4
_REPEATED = 6  # times that a code is done to show what it does


@dataclasses.dataclass(frozen=True, slots=True)
class Dream:
    """What was measured.

    Attributes:
        prediction: errors against what was logged.
        frames: figures of predicted frames; None where none are observed.
        gap: returns in dream and reality; None where there is no environment.
        calibration: of an ensemble; None of other worlds.
        actions: of latent actions, where the logs tell the true ones; None of other worlds.
        folder: where the files are.
    """

    prediction: Prediction
    frames: FrameTable | None
    gap: DreamGap | None
    calibration: Calibration | None
    actions: ActionReport | None
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
        lines += [str(part) for part in (self.frames, self.calibration, self.actions, self.gap) if part]
        return "\n".join([*lines, f"figures in {self.folder}"])


def dream(
    run_or_repository: str | Path,
    *,
    data: str | None = None,
    environment: str | None = None,
    policy: Policy | str | None = None,
    beside: str | Path | None = None,
    horizon: int = 50,
    contexts: int = 256,
    episodes: int = 32,
    seed: int = 0,
    out: str | Path | None = None,
    revision: str | None = None,
    actions: Sequence[int] | None = None,
    real_actions: bool = False,
    labels: int = 16,
    lpips_weights: str | Path | None = None,
    video_network: str | Path | None = None,
) -> Dream:
    """Compare a trained world model with what was logged, and its dreams with what an environment gives.

    Args:
        run_or_repository: the folder of a run, or a Hub repository.
        data: logs to predict and to begin dreams from; what the run collected or learned from when None.
        environment: a Gymnasium id; the one of the run or of the data when None.
        policy: acts in dream and reality: one of its own kind, 'random', a run or a repository; the model's own when
            None, a random one where it has none.
        beside: another world, a run or a repository, that predicts the same moments and is drawn in the same figures.
        horizon: steps.
        contexts: logged moments to predict from.
        episodes: in dream and in reality.
        seed: names moments, dreams and episodes.
        out: folder to write; RUN/dream, or ./dream for a repository, when None.
        revision: branch, tag or commit of a Hub repository.
        actions: discrete ones to film a dream under: those of the world, codes where it has latent actions.
        real_actions: `actions` are those of the logs, to be turned into codes by the map.
        labels: true actions that the map of latent actions is fitted with.
        lpips_weights, video_network: files for two more figures of frames (`seqwm.evaluation.learned_metrics`).

    Raises:
        CheckpointError: the model is no world model, or there are no logs, or the files hold something else.
        SpaceError: `actions` that the world does not have, frames that are not there to be filmed, or a world `beside`
            that is of other spaces.
        UnfitEnvironmentError, RolloutError: as in `evaluate`.
    """
    from seqwm.control.labels import labelled
    from seqwm.evaluation.calibration import draw_calibration
    from seqwm.evaluation.dream_figures import draw_dream, write_film, write_strip
    from seqwm.evaluation.frame_table import frame_table
    from seqwm.evaluation.prediction import predict, prediction_error
    from seqwm.evaluation.rollout_figure import draw_rollout

    model, folder = world_of(run_or_repository, revision)
    home = folder if (folder / "recipe.yaml").is_file() else folder.parent
    source, store = logs_of(run_or_repository, home, data)
    reality = _reality(model, home, store, environment)
    # A repository has a run.json, too, but lies in the cache of the Hub's client, where nothing is written.
    is_run = Path(run_or_repository).is_dir() and (home / "run.json").is_file()
    out = Path(out) if out is not None else (home / "dream" if is_run else Path("dream"))
    out.mkdir(parents=True, exist_ok=True)

    meant = _latent(model, store, labels, seed, out)
    if meant is not None and is_run and folder == home / "model":
        _save_weights(model, folder)
    if hasattr(model, "latent"):
        store, reality = labelled(model, store), Evaluate()  # whatever acts in it from here on acts in codes
    if actions is not None:
        _drive(model, store, actions, real_actions, seed, out)
    worlds = [model, *([_of_the_same_spaces(beside, store)] if beside is not None else [])]
    rollouts, *others = [
        predict(world, store.windows(world.window_length, 1), horizon=horizon, contexts=contexts, seed=seed)
        for world in worlds
    ]
    prediction, *other_errors = [prediction_error(each, store) for each in (rollouts, *others)]
    name = Path(beside).name if beside is not None else ""
    image = next((path for path, leaf in leaf_spaces(store.spaces.observation).items() if is_image(leaf)), None)
    extras = [None if path is None else Path(path) for path in (lpips_weights, video_network)]
    frames = None if image is None else frame_table(rollouts, image, *extras)
    calibrated = _calibration(model, store, home if data is None else None)
    gap = _gap(model, policy, store, reality, horizon, episodes, seed)
    measured = {
        "model": str(run_or_repository), "data": source, "environment": reality.environment,
        "environment_options": reality.environment_options, "horizon": horizon,
        "episodes": episodes, "seed": seed,
        "prediction": dataclasses.asdict(prediction), "frames": dataclasses.asdict(frames) if frames else None,
        "gap": dataclasses.asdict(gap) if gap else None,
        "calibration": dataclasses.asdict(calibrated) if calibrated else None,
        "actions": dataclasses.asdict(meant) if meant else None,
        "beside": {"model": str(beside), "prediction": dataclasses.asdict(other_errors[0])} if other_errors else None,
    }  # fmt: skip
    write_json(out / "dream.json", measured)
    draw_dream(prediction, gap, out / "dream.png", (name, other_errors[0]) if other_errors else None)
    if image is None:
        draw_rollout(rollouts, out / "rollout.png", (name, others[0]) if others else None)
    else:
        longest = rollouts.there.sum(1).argsort(kind="stable")[::-1][:_FILMED]
        shown = rollouts.happened[image][longest], rollouts.predicted[image][longest]
        write_strip(*shown, out / "strip.png")
        write_film(*shown, out / "dream.mp4")
    if calibrated is not None:
        draw_calibration(calibrated, out / "calibration.png")
    return Dream(prediction, frames, gap, calibrated, meant, out)


def _of_the_same_spaces(name: str | Path, store: TrajectoryStore) -> Any:
    """Another world of what the logs hold."""
    model, _ = world_of(name)
    spaces = Spaces(*(space_from_json(getattr(model.config, f"{kind}_space")) for kind in ("observation", "action")))
    if spaces != store.spaces:
        raise SpaceError(
            f"{name}: found {spaces}, expected {store.spaces}, those of the logs: name a world of the same"
        )
    return model


def _reality(model: Any, home: Path, store: TrajectoryStore, environment: str | None) -> Evaluate:
    """The environment to compare with, and its arguments: what is asked for, else the run's, else that of the logs."""
    evaluate, file = Evaluate(), home / "recipe.yaml"
    if file.is_file():
        evaluate = parse_recipe(file.read_text(), str(file)).evaluate
    named = environment or evaluate.environment or model.config.environment
    return measured_in(dataclasses.replace(evaluate, environment=named), store.provenance)


def _latent(model: Any, store: TrajectoryStore, labels: int, seed: int, out: Path) -> ActionReport | None:
    """What latent actions mean, where the logs tell the true ones."""
    from seqwm.evaluation.action_page import draw_actions
    from seqwm.evaluation.action_report import action_report, has_labels

    if not hasattr(model, "latent"):
        return None
    if not has_labels(store):
        if store.spaces.action is not None:
            say(f"{store.path}: codes are not compared with actions {store.spaces.action}, which are no one Discrete")
        return None
    report = action_report(model, store, labels, seed)
    write_json(out / "actions.json", dataclasses.asdict(report))
    draw_actions(report, _each_code(model, store), out / "actions.png")
    return report


def _save_weights(model: Any, folder: Path) -> None:
    """Take the place of a model's files, each at once."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        model.save_pretrained(partial)
        for file in Path(partial).iterdir():
            os.replace(file, folder / file.name)


def _each_code(model: Any, store: TrajectoryStore) -> Any:
    """One logged frame, and what follows when each code is done over and over, uint8 [codes, steps + 1, H, W, C]."""
    import torch

    from seqwm.evaluation.video_metrics import dreamt

    window = store.windows(model.window_length, 1).batch(0)
    repeated = dataclasses.replace(
        window,
        observations=tree_map(lambda leaf: leaf.expand(model.latent.codes, *leaf.shape[1:]), window.observations),
        valid=window.valid.expand(model.latent.codes, -1),
    )
    codes = torch.arange(model.latent.codes)[:, None].expand(-1, _REPEATED)
    return dreamt(model, repeated, codes, None)


def _drive(
    model: Any, store: TrajectoryStore, actions: Sequence[int], real_actions: bool, seed: int, out: Path
) -> None:
    """A film of a dream under discrete actions, from a logged moment."""
    import numpy as np
    import torch
    from gymnasium import spaces

    from seqwm.evaluation.dream_figures import write_film, write_strip
    from seqwm.evaluation.video_metrics import dreamt

    space = store.spaces.action
    if not isinstance(space, spaces.Discrete) or not any(map(is_image, leaf_spaces(store.spaces.observation).values())):
        raise SpaceError(f"actions: found a world of {store.spaces}, expected one Discrete action and frames to film")
    codes = torch.tensor(list(actions))
    if real_actions:
        if not hasattr(model, "latent"):
            raise SpaceError("real_actions: this world has no latent actions, so its actions are real; leave it out")
        codes = model.latent.code_of(codes)
    strays = [code for code in codes.tolist() if not space.start <= code < space.start + space.n]
    if strays or not len(codes):
        raise SpaceError(
            f"actions: found {strays or 'none'}, expected numbers from {space.start} to {space.start + space.n - 1}"
        )
    window = store.windows(model.window_length, 1, seed).batch(0)
    film = dreamt(model, window, codes[None], seed)
    still = np.repeat(film[:, :1], film.shape[1], 1)
    write_strip(still[:, 1:], film[:, 1:], out / "driven.png")
    write_film(still[:, 1:], film[:, 1:], out / "driven.mp4")


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
    reality: Evaluate,
    horizon: int,
    episodes: int,
    seed: int,
) -> DreamGap | None:
    """The returns in dream and reality; None where there is no environment."""
    from seqwm.control.dream import make_dream
    from seqwm.control.policies import RandomPolicy
    from seqwm.envs.make import make_vector
    from seqwm.evaluation.dream_gap import dream_gap
    from seqwm.hub.load import load_model

    if reality.environment is None:
        return None
    options = reality.environment_options
    asleep = make_dream(episodes, model, store, horizon)
    with contextlib.closing(make_vector(reality.environment, episodes, spaces=store.spaces, options=options)) as awake:
        if policy == "random" or (policy is None and not hasattr(model, "policy")):
            policy = RandomPolicy(awake.single_action_space, seed)
        elif policy is None or isinstance(policy, str):
            policy = (model if policy is None else load_model(policy)).policy()
        assert isinstance(policy, Policy)
        return dream_gap(asleep, awake, policy, horizon, seed=seed)
