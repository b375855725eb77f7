"""Worlds of frames beside DIAMOND's network: drawing frames, playing, and training to the same picture.

    python tests/benchmarks/diffusion.py generation play training [--diamond CHECKOUT] [--pairs 6] [--budget 240]
    python tests/benchmarks/diffusion.py generation --device cuda --lanes 64 --peak 989  # TFLOP/s in bf16 of an H100

DIAMOND's layout (Alonso et al., 2024; 4 406 083 parameters at six actions) stands here as it is described, plainly, in
float32: four levels of 64 channels, two residual blocks each, two with attention in the middle, group norms that a
condition of 256 scales and shifts, four past frames, three Euler steps from sigma 5 at 256 levels. With `--diamond` the
network is github.com/eloialonso/diamond's own (its `src/models` alone; torch is all it needs), with the same weights.

`generation`: frames of 64 pixels from the same weights and noise; ours is `seqwm.nn.unet` as `DreamEnv` runs it.
`play`: steps of `DreamEnv` in a world of sprites, of one lane, at 32 and 64 pixels.
`training`: both learn sprites of 32 pixels for `--budget` seconds of the processor each, ours by the recipe, DIAMOND's
network by its loss and optimiser, at its own learning rate and batch, which are meant for 400 000 updates, and at ones
for a short training. Frames a second, the one-step PSNR that each comes to on episodes not trained on, and the seconds
in which ours comes to that of theirs.

Times on a CPU are those of the processor and of one thread, so that a busy machine is no argument; on a GPU those of
the clock. A JSON line a comparison; ratios are medians over pairs, turn about.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqwm.control.collect import collect
from seqwm.control.dream import make_dream
from seqwm.data.store import TrajectoryStore
from seqwm.evaluation.video_metrics import Clips, clips, dreamt, psnr
from seqwm.methods import video_diffusion
from seqwm.nn.diffusion import SIGMA_DATA, NoiseOptions, precondition, sample, sampling_sigmas
from seqwm.nn.frames import Recent, following_of, from_bytes, to_bytes
from seqwm.nn.leaves import ActionCodec
from seqwm.nn.quick import quick
from seqwm.nn.unet import UNet
from seqwm.recipe import read_recipe
from seqwm.training.supervised import SupervisedLearner

WIDTH, LEVELS, BLOCKS, CONDITION, PAST, OFFSET = 64, 4, 2, 256, 4, 0.3
SPRITES = "seqwm/Sprite-v0"
PEER_TRAININGS = ((1e-4, 32), (1e-3, 8))  # learning rate and batch


class PlainBlock(nn.Module):
    """Norm, SiLU and convolution, twice, beside the identity."""

    def __init__(self, inputs: int, attention: bool = False) -> None:
        super().__init__()
        self.past = nn.Conv2d(inputs, WIDTH, 1) if inputs != WIDTH else nn.Identity()
        self.hear_first = nn.Linear(CONDITION, 2 * inputs)
        self.first = nn.Conv2d(inputs, WIDTH, 3, padding=1)
        self.hear_second = nn.Linear(CONDITION, 2 * WIDTH)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.attention = PlainAttention() if attention else nn.Identity()
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y = self.first(F.silu(heard(x, self.hear_first(condition))))
        y = self.second(F.silu(heard(y, self.hear_second(condition))))
        out: Tensor = self.attention(y + self.past(x))
        return out


def heard(x: Tensor, modulation: Tensor) -> Tensor:
    scale, shift = modulation[:, :, None, None].chunk(2, 1)
    return F.group_norm(x, max(1, x.shape[1] // 32)) * (1 + scale) + shift


class PlainAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(WIDTH // 32, WIDTH)
        self.ask, self.answer = nn.Conv2d(WIDTH, 3 * WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)
        nn.init.zeros_(self.answer.weight)
        nn.init.zeros_(self.answer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.ask(self.norm(x)).flatten(2).unflatten(1, (3, WIDTH // 8, 8)).transpose(-1, -2).unbind(1)
        found = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
        out: Tensor = x + self.answer(found.transpose(-1, -2).reshape(x.shape))
        return out


class PlainDiamond(nn.Module):
    """The network F of DIAMOND's denoiser, in the order of its own parameters."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(1, CONDITION // 2))
        self.embed_action = nn.Embedding(actions, CONDITION // PAST)
        self.condition = nn.Sequential(nn.Linear(CONDITION, CONDITION), nn.SiLU(), nn.Linear(CONDITION, CONDITION))
        self.enter = nn.Conv2d(3 * (PAST + 1), WIDTH, 3, padding=1)
        levels = range(LEVELS)
        self.down = nn.ModuleList(nn.ModuleList(PlainBlock(WIDTH) for _ in range(BLOCKS)) for _ in levels)
        self.up = nn.ModuleList(nn.ModuleList(PlainBlock(2 * WIDTH) for _ in range(BLOCKS + 1)) for _ in levels)
        self.middle = nn.ModuleList(PlainBlock(WIDTH, attention=True) for _ in range(2))
        self.shrink = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1) for _ in levels[1:])
        self.grow = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in levels[1:])
        self.norm = nn.GroupNorm(WIDTH // 32, WIDTH)
        self.leave = nn.Conv2d(WIDTH, 3, 3, padding=1)
        nn.init.zeros_(self.leave.weight)

    def hear(self, level: Tensor, actions: Tensor) -> Tensor:
        turns = 2 * torch.pi * level[:, None] @ self.frequencies  # type: ignore[operator]
        told: Tensor = self.condition(torch.cat((turns.cos(), turns.sin()), -1) + self.embed_action(actions).flatten(1))
        return told

    def forward(self, noisy: Tensor, level: Tensor, frames: Tensor, actions: Tensor) -> Tensor:
        """F of [B, 3, H, W] at c_noise [B], after frames [B, 12, H, W] with actions int64 [B, 4]."""
        condition = self.hear(level, actions)
        x = self.enter(torch.cat((frames, noisy), 1))
        given = [x]
        for number, blocks in enumerate(self.down):
            if number:
                x = self.shrink[number - 1](x)
                given.append(x)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, condition)
                given.append(x)
        for block in self.middle:
            x = block(x, condition)
        for number, blocks in enumerate(self.up):
            if number:
                x = self.grow[number - 1](F.interpolate(x, scale_factor=2.0, mode="nearest"))
            for block in blocks:  # type: ignore[attr-defined]
                x = block(torch.cat((x, given.pop()), 1), condition)
        out: Tensor = self.leave(F.silu(self.norm(x)))
        return out


