"""How fast dreams by latent codes are, and what Genie's cache saves.

    python tests/benchmarks/latent_actions.py

One thread, one dream, weights of the recipes' sizes without training (speed does not depend on them), turn about, the
best of the rounds in CPU seconds. One line of JSON each:

    step       frames a second of a world that is stepped by codes, for each recipe
    cached     seconds a frame of Genie with its cache, and of computing the whole window of 16 frames anew in each of
               the steps that fill in a frame, as jafar and jasmine do; both draw the same frames, which is checked
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from seqwm.control.collect import collect
from seqwm.core.types import State
from seqwm.data.store import TrajectoryStore
from seqwm.methods.genie import Genie
from seqwm.nn.masked_tokens import fill_in
from seqwm.recipe import method_module, read_recipe

RECIPES = ("latent_actions/sprites-16", "latent_actions/sprites-32", "genie/sprites-32")
FRAMES, ROUNDS, WINDOW = 16, 5, 16


def logs(recipe: str) -> TrajectoryStore:
    options = read_recipe(recipe).collect
    assert options is not None
    return collect(
        options.environment, None, 400, None, lanes=1, seed=0, options=options.environment_options, progress=False
    )


def model_of(recipe: str) -> tuple[Any, State]:
    """A model of a recipe with fresh weights, and a state to go on from."""
    store = logs(recipe)
    torch.manual_seed(0)
    read = read_recipe(recipe)
    model = method_module(read.method).build(read.model, store).eval()
    for parameter in model.parameters():  # what begins as nothing would else stay so
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    longest = store.lengths.argmax(keepdims=True)
    context = store.windows(model.window_length, 1).gather(longest, store.lengths[longest] - 1)
    return model, model.encode(context)


@torch.no_grad()
def stepped(model: Genie, state: State, codes: Tensor) -> list[Tensor]:
    """The tokens (of Genie) or frames that codes [T] lead to."""
    seen = []
    for code in codes:
        state = model.step(state, code[None], None).state
        seen.append(state.get("tokens", state["frames"]))
    return seen


@torch.no_grad()
def recomputed(model: Genie, tokens: Tensor, led: Tensor, codes: Tensor) -> list[Tensor]:
    """The same by the whole window, tokens [1, WINDOW, N] and the codes that led to each, anew for every pass."""
    seen = []
    for code in codes:
        led = torch.cat((led[:, 1:], code.view(1, 1)), 1)

        def said(drawn: Tensor) -> Tensor:
            window = torch.cat((tokens[:, 1:], drawn[:, None]), 1)  # noqa: B023
            stood = torch.cat((torch.full_like(window[:, :1], model.masked), window[:, :-1]), 1)
            return model(window, stood, led, model.dynamics.empty(1, "cpu"))[0][:, -1]  # noqa: B023

        blank = torch.full_like(tokens[:, 0], model.masked)
        drawn = fill_in(said, blank, model.masked, model.config.steps, model.config.temperature, None)
        tokens = torch.cat((tokens[:, 1:], drawn[:, None]), 1)
        model.tokenizer.decode(drawn)  # as a step does
        seen.append(drawn)
    return seen


def fastest(jobs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """CPU seconds of each job, the best of its turns."""
    seconds = dict.fromkeys(jobs, float("inf"))
    for turn in range(ROUNDS + 1):
        for name, job in jobs.items():
            began = time.process_time()
            job()
            if turn:  # the first is for warming up
                seconds[name] = min(seconds[name], time.process_time() - began)
    return seconds


def main() -> None:
    torch.set_num_threads(1)
    worlds = {recipe: model_of(recipe) for recipe in RECIPES}
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(8, (FRAMES,), generator=generator)
    seconds = fastest(
        {recipe: lambda world=world: stepped(*world, codes) for recipe, world in worlds.items()}  # type: ignore[misc]
    )
    for recipe, spent in seconds.items():
        print(json.dumps({"measured": "step", "recipe": recipe, "frames_per_second": round(FRAMES / spent, 1)}))

    model, state = worlds["genie/sprites-32"]
    tokens, led = [state["tokens"]], [torch.tensor([model.unknown])]
    for code in torch.randint(8, (WINDOW - 1,), generator=generator):
        state = model.step(state, code[None], None).state
        tokens.append(state["tokens"])
        led.append(code[None])
    window, lived = torch.stack(tokens, 1), torch.stack(led, 1)
    cached, whole = stepped(model, state, codes), recomputed(model, window, lived, codes)
    for one, other in zip(cached, whole, strict=True):
        assert torch.equal(one, other)
    seconds = fastest(
        {
            "cached": lambda: stepped(model, state, codes),
            "whole_window": lambda: recomputed(model, window, lived, codes),
        }
    )
    each = {name: round(spent / FRAMES, 5) for name, spent in seconds.items()}
    line = {
        "measured": "cached", "steps": model.config.steps, "window": WINDOW, **each,
        "ratio": round(seconds["whole_window"] / seconds["cached"], 2),
    }  # fmt: skip
    print(json.dumps(line))


if __name__ == "__main__":
    main()
