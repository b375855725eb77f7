"""The `train:` section of a recipe: how many updates, of what size, by which rule. No torch here: recipes read it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How a model is trained.

    Attributes:
        steps: gradient updates.
        batch_size: windows in one update, over all processes together.
        learning_rate: the peak, reached at the end of the warm-up.
        warmup_steps: updates over which the rate rises linearly from zero.
        schedule: after the warm-up: 'constant', or 'cosine' down to a tenth of the peak at the last update.
        weight_decay: AdamW's decoupled decay of matrices and embeddings; biases and norms are never decayed.
        betas: AdamW's decay of the first and second moment.
        gradient_clip: largest norm of the whole gradient; null leaves it alone.
        ema: decay of an exponential moving average of the weights, which is then what is saved and evaluated.
        precision: 'bf16' and 'fp16' run the network in half precision; weights and optimiser stay in float32.
        checkpoint_every: updates between checkpoints; null makes one a minute.
        log_every: updates between lines of metrics; null writes about a thousand in a run.
        track: where metrics go besides metrics.jsonl.
    """

    steps: int
    batch_size: int = 64
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float | None = 1.0
    ema: float | None = None
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    checkpoint_every: int | None = None
    log_every: int | None = None
    track: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: found {value}, expected at least 1")
        for name in ("learning_rate", "gradient_clip"):
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf):
                raise ValueError(f"{name}: found {value}, expected a positive number")
        for name in ("warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected zero or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: found {list(self.betas)}, expected two numbers in [0, 1)")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema: found {self.ema}, expected a decay between 0 and 1, for example 0.999")

    def rate(self, step: int) -> float:
        """The learning rate of update number `step`, for learners that stand below this module."""
        return learning_rate(self, step)


def learning_rate(options: TrainOptions, step: int) -> float:
    """The rate of update number `step`, counted from 0: a pure function, so nothing of it is saved."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    if options.schedule == "constant":
        return options.learning_rate
    span = max(options.steps - options.warmup_steps - 1, 1)
    progress = min((step - options.warmup_steps) / span, 1.0)
    return options.learning_rate * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)