class Ours(nn.Module):
    """The same weights in `seqwm.nn.unet`."""

    def __init__(self, plain: PlainDiamond) -> None:
        super().__init__()
        self.plain = plain  # for what its condition hears
        self.unet = UNet(3 * (PAST + 1), 3, (WIDTH,) * LEVELS, BLOCKS, CONDITION, attention=True, group=32)
        ours, blocks = self.unet, []
        for mine, theirs in ((ours.down, plain.down), (ours.up, plain.up), ([ours.middle], [plain.middle])):
            for level, other in zip(mine, theirs, strict=True):
                blocks += list(zip(level, other, strict=True))  # type: ignore[call-overload]
        pairs = [(getattr(a, name), getattr(b, name)) for a, b in blocks for name in ("first", "second", "past")]
        pairs += [(getattr(ours, name), getattr(plain, name)) for name in ("enter", "shrink", "grow", "norm", "leave")]
        pairs += [(a, b.attention) for a, b in zip(ours.attend, plain.middle, strict=True)]
        for mine, theirs in pairs:
            mine.load_state_dict(theirs.state_dict())
        met = [block for level in (*plain.down, plain.middle, *plain.up) for block in level]  # type: ignore[attr-defined]
        linears = [linear for block in met for linear in (block.hear_first, block.hear_second)]
        for name in ("weight", "bias"):
            halves = zip(*(getattr(linear, name).chunk(2) for linear in linears), strict=True)
            getattr(ours.modulate, name).data.copy_(torch.cat([part for half in halves for part in half]))


def quantised(x: Tensor) -> Tensor:
    """DIAMOND's own rounding: down to the next of 256 levels."""
    return x.clamp(-1, 1).add(1).mul(127.5).byte().float() / 127.5 - 1


GRID = sampling_sigmas(3, NoiseOptions(sigma_min=2e-3, sigma_max=5.0))


def conditioners(sigma: float, device: torch.device) -> Any:
    return precondition(torch.tensor(sigma**2 + OFFSET**2, device=device).sqrt())


