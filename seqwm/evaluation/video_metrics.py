"""How true a world of frames is, by figures that need no network from elsewhere.

PSNR and SSIM say how near frames are; beside them stands what copying gives, for a still background earns 20 to 30 dB.
PSNR on moving pixels leaves the background out. `drift` follows the logged actions for H steps. Delta-PSNR is how much
nearer the true actions lead than others do (Bruce et al., "Genie", 2024). Obedience asks whether a generated step shows
the action that was taken, among actions that nobody logged: read off exactly where a world allows it, or judged by an
inverse model that was trained on real steps, whose own accuracy on real steps then stands beside it.

Frames are uint8 [..., H, W, C]. The squared error of a clip is pooled before the logarithm; the mean of PSNRs of single
frames is larger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from seqwm.core.protocols import WorldModel
from seqwm.core.random import torch_generator
from seqwm.core.tree import flatten, tree_map, unflatten
from seqwm.core.types import Batch, TensorTree
from seqwm.data.store import TrajectoryStore
from seqwm.nn.frames import from_bytes
from seqwm.nn.inverse_dynamics import InverseDynamics

Frames = NDArray[np.uint8]

MOVING = 16
"""Pixels whose largest change over the channels is above this count as moving."""

_JUDGE_WIDTH = 32  # channels of the judge's convolutions
_SAME_DB = 100.0  # what equal frames are given in place of infinity


def psnr(frames: Frames, others: Frames, where: NDArray[np.bool_] | None = None) -> float:
    """Peak signal-to-noise ratio in dB of all frames together; on the pixels `where` (bool [..., H, W]), if given."""
    error = np.square(frames.astype(np.float64) - others).mean(-1)
    if where is not None:
        error = error[where]
    if not error.size or error.mean() == 0:
        return _SAME_DB
    return float(20 * np.log10(255) - 10 * np.log10(error.mean()))


def moving(before: Frames, after: Frames) -> NDArray[np.bool_]:
    """The pixels that change from one frame to the next, bool [..., H, W]."""
    changes: NDArray[np.bool_] = np.abs(after.astype(np.int16) - before).max(-1) > MOVING
    return changes


def ssim(frames: Frames, others: Frames) -> float:
    """Structural similarity of Wang et al., 2004: Gaussian windows of 11 pixels and deviation 1.5, K 0.01 and 0.03.

    The mean over windows within the frame, channels and frames; of frames under 11 pixels, over one window as large.
    """
    one, other = (torch.from_numpy(x).reshape(-1, *x.shape[-3:]).movedim(-1, 1).double() for x in (frames, others))
    height, width = one.shape[-2:]
    window = torch.outer(_gaussian(min(11, height)), _gaussian(min(11, width)))[None, None]

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x.flatten(0, 1)[:, None], window)

    mu, nu = mean(one), mean(other)
    var, other_var = mean(one.square()) - mu.square(), mean(other.square()) - nu.square()
    covariance = mean(one * other) - mu * nu
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mu * nu + c1) * (2 * covariance + c2)
    return float((similarity / ((mu.square() + nu.square() + c1) * (var + other_var + c2))).mean())


@dataclass(frozen=True, slots=True)
class Clips:
    """N clips of real frames, and what was done in them.

    Attributes:
        context: windows that end at the first frame of each clip.
        frames: uint8 [N, H + 1, height, width, C], the last frame of the context first.
        actions: leaves [N, H, ...].
    """

    context: Batch
    frames: Frames
    actions: TensorTree


def clips(store: TrajectoryStore, window: int, horizon: int, count: int, seed: int = 0) -> Clips:
    """Clips of `horizon` steps of as many episodes, each drawn with the place where it begins.

    Args:
        store: logs that the world was not trained on.
        window: rows that the world reads.
        horizon: H.
        count: N at most, one from an episode; episodes that are shorter than window and horizon are passed over.
        seed: of the draws.

    Raises:
        ValueError: no episode is long enough.
    """
    long = np.flatnonzero(store.lengths >= window + horizon - 1)
    if not len(long):
        raise ValueError(f"found no episode of {window + horizon - 1} steps, expected some; measure a shorter horizon")
    draw = np.random.default_rng(seed)
    chosen = draw.permutation(long)[:count]
    starts = window - 1 + (draw.random(len(chosen)) * (store.lengths[chosen] - window - horizon + 2)).astype(np.int64)
    context = store.windows(window, 1).gather(chosen, starts)
    frames, actions = [], []
    for number, start in zip(chosen.tolist(), starts.tolist(), strict=True):
        episode = store.episode(number)
        image = next(iter(flatten(episode.observations).values()))
        span = image[start : start + horizon + 1]
        if len(span) <= horizon:  # logged without a final observation
            span = np.concatenate([span, span[-1:]])
        frames.append(span)
        assert episode.actions is not None
        leaves = flatten(episode.actions)
        actions.append({path: leaf[start : start + horizon] for path, leaf in leaves.items()})
    stacked = {path: np.stack([action[path] for action in actions]) for path in actions[0]}
    kinds = {path: np.float32 if leaf.dtype.kind == "f" else np.int64 for path, leaf in stacked.items()}
    tensors = {path: torch.from_numpy(leaf.astype(kinds[path])) for path, leaf in stacked.items()}
    return Clips(context, np.stack(frames), unflatten(tensors))


@torch.no_grad()
def dreamt(world: WorldModel, context: Batch, actions: TensorTree, seed: int | None = 0) -> Frames:
    """Frames of a dream under actions (leaves [N, H, ...]), uint8 [N, H + 1, height, width, C], the context's first.

    Args:
        world: of frames.
        context: where it begins.
        actions: what is done.
        seed: of the draws; the likeliest happens when None.
    """
    device = getattr(world, "device", torch.device("cpu"))
    generator = None if seed is None else torch_generator(seed, device=torch.device(device).type)
    state = world.encode(context.to(device))
    seen = [_frame(world.decode(state))]
    leaves = flatten(actions)
    for t in range(next(iter(leaves.values())).shape[1]):
        action = unflatten({path: leaf[:, t].to(device) for path, leaf in leaves.items()})
        state = world.step(state, action, generator).state
        seen.append(_frame(world.decode(state)))
    return np.stack(seen, 1)


@dataclass(frozen=True, slots=True)
class OneStep:
    """The next frame in dB: drawn, drawn on moving pixels, and what copying the last frame gives in each."""

    psnr: float
    copied: float
    moving_psnr: float
    moving_copied: float
    ssim: float


def one_step(frames: Frames, dream: Frames) -> OneStep:
    """Figures of the first step of dreams [N, 2 and more, ...] beside reality."""
    before, true, drawn = frames[:, 0], frames[:, 1], dream[:, 1]
    where = moving(before, true)
    return OneStep(
        psnr(drawn, true), psnr(before, true), psnr(drawn, true, where), psnr(before, true, where), ssim(drawn, true)
    )


def drift(frames: Frames, dream: Frames) -> tuple[list[float], list[float]]:
    """PSNR at each step 1 .. H of a dream under the logged actions, and that of the frame it began from."""
    steps = range(1, frames.shape[1])
    return [psnr(dream[:, h], frames[:, h]) for h in steps], [psnr(frames[:, 0], frames[:, h]) for h in steps]


def delta_psnr(world: WorldModel, given: Clips, step: int = 1, seed: int = 0) -> float:
    """PSNR at a step under the true actions minus PSNR under those of other clips."""
    first = tree_map(lambda leaf: leaf[:, :step], given.actions)
    others = tree_map(lambda leaf: leaf.roll(1, 0), first)
    true = given.frames[:, step]
    return psnr(dreamt(world, given.context, first, seed)[:, step], true) - psnr(
        dreamt(world, given.context, others, seed)[:, step], true
    )


def obedience(
    world: WorldModel,
    given: Clips,
    choices: int,
    read: Callable[[Frames, Frames], NDArray[Any]],
    expected: Callable[[Frames, NDArray[np.int64]], NDArray[Any]],
    seed: int = 0,
) -> float:
    """The share of steps under actions drawn at random after which a frame shows what they lead to.

    Args:
        world: with discrete actions 0 .. choices - 1.
        given: where the steps are taken.
        choices: actions.
        read: what frames after a step show, [N, ...], given those before.
        expected: what actions lead to from frames, [N, ...]; negative where it cannot be told (a blocked move).
        seed: of the actions and the draws.

    Raises:
        ValueError: of no step it can be told what it leads to.
    """
    actions = np.random.default_rng(seed).integers(choices, size=len(given.frames))
    dream = dreamt(world, given.context, torch.from_numpy(actions)[:, None], seed)
    wanted = expected(given.frames[:, 0], actions).reshape(len(actions), -1)
    told = (wanted >= 0).all(-1)
    if not told.any():
        raise ValueError("of no step it can be told what it leads to; give more clips")
    shown = read(dream[:, 0], dream[:, 1]).reshape(len(actions), -1)
    return float((shown == wanted).all(-1)[told].mean())


class Judge(nn.Module):
    """An inverse model: which discrete action lies before the last of some frames. Trained on real steps by `judge`."""

    def __init__(self, inverse: InverseDynamics) -> None:
        super().__init__()
        self.inverse = inverse

    def forward(self, frames: Tensor) -> Tensor:
        """Logits [N, choices] of frames uint8 [N, F, H, W, C]."""
        logits: Tensor = self.inverse(from_bytes(frames))
        return logits

    @torch.no_grad()
    def name(self, frames: Frames) -> NDArray[np.int64]:
        """The likeliest action, int64 [N], before the last of frames [N, F, H, W, C]."""
        parts = [self(part).argmax(-1) for part in torch.from_numpy(frames).split(256)]
        named: NDArray[np.int64] = torch.cat(parts).numpy()
        return named


def judge(
    store: TrajectoryStore,
    choices: int,
    updates: int = 400,
    batch_size: int = 64,
    seed: int = 0,
    *,
    frames: int = 2,
    unshuffle: int = 1,
    changed: float | None = None,
    any_direction: bool = False,
    episodes: Sequence[int] | None = None,
) -> Judge:
    """A judge trained on a store with one image and one discrete action.

    Args:
        store: real steps.
        choices: actions, counted from the space's first.
        updates, batch_size, seed: of the training.
        frames: that it sees.
        unshuffle, changed, any_direction: how it looks at them (`seqwm.nn.inverse_dynamics`).
        episodes: to learn from; all when None.
    """
    windows = store.windows(frames, batch_size, seed, episodes=episodes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        colours = _images(windows.batch(0)).shape[-1]
        inverse = InverseDynamics(
            frames, colours, choices, _JUDGE_WIDTH, unshuffle, changed=changed, any_direction=any_direction
        )
        model = Judge(inverse)
    start = int(getattr(store.spaces.action, "start", 0))
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(updates):
        batch = windows.batch(step)
        whole = batch.valid.all(1)
        if not whole.any():
            continue
        assert batch.actions is not None
        seen, actions = _images(batch)[whole], next(iter(flatten(batch.actions).values()))[whole, -2] - start
        loss = F.cross_entropy(model(seen), actions)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:  # without a slow start, frames of which little changes kill its features
            group["lr"] = 3e-3 * min(1.0, 10 * (step + 1) / updates) * (1 - step / updates)
        optimiser.step()
        optimiser.zero_grad()
    return model.eval()


def _images(batch: Batch) -> Tensor:
    image: Tensor = next(iter(flatten(batch.observations).values()))
    return image


def _frame(observation: TensorTree) -> Frames:
    frames: Frames = next(iter(flatten(observation).values())).cpu().numpy()
    return frames


def _gaussian(size: int) -> Tensor:
    x = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-x.square() / (2 * 1.5**2))
    return weights / weights.sum()
