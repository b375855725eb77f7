"""Do latent actions mean anything? Codes beside the actions that were really taken, and beside what frames show.

Codes say nothing by themselves; a few labels give them meaning. `action_report` measures on episodes that no label was
taken from:

- *purity*: how often the action that most often goes with a code was the one taken (each code's majority, with all
  labels), and *mapped*: how often the map fitted with n labels names it. The *ceiling* is what the better of two
  inverse models reaches with all labels, one that sees whole frames and one that looks at them as the model does: no
  one can tell what a wall stopped. NMI is the mutual information of codes and actions over the mean of their entropies.
- *probe*: how often a linear classifier of the numbers before they are rounded names the action. Corners of a cube
  need not be linearly separable into actions, so it may be below the purity.
- *Delta-PSNR* (Bruce et al., "Genie", 2024): how much nearer the inferred codes lead to what happened than codes drawn
  at random.
- *leak*: a code must be an action and not a small copy of the next frame. Codes of other steps must spoil the
  prediction (`shuffled`), and must bring the other step's action (`transplanted`, in the eyes of the inverse model,
  where it names that action on the real step) into this step's scene, not the other's frame (`own_frame`). A scene is
  the frames of an episode: an action may change more of a frame than tells two scenes apart, as turning does where what
  lies ahead is lit.

The labels of a map are asked for, not drawn: the next is of the code of which one more is worth most (`ask_for`). Where
a code's labels disagree evenly, an action that no other code stands for wins.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces as gym_spaces
from numpy.typing import NDArray
from torch import Tensor

from seqwm.core.errors import DataError, SpaceError
from seqwm.core.spaces import leaf_spaces, space_from_json
from seqwm.core.tree import flatten, unflatten
from seqwm.core.types import Batch
from seqwm.data.problems import Problem
from seqwm.data.store import TrajectoryStore
from seqwm.evaluation.video_metrics import judge, psnr

LABELS = (16, 128)
_STEPS = 4096  # looked at, at most, in each of the two parts of the episodes
_FITTED = 0.8  # of the episodes
_PRIOR = 0.1  # labels that each code has of each action before any is asked for
_SCENE = 32  # frames of an episode that a drawn one is held against, at most
_COLLAPSED, _IGNORED, _KEPT = 1.5, 1.0, 0.9

Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ActionReport:
    """What was measured, on `steps` steps of held-out episodes.

    Attributes:
        labels: that the model's map was fitted with.
        table: how often each code went with each action, [codes][actions].
        codes_in_use: that occur at all.
        perplexity: the exponential of the codes' entropy.
        purity, nmi, ceiling: see above.
        mapped, probe: by the number of labels.
        action_of, confidence: of each code by the model's map; -1 for a code without labels.
        psnr: of the prediction under the inferred codes; `copied` of the last frame.
        delta_psnr, shuffled: what random codes and those of other steps cost, in dB.
        transplanted: share of steps that show another step's action when given its code.
        own_frame: share of those that are nearer to a frame of their own episode than to the other step's.
        warnings: what is wrong, and the option to change.
    """

    steps: int
    labels: int
    table: list[list[int]]
    codes_in_use: int
    perplexity: float
    purity: float
    nmi: float
    ceiling: float
    mapped: dict[str, float]
    probe: dict[str, float]
    action_of: list[int]
    confidence: list[float]
    psnr: float
    copied: float
    delta_psnr: float
    shuffled: float
    transplanted: float
    own_frame: float
    warnings: list[str]

    def __str__(self) -> str:
        """The figures in a few lines."""
        share = ", ".join(
            f"{value:.3f} ({value / self.ceiling:.0%}) with {n} labels" for n, value in self.mapped.items()
        )
        lines = [
            f"{self.codes_in_use} codes in use, perplexity {self.perplexity:.2f}; NMI {self.nmi:.2f}",
            f"purity {self.purity:.3f}, {self.purity / self.ceiling:.0%} of the ceiling {self.ceiling:.3f}",
            f"the map names {share}",
            f"Delta-PSNR {self.delta_psnr:.1f} dB ({self.psnr:.1f} under inferred codes, copying {self.copied:.1f})",
            f"leak: other codes cost {self.shuffled:.1f} dB, bring their action in {self.transplanted:.0%} of steps, "
            f"and {self.own_frame:.0%} stay in their own frame",
        ]
        return "\n".join([*lines, *(f"WARNING: {warning}" for warning in self.warnings)])


def has_labels(store: TrajectoryStore) -> bool:
    """Whether a store's actions are one number out of a few."""
    return store.spaces.action is not None and isinstance(store.spaces.action, gym_spaces.Discrete)