@torch.no_grad()
def plain_frame(network: Any, noise: Tensor, frames: Tensor, actions: Tensor) -> Tensor:
    """A frame as DIAMOND draws it: one call of its whole network for each step."""
    x, given = noise, frames.flatten(1, 2) / SIGMA_DATA
    for here, there in itertools.pairwise(GRID):
        c = conditioners(here, x.device)
        said = network(c.into * x, c.noise.expand(len(x)), given, actions)
        x = x + (there - here) * (x - quantised(c.skip * x + c.out * said)) / here
    return x


@torch.no_grad()
def our_frame(network: Ours, noise: Tensor, frames: Tensor, actions: Tensor) -> Tensor:
    """The same frame: what the norms hear at all noise levels at once, and the sampler of the package."""
    given, lanes = frames.flatten(1, 2) / SIGMA_DATA, len(frames)
    levels = torch.stack([conditioners(sigma, noise.device).noise for sigma in GRID[:-1]]).repeat_interleave(lanes)
    told = network.unet.modulations(network.plain.hear(levels, actions.repeat(3, 1)))

    def denoise(x: Tensor, sigma: float) -> Tensor:
        c, place = conditioners(sigma, x.device), lanes * GRID.index(sigma)
        said = network.unet(torch.cat((given, c.into * x), 1), told[place : place + lanes]).float()
        return quantised(c.skip * x + c.out * said)

    return sample(denoise, noise, GRID)


def diamond(checkout: Path, plain: PlainDiamond, actions: int) -> Any:
    """The network of a checkout with the weights of ours: its parameters come in the same order."""
    for name in ("models", "models.diffusion"):  # without what their __init__ files import besides
        module = types.ModuleType(name)
        module.__path__ = [str(checkout / "src" / name.replace(".", "/"))]
        sys.modules[name] = module
    inner: Any = importlib.import_module("models.diffusion.inner_model")
    sizes = {"img_channels": 3, "num_steps_conditioning": PAST, "cond_channels": CONDITION, "depths": [BLOCKS] * LEVELS}
    sizes |= {"channels": [WIDTH] * LEVELS, "attn_depths": [False] * LEVELS, "num_actions": actions}
    network = inner.InnerModel(inner.InnerModelConfig(**sizes))
    named, own = network.state_dict(), list(plain.state_dict().values())
    assert [tensor.shape for tensor in named.values()] == [tensor.shape for tensor in own]
    network.load_state_dict(dict(zip(named, own, strict=True)))
    return network


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    began = clock(device)
    call()
    return clock(device) - began


def generation(options: argparse.Namespace, device: torch.device) -> None:
    torch.manual_seed(0)
    actions, lanes = 6, options.lanes
    plain = PlainDiamond(actions)
    for block in plain.modules():  # what begins at zero says something, too
        if isinstance(block, nn.Conv2d) and not block.weight.any():
            block.reset_parameters()
    peer: Any = diamond(options.diamond, plain, actions) if options.diamond else plain
    peer, exact = peer.to(device).eval(), Ours(plain).to(device).eval()
    fast = quick(exact)
    noise = torch.randn(lanes, 3, 64, 64, device=device)
    frames = quantised(torch.rand(lanes, PAST, 3, 64, 64, device=device) * 2 - 1)
    taken = torch.randint(actions, (lanes, PAST), device=device)
    runs = {
        "peer": lambda: plain_frame(peer, noise, frames, taken),
        "float32": lambda: our_frame(exact, noise, frames, taken),
        "ours": lambda: our_frame(fast, noise, frames, taken),
    }
    drawn = {name: ((run().clamp(-1, 1) + 1) * 127.5).cpu() for name, run in runs.items()}
    taken_s: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.pairs):
        for name, run in runs.items():
            taken_s[name].append(seconds(run, device))
    rate = {name: round(lanes / statistics.median(times), 2) for name, times in taken_s.items()}
    off = {name: (drawn[name] - drawn["peer"]).abs() for name in ("float32", "ours")}
    line: dict[str, Any] = {
        "name": "generation-diamond-layout", "parameters": sum(p.numel() for p in peer.parameters()),
        "against": "eloialonso/diamond's network" if options.diamond else "its layout, plain", "lanes": lanes,
        "unit": "frames/s" if device.type == "cuda" else "frames/cpu-s", **rate,
        "ratio_float32": ratio(taken_s["peer"], taken_s["float32"]), "ratio": ratio(taken_s["peer"], taken_s["ours"]),
        "levels_off_mean_float32": round(float(off["float32"].mean()), 4),
        "levels_off_mean": round(float(off["ours"].mean()), 3), "levels_off_most": round(float(off["ours"].max()), 1),
    }  # fmt: skip
    if options.peak:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            runs["ours"]()
        line["of_peak"] = round(counter.get_total_flops() / lanes * rate["ours"] / (options.peak * 1e12), 4)
    print(json.dumps(line), flush=True)


