"""Training step of the Decision Transformer against transformers' own class, turn about in one process.

    python tests/benchmarks/dt_step.py [--pairs 12] [--threads 1]

Both take the same batch of 64 windows (K=20, Hopper's 11 observations and 3 actions), 3 layers, 1 head, width 128, the
same dropouts, fused AdamW and gradient clipping at 0.25. One JSON line a comparison; the ratio is the median over
paired steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import gymnasium.spaces
import numpy as np
import torch
import transformers

from seqwm.core.spaces import space_to_json
from seqwm.core.types import Batch
from seqwm.methods.decision_transformer import DecisionTransformer, DecisionTransformerConfig

WINDOWS, STEPS, OBSERVATION, ACTION = 64, 20, 11, 3


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    valid = torch.ones(WINDOWS, STEPS, dtype=torch.bool)
    return Batch(
        observations=torch.randn(WINDOWS, STEPS, OBSERVATION, generator=generator),
        actions=torch.rand(WINDOWS, STEPS, ACTION, generator=generator) * 2 - 1,
        rewards=torch.rand(WINDOWS, STEPS, generator=generator),
        terminated=~valid,
        truncated=~valid,
        valid=valid,
        timesteps=torch.arange(STEPS).expand(WINDOWS, STEPS).contiguous(),
        returns_to_go=torch.rand(WINDOWS, STEPS, generator=generator),
    )


def ours() -> tuple[torch.nn.Module, Callable[[Batch], torch.Tensor]]:
    box = gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32)
    action = gymnasium.spaces.Box(-1.0, 1.0, (ACTION,), np.float32)
    config = DecisionTransformerConfig(observation_space=space_to_json(box), action_space=space_to_json(action))
    model = DecisionTransformer(config)
    return model, lambda batch: model.loss(batch)[0]


def theirs() -> tuple[torch.nn.Module, Callable[[Batch], torch.Tensor]]:
    config = transformers.DecisionTransformerConfig(
        state_dim=OBSERVATION, act_dim=ACTION, hidden_size=128, n_layer=3, n_head=1, n_inner=512, max_ep_len=1000,
        activation_function="relu", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1,
    )  # fmt: skip
    model = transformers.DecisionTransformerModel(config)

    def loss(batch: Batch) -> torch.Tensor:
        predicted = model(
            states=batch.observations,
            actions=batch.actions,
            returns_to_go=batch.returns_to_go.unsqueeze(-1),
            timesteps=batch.timesteps,
            attention_mask=batch.valid.long(),
        ).action_preds
        chosen = batch.valid.flatten()
        difference = predicted.flatten(0, 1)[chosen] - batch.actions.flatten(0, 1)[chosen]
        return difference.square().mean()

    return model, loss


def stepper(
    make: Callable[[], tuple[torch.nn.Module, Callable[[Batch], torch.Tensor]]], half: bool
) -> Callable[[], float]:
    torch.manual_seed(0)
    model, loss = make()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4, fused=True)
    batch = make_batch()

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    return step


def compare(name: str, one: Callable[[], float], other: Callable[[], float], pairs: int) -> None:
    for _ in range(3):
        one(), other()
    mine, peers = zip(*[(one(), other()) for _ in range(pairs)], strict=True)
    ratio = statistics.median(peer / own for own, peer in zip(mine, peers, strict=True))
    figures = {"ours": WINDOWS / statistics.median(mine), "peer": WINDOWS / statistics.median(peers), "ratio": ratio}
    print(json.dumps({"name": name, **{k: round(v, 2) for k, v in figures.items()}, "unit": "windows/s"}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12, help="paired steps of each comparison")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    compare("dt-step-float32-vs-transformers-float32", stepper(ours, False), stepper(theirs, False), options.pairs)
    compare("dt-step-bf16-vs-transformers-float32", stepper(ours, True), stepper(theirs, False), options.pairs)
    compare("dt-step-bf16-vs-transformers-bf16", stepper(ours, True), stepper(theirs, True), options.pairs)


if __name__ == "__main__":
    main()