@torch.no_grad()
def action_report(
    model: Any, store: TrajectoryStore, labels: int = 16, seed: int = 0, updates: int = 600
) -> ActionReport:
    """Measure a model of latent actions, and fit its map with `labels` true actions.

    Args:
        model: a world of latent actions; the map in its `latent` (`seqwm.nn.latent_action_model`) is written.
        store: frames and discrete actions.
        labels: that the map may use.
        seed: of the steps looked at.
        updates: of the inverse models behind the ceiling; on few logs no more than they have steps.

    Raises:
        SpaceError: actions that are not discrete, or are not those of the logs that the model was trained on.
        DataError: fewer than five episodes, or fewer steps than labels.
    """
    action = store.spaces.action
    if not isinstance(action, gym_spaces.Discrete):
        raise SpaceError(f"{store.path}: found actions {action}, expected one Discrete to compare codes with")
    known = model.config.action_space
    if known and space_from_json(known) != action:
        raise SpaceError(
            f"{store.path}: found labels of {action}, expected {space_from_json(known)} as in the logs that the model "
            "was trained on; give logs of the same environment"
        )
    if len(store) < 5:
        _refuse(store, "too-few-episodes", f"{len(store)} episodes", "5 at least, to hold some out", "give more logs")
    order = np.random.default_rng(seed).permutation(len(store))
    cut = max(1, round(_FITTED * len(store)))
    parts = [_steps(model, store, np.sort(part), seed) for part in (order[:cut], order[cut:])]
    fit, held = parts
    choices = int(action.n)
    if len(fit.codes) < labels:
        found, expected = f"{len(fit.codes)} whole windows", f"one for each of {labels} labels"
        _refuse(store, "too-few-windows", found, expected, "ask for fewer labels, or give more logs")

    reach, eyes = model.latent.reach, model.latent.options
    judges = []
    for changed, any_direction in ((None, False), (eyes.changed, eyes.any_direction)):
        with torch.enable_grad():
            inverse = judge(
                store, choices, min(updates, store.rows), seed=seed, frames=reach, unshuffle=eyes.unshuffle,
                changed=changed, any_direction=any_direction, episodes=[int(number) for number in order[:cut]],
            )  # fmt: skip
        told = inverse.name(held.frames[:, -reach:])
        judges.append((float((told == held.actions).mean()), inverse, told))
    ceiling, inverse, told = max(judges, key=lambda each: each[0])
    table = np.zeros((model.latent.codes, choices), np.int64)
    np.add.at(table, (held.codes, held.actions), 1)
    mapped, probe = {}, {}
    for count in (*(n for n in LABELS if n <= len(fit.codes)), len(fit.codes)):
        chosen = ask_for(fit.codes, fit.distance, fit.actions, count)
        of, _ = fitted_map(fit.codes[chosen], fit.actions[chosen], model.latent.codes)
        mapped[str(count)] = float((of[held.codes] == held.actions).mean())
        with torch.enable_grad():
            probe[str(count)] = _probe(fit, held, chosen, choices)
    chosen = ask_for(fit.codes, fit.distance, fit.actions, labels)
    of, confidence = fitted_map(fit.codes[chosen], fit.actions[chosen], model.latent.codes)
    model.latent.mapped_action.copy_(torch.from_numpy(of))
    model.latent.mapped_confidence.copy_(torch.from_numpy(confidence))

    drawn = np.random.default_rng(seed).integers(model.latent.codes, size=len(held.codes))
    other = np.roll(np.arange(len(held.codes)), len(held.codes) // 2)
    before, after = held.frames[:, -2], held.frames[:, -1]
    own, random, moved = (_foretold(model, held.frames, codes) for codes in (held.codes, drawn, held.codes[other]))
    seen = inverse.name(np.concatenate([held.frames[:, -reach:-1], moved[:, None]], 1))
    clear = (told == held.actions)[other] & (held.codes[other] != held.codes)
    best = psnr(own, after)
    usage = table.sum(1) / max(1, table.sum())
    report = ActionReport(
        steps=len(held.codes),
        labels=labels,
        table=table.tolist(),
        codes_in_use=int((usage > 0).sum()),
        perplexity=math.exp(_entropy(usage)),
        purity=float(table.max(1).sum() / max(1, table.sum())),
        nmi=mutual_information(table),
        ceiling=ceiling,
        mapped=mapped,
        probe=probe,
        action_of=of.tolist(),
        confidence=[round(float(value), 3) for value in confidence],
        psnr=best,
        copied=psnr(before, after),
        delta_psnr=best - psnr(random, after),
        shuffled=best - psnr(moved, after),
        transplanted=float((seen == held.actions[other])[clear].mean()) if clear.any() else 0.0,
        own_frame=float(in_own_scene(moved, after, held.episodes, other).mean()),
        warnings=[],
    )
    report.warnings.extend(_warnings(report))
    return report


def ask_for(codes: Codes, distance: NDArray[np.float32], actions: Codes, count: int) -> NDArray[np.int64]:
    """The `count` steps whose labels say most, int64 [count], asked for one after the other.

    The next label is of the code of which it is worth most: share of the steps times the chance that what its labels
    say so far is wrong, over one more than there are. So a code whose labels disagree is asked again, one that occurs
    seldom may not be, and of each code the surest steps come first. Only the actions of asked steps [N] are looked at.
    """
    choices = int(actions.max(initial=0)) + 1
    used, size = np.unique(codes, return_counts=True)
    steps = [np.flatnonzero(codes == code)[np.argsort(distance[codes == code], kind="stable")] for code in used]
    said = np.zeros((len(used), choices), np.int64)
    asked = said.sum(1)

    def worth(of: int) -> float:
        if asked[of] == size[of]:
            return 0.0
        wrong = 1 - (said[of].max() + _PRIOR) / (asked[of] + _PRIOR * choices)
        return float(size[of] * wrong / (asked[of] + 1))

    queue = [(-worth(of), of) for of in range(len(used))]
    heapq.heapify(queue)
    chosen: list[int] = []
    while len(chosen) < count:
        of = queue[0][1]
        chosen.append(int(steps[of][asked[of]]))
        said[of, actions[chosen[-1]]] += 1
        asked[of] += 1
        heapq.heapreplace(queue, (-worth(of), of))
    return np.array(chosen, np.int64)


def fitted_map(codes: Codes, actions: Codes, size: int) -> tuple[Codes, NDArray[np.float32]]:
    """The action that each of `size` codes stands for (-1 without labels), and the share of its labels that agree."""
    choices = int(actions.max(initial=0)) + 1
    table = np.zeros((size, choices), np.int64)
    np.add.at(table, (codes, actions), 1)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    of, taken = np.full(size, -1), np.zeros(choices, np.int64)
    for code in np.argsort(-share.max(1), kind="stable"):
        if not table[code].any():
            continue
        best = np.flatnonzero(table[code] == table[code].max())
        of[code] = best[np.argmin(taken[best])]
        taken[of[code]] += 1
    confidence = np.where(of >= 0, share[np.arange(size), of.clip(0)], 0.0)
    return of, confidence.astype(np.float32)


def in_own_scene(
    drawn: NDArray[np.uint8], after: NDArray[np.uint8], episodes: NDArray[np.int64], other: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether each drawn frame [N, H, W, C] is nearer to a frame of its own episode than to the other step's, bool [N].

    Args:
        drawn: what follows each step's past under another's code.
        after: what did follow.
        episodes: of the steps, [N].
        other: the steps that codes were taken from, [N]; never a part of the own scene.
    """
    steps = {number: np.flatnonzero(episodes == number) for number in np.unique(episodes)}
    stays = np.zeros(len(drawn), bool)
    for at, frame in enumerate(drawn.astype(np.float32)):
        of = steps[episodes[at]]
        scene = np.append(of[:: len(of) // _SCENE + 1], at)
        scene = scene[scene != other[at]]
        error = np.square(after[np.append(scene, other[at])] - frame).mean((1, 2, 3))
        stays[at] = error[:-1].min() < error[-1]
    return stays


def mutual_information(table: NDArray[np.int64]) -> float:
    """Of rows and columns of a table of counts, over the mean of their entropies; 0 where neither varies."""
    joint = table / max(1, table.sum())
    rows, columns = _entropy(joint.sum(1)), _entropy(joint.sum(0))
    mean = (rows + columns) / 2
    return (rows + columns - _entropy(joint.ravel())) / mean if mean > 0 else 0.0


def _refuse(store: TrajectoryStore, check: str, found: str, expected: str, mend: str) -> None:
    raise DataError([Problem(check, found, expected, mend, str(store.path))])


@dataclass(frozen=True, slots=True)
class _Steps:
    """N steps: frames uint8 [N, T, H, W, C], episodes, actions, codes [N], numbers [N, D], distance to the point."""

    frames: NDArray[np.uint8]
    episodes: NDArray[np.int64]
    actions: Codes
    codes: Codes
    numbers: NDArray[np.float32]
    distance: NDArray[np.float32]


def _steps(model: Any, store: TrajectoryStore, episodes: Sequence[int] | NDArray[Any], seed: int) -> _Steps:
    count = min(_STEPS, int(store.lengths[episodes].sum()))  # no more than there are: each costs several dreams
    windows = store.windows(model.window_length, count, seed, episodes=[int(number) for number in episodes])
    batch, (numbered, _) = windows.batch(0), windows.drawn(0)
    whole = batch.valid.all(1)
    frames = flatten(batch.observations)[model.image][whole]
    assert batch.actions is not None
    actions = next(iter(flatten(batch.actions).values()))[whole, -2]
    parts = [model.latent.infer(part[:, -model.latent.reach :].to(model.device)) for part in frames.split(256)]
    codes, numbers = (torch.cat([part[at] for part in parts]).cpu() for at in range(2))
    points = model.latent.quantise.values(codes.to(model.device)).cpu()
    distance = (numbers.tanh() - points).square().sum(-1)
    start = (
        int(getattr(next(iter(leaf_spaces(store.spaces.action).values())), "start", 0)) if store.spaces.action else 0
    )
    told = actions.numpy() - start
    return _Steps(frames.numpy(), numbered[whole.numpy()], told, codes.numpy(), numbers.numpy(), distance.numpy())


def _foretold(model: Any, frames: NDArray[np.uint8], codes: Codes) -> NDArray[np.uint8]:
    """The frames that follow all but the last of `frames` under codes, as the world draws them, uint8 [N, H, W, C]."""
    parts = []
    for given, code in zip(torch.from_numpy(frames).split(256), torch.from_numpy(codes).split(256), strict=True):
        step = model.step(model.encode(_lived(model, given[:, :-1])), code.to(model.device), None)
        parts.append(next(iter(flatten(model.decode(step.state)).values())).cpu())
    drawn: NDArray[np.uint8] = torch.cat(parts).numpy()
    return drawn


def _lived(model: Any, frames: Tensor) -> Batch:
    """Windows of frames [B, T, H, W, C] of which nothing else is known."""
    there = torch.ones(frames.shape[:2], dtype=torch.bool)
    batch = Batch(unflatten({model.image: frames}), None, None, ~there, ~there, there, there.long().cumsum(1) - 1, None)
    return batch.to(model.device)


def _probe(fit: _Steps, held: _Steps, chosen: NDArray[np.int64], choices: int) -> float:
    """How often softmax regression of the numbers, fitted on the chosen steps, names the action."""
    x, y = torch.from_numpy(fit.numbers[chosen]), torch.from_numpy(fit.actions[chosen])
    weights = torch.zeros(x.shape[1] + 1, choices, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def said(numbers: Tensor) -> Tensor:
        return numbers @ weights[:-1] + weights[-1]

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss: Tensor = F.cross_entropy(said(x), y) + 1e-3 * weights.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        named = said(torch.from_numpy(held.numbers)).argmax(1).numpy()
    return float((named == held.actions).mean())


def _entropy(shares: NDArray[np.float64]) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def _warnings(report: ActionReport) -> list[str]:
    found = []
    if report.perplexity < _COLLAPSED:
        found.append(
            f"the codes have collapsed (perplexity {report.perplexity:.2f} of {len(report.table)}): nearly every step "
            "has the same one; train longer, or raise model.change_weight or train.learning_rate"
        )
    if report.delta_psnr < _IGNORED:
        found.append(
            f"codes are ignored (Delta-PSNR {report.delta_psnr:.1f} dB): the next frame follows from the past without "
            "them; train longer, lower model.context, or raise model.change_weight"
        )
    if report.own_frame < _KEPT:
        found.append(
            f"codes leak frames: {1 - report.own_frame:.0%} of steps given another's code show the other's frame; "
            "lower model.levels"
        )
    return found