def ratio(slow: list[float], fast: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(slow, fast, strict=True)), 2)


def sprites(pixels: int, steps: int, seed: int) -> TrajectoryStore:
    return collect(SPRITES, None, steps, None, seed=seed, options={"pixels": pixels}, progress=False)


def play(options: argparse.Namespace, device: torch.device) -> None:
    settings = read_recipe("video_diffusion/sprites-32").model
    for pixels, wanted in ((32, 60), (64, 30)):
        store = sprites(pixels, 400, 0)
        torch.manual_seed(0)
        model = video_diffusion.build(settings, store).to(device).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
            model.outcome.said.bias[1] = -100.0  # nothing ends
        dreams = [make_dream(1, model, store, 10**9, exact=exact) for exact in (True, False)]
        for dream in dreams:
            dream.reset(seed=0)
            for _ in range(3):
                dream.step(np.array([0]))
        times = [
            [seconds(lambda dream=dream: dream.step(np.array([1])), device) for _ in range(60)] for dream in dreams
        ]
        rates = [round(1 / statistics.median(one), 1) for one in times]
        undisturbed = round(1 / statistics.quantiles(times[1], n=10)[0], 1)
        line = {
            "name": f"play-{pixels}", "parameters": sum(p.numel() for p in model.parameters()),
            "sampling_steps": settings.steps, "threads": 1, "unit": "frames/s of one thread", "float32": rates[0],
            "ours": rates[1], "ours_fastest_tenth": undisturbed, "wanted": wanted,
        }  # fmt: skip
        print(json.dumps(line), flush=True)


