"""The learner of every offline method: batches of windows in, one AdamW update out.

What makes two runs equal to the last bit is that nothing here has a memory besides weights and moments: which windows
batch k holds, its dropout and its learning rate are pure functions of (seed, k). So a resumed run needs one integer,
and no state of a random generator is ever saved.

Several processes (`accelerate launch`) each take their share of every batch. Shares may hold different numbers of valid
rows, so each process weighs its mean loss by its share of them: the averaged gradient is the one of the whole batch.

Decay applies to tensors of two or more dimensions (matrices and embeddings), as in nanoGPT; biases and norms stay free
of it. The Decision Transformer's own code decays all of them, which at its 1e-4 is no difference one could measure.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from seqwm.control.policies import RandomExplorer
from seqwm.core.protocols import Policy
from seqwm.core.random import key
from seqwm.core.spaces import space_from_json
from seqwm.core.types import Batch, Metrics
from seqwm.training.options import TrainOptions, learning_rate

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NOISE = 1  # the place of dropout among the random streams under a seed


class Batches(Protocol):
    """An endless stream of batches that is a pure function of the step, as `store.windows(...)` gives it."""

    def batch(self, step: int) -> Batch:
        """This process's share of batch number `step`, on the CPU."""
        ...


class SupervisedLearner:
    """Minimises `model.loss(batch)` over a store's windows.

    Args:
        model: a torch module with `loss(batch) -> (mean over valid rows, metrics)` and `policy() -> Policy`.
        windows: this process's share of the batches.
        options: the recipe's `train:` section.
        seed: of the dropout; the windows have their own.
    """

    def __init__(self, model: Any, windows: Batches, options: TrainOptions, seed: int) -> None:
        self.windows, self.options, self.seed = windows, options, seed
        self.rank, self.world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.model, self._loss, self.device = _placed(model, self.world_size)
        self._parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self._optimizer = _adamw(self._parameters, options)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "fp16")
        self._average = (
            {name: p.detach().clone() for name, p in self._parameters.items()} if options.ema is not None else {}
        )

    def update(self, step: int) -> Metrics:
        """Update number `step`; loss and the model's own figures over the whole batch, gradient norm, learning rate."""
        batch = self.windows.batch(step).to(self.device)
        self._seed_dropout(step)
        if not self.model.training:
            self.model.train()
        half = _HALF.get(self.options.precision)
        with torch.autocast(self.device.type, half, enabled=half is not None):
            loss, figures = self._loss(batch)
        figures = {"loss": loss.detach(), **figures}
        if self.world_size > 1:
            share, figures = _over_processes(batch.valid.sum(), figures)
            loss = loss * (share * self.world_size)  # the average over processes divides by world_size
        figures |= self._descend(loss, step)
        if self._average:
            weight = 1 - self._decay(step)
            torch._foreach_lerp_(list(self._average.values()), [p.data for p in self._parameters.values()], weight)
        values = torch.stack([value.detach().float() for value in figures.values()]).tolist()
        metrics = dict(zip(figures, values, strict=True)) | {"learning_rate": learning_rate(self.options, step)}
        if self._scaler.is_enabled() and not math.isfinite(metrics.get("gradient_norm", 0.0)):
            del metrics["gradient_norm"]  # too large for half precision: the scaler skipped this update, as it should
        return metrics

    def _seed_dropout(self, step: int) -> None:
        # Not torch.manual_seed: where CUDA is not in use that formats a stack trace each time, for 0.1 ms and more.
        seed = key(self.seed, _NOISE, step, self.rank) >> 1
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _descend(self, loss: Tensor, step: int) -> dict[str, Tensor]:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.options, step)
        self._scaler.scale(loss).backward()
        figures = {}
        if self.options.gradient_clip is not None:
            self._scaler.unscale_(self._optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self.options.gradient_clip)
            figures["gradient_norm"] = norm
        self._scaler.step(self._optimizer)  # leaves out updates whose half-precision gradients overflowed
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return figures

    def _decay(self, step: int) -> float:
        """The average's decay, shorter at first so that it does not remember the initial weights."""
        assert self.options.ema is not None
        return min(self.options.ema, (1 + step) / (10 + step))

    def trained(self) -> Any:
        """The model to evaluate and to save: itself, or a copy with the averaged weights where the recipe asks."""
        self.model.eval()
        if not self._average:
            return self.model
        copy = deepcopy(self.model)
        for name, parameter in copy.named_parameters():
            if name in self._average:
                parameter.data.copy_(self._average[name])
        return copy

    def policy(self, explore: bool) -> Policy:
        """The policy of the model as it is now; imitation has nothing to explore with. A world is walked at random."""
        if not hasattr(self.model, "policy"):
            return RandomExplorer(space_from_json(self.model.config.action_space))
        policy: Policy = self.trained().policy()
        return policy

    def state_dict(self) -> dict[str, Any]:
        """Weights and buffers, AdamW's moments by parameter name, the average, and the loss scale."""
        moments = {name: dict(self._optimizer.state[p]) for name, p in self._parameters.items()}
        state: dict[str, Any] = {"model": self.model.state_dict()}
        state |= {"optimizer": {name: tensors for name, tensors in moments.items() if tensors}}
        if self._average:
            state |= {"average": self._average}
        if self._scaler.is_enabled():
            state |= {"scaler": self._scaler.state_dict()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        for name, tensors in state.get("optimizer", {}).items():
            parameter = self._parameters[name]
            self._optimizer.state[parameter] = {part: tensor.to(self.device) for part, tensor in tensors.items()}
        for name, tensor in state.get("average", {}).items():
            self._average[name].copy_(tensor)
        if "scaler" in state:
            self._scaler.load_state_dict(state["scaler"])


class _Loss(nn.Module):
    """`model.loss` as a forward pass, which is what data-parallel wrappers watch."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        result: tuple[Tensor, dict[str, Tensor]] = self.model.loss(batch)
        return result


def _placed(model: Any, world_size: int) -> tuple[Any, Any, torch.device]:
    """The model on its device, its loss as a callable, and the device."""
    if world_size > 1:
        from accelerate import Accelerator, DistributedDataParallelKwargs

        # Weights that a loss leaves unused (a head kept for compatibility) are the same ones in every update.
        unused = DistributedDataParallelKwargs(static_graph=True)
        accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[unused])
        return model.to(accelerator.device), accelerator.prepare(_Loss(model)), accelerator.device
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device), model.loss, device


def _adamw(parameters: dict[str, nn.Parameter], options: TrainOptions) -> torch.optim.AdamW:
    def some(matrices: bool) -> Iterator[nn.Parameter]:
        return (p for p in parameters.values() if (p.ndim >= 2) == matrices)

    groups = [
        {"params": list(some(True)), "weight_decay": options.weight_decay},
        {"params": list(some(False)), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=options.betas, fused=True)


def _over_processes(rows: Tensor, figures: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """This process's share of all valid rows, and the figures' means over all of them."""
    own = torch.stack([value.detach().float() for value in figures.values()])
    weights = rows.to(own.dtype)
    total = torch.cat([own * weights, weights[None]])
    torch.distributed.all_reduce(total)
    return weights / total[-1], dict(zip(figures, total[:-1] / total[-1], strict=True))