class DiamondLearner:
    """DIAMOND's loss and optimiser: AdamW with a warm-up of 100 updates, clipped at 1."""

    def __init__(self, store: TrajectoryStore, device: torch.device, rate: float, batch: int) -> None:
        torch.manual_seed(0)
        self.codec = ActionCodec(store.spaces.action)  # type: ignore[arg-type]
        self.network = PlainDiamond(self.codec.size).to(device)
        self.windows, self.device = store.windows(PAST, batch, 0, following=True), device
        decayed = [{"params": [p for p in self.network.parameters() if (p.ndim >= 2) == matrix],
                    "weight_decay": 1e-2 * matrix} for matrix in (True, False)]  # fmt: skip
        self.optimiser = torch.optim.AdamW(decayed, rate, eps=1e-8)
        self.made, self.rate = 0, rate

    def update(self) -> None:
        batch = self.windows.batch(self.made).to(self.device)
        recent, target = Recent.of(batch, "", self.codec, PAST), following_of(batch, "")
        frames, actions = from_bytes(recent.frames).flatten(1, 2), recent.actions.argmax(-1)
        noise = NoiseOptions(log_mean=-0.4, log_deviation=1.2, sigma_max=20.0)
        sigma = (noise.log_mean + noise.log_deviation * torch.randn(len(target), device=self.device)).exp()
        sigma = sigma.clamp(noise.sigma_min, noise.sigma_max)
        noisy = target + OFFSET * torch.randn(len(target), 3, 1, 1, device=self.device)
        noisy = noisy + sigma[:, None, None, None] * torch.randn_like(target)
        c = precondition((sigma.square() + OFFSET**2).sqrt()[:, None, None, None])
        said = self.network(c.into * noisy, c.noise[:, 0, 0, 0], frames / SIGMA_DATA, actions)
        F.mse_loss(said, (target - c.skip * noisy) / c.out).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * min(1.0, (self.made + 1) / 100)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.made += 1

    @torch.no_grad()
    def one_step(self, given: Clips) -> float:
        recent = Recent.of(given.context.to(self.device), "", self.codec, PAST)
        actions = recent.actions.argmax(-1)
        actions[:, -1] = given.actions[:, 0].to(self.device)  # type: ignore[index]
        frames = from_bytes(recent.frames)
        noise = torch.randn(frames[:, 0].shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        drawn = plain_frame(self.network, noise, frames, actions)
        return psnr(to_bytes(drawn).cpu().numpy(), given.frames[:, 1])


def training(options: argparse.Namespace, device: torch.device) -> None:
    store, held_out = sprites(32, 24000, 0), sprites(32, 3000, 1)
    given = clips(held_out, PAST, 1, 64)
    actions = given.actions[:, :1]  # type: ignore[index]
    recipe = read_recipe("video_diffusion/sprites-32")
    torch.manual_seed(0)
    model = video_diffusion.build(recipe.model, store).to(device)
    asked = video_diffusion.window_options(recipe.model)
    windows = store.windows(model.window_length, recipe.train.batch_size, 0, **asked)
    learner, steps = SupervisedLearner(model, windows, recipe.train, 0), itertools.count()

    def drawn() -> float:
        return psnr(dreamt(learner.trained().eval(), given.context, actions)[:, 1], given.frames[:, 1])

    ours = Curve.of("ours", lambda: learner.update(next(steps)), drawn, options.budget, 30, device)
    for rate, batch in PEER_TRAININGS:
        theirs = DiamondLearner(store, device, rate, batch)
        peer = Curve.of(f"peer {rate:g}", theirs.update, lambda: theirs.one_step(given), options.budget, 4, device)  # noqa: B023 - called at once
        reached = peer.points[-1][1]
        equal = next((spent for spent, found in ours.points if found >= reached), None)
        frames = recipe.train.batch_size * ours.updates / ours.points[-1][0], batch * peer.updates / peer.points[-1][0]
        line = {
            "name": "training-sprites-32", "against": "DIAMOND's layout, plain, float32", "peer_learning_rate": rate,
            "peer_batch": batch,
            "peer_parameters": sum(p.numel() for p in theirs.network.parameters()),
            "parameters": sum(p.numel() for p in model.parameters()), "unit": "frames/cpu-s",
            "ours": round(frames[0], 1), "peer": round(frames[1], 1), "ratio": round(frames[0] / frames[1], 1),
            "cpu_s": options.budget, "ours_psnr": ours.points[-1][1], "peer_psnr": reached,
            "copied_psnr": round(psnr(given.frames[:, 0], given.frames[:, 1]), 2), "ours_cpu_s_to_peer_psnr": equal,
            "ratio_to_equal_psnr": round(peer.points[-1][0] / equal, 1) if equal else None,
            "ours_curve": ours.points, "peer_curve": peer.points,
        }  # fmt: skip
        print(json.dumps(line), flush=True)


@dataclass(frozen=True, slots=True)
class Curve:
    """How a training went: seconds of the processor and one-step PSNR, some times, and the updates that were made."""

    points: list[tuple[float, float]]
    updates: int

    @classmethod
    def of(
        cls,
        name: str,
        update: Callable[[], Any],
        measure: Callable[[], float],
        budget: float,
        looks: int,
        device: torch.device,
    ) -> Curve:
        """Of a training of `budget` seconds, which those of measuring are not part of."""
        points: list[tuple[float, float]] = []
        spent, made = 0.0, 0
        while spent < budget:
            spent += seconds(update, device)
            made += 1
            if spent >= budget * (len(points) + 1) / looks:
                points.append((round(spent, 1), round(measure(), 2)))
                print(name, *points[-1], made, file=sys.stderr, flush=True)
        return cls(points, made)


PARTS = {"generation": generation, "play": play, "training": training}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all when none is named")
    parser.add_argument("--diamond", type=Path, help="a checkout of eloialonso/diamond")
    parser.add_argument("--pairs", type=int, default=6, help="frames of each side in generation")
    parser.add_argument("--lanes", type=int, default=1, help="frames at once in generation")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds that each network is trained for")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", type=float, help="the device's TFLOP/s in bf16, to say which fraction is reached")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for part in options.parts or PARTS:
        PARTS[part](options, torch.device(options.device))


if __name__ == "__main__":
    main()
