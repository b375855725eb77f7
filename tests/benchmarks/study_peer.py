"""transformers' DecisionTransformerModel in the table of a study: same windows, updates, sizes and evaluation.

    python tests/benchmarks/study_peer.py recipes/studies/hopper/study.yaml --method DT

For each cell of the named method it trains transformers' own class by a plain loop (its forward pass in float32, masked
squared error, AdamW on all weights, gradient clipping, the recipe's learning rate) on the batches that ours saw,
evaluates it on the same targets and seeds, and adds a record to peer.json beside the study, which names that file under
`include`. To act, its weights go through `from_transformers`, whose outputs are its own to 1e-6.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from seqwm.core import shipped
from seqwm.core.provenance import provenance
from seqwm.data.load import load
from seqwm.data.store import TrajectoryStore
from seqwm.evaluation.evaluate import evaluate
from seqwm.methods.decision_transformer import DecisionTransformer, from_transformers
from seqwm.recipe import Recipe
from seqwm.run_folder import write_json
from seqwm.study import Cell, cells, read_study
from seqwm.training.options import learning_rate

NAME = "transformers DT"


def train(recipe: Recipe, store: TrajectoryStore) -> tuple[DecisionTransformer, float]:
    """The trained peer as our class, ready to act, and the seconds that its updates took."""
    options, statistics = recipe.model, store.statistics
    scale = options.return_scale or float(np.abs(store.returns).max())
    longest = options.max_timestep or statistics.max_length
    torch.manual_seed(recipe.seed)
    model = transformers.DecisionTransformerModel(
        transformers.DecisionTransformerConfig(
            state_dim=store.spaces.observation.shape[0],
            act_dim=store.spaces.action.shape[0],
            hidden_size=options.width,
            n_layer=options.layers,
            n_head=options.heads,
            n_inner=4 * options.width,
            max_ep_len=longest,
            max_length=options.context_length,
            activation_function=options.activation,
            resid_pdrop=options.dropout,
            embd_pdrop=options.dropout,
            attn_pdrop=options.dropout,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    mean, std = (torch.as_tensor(part) for part in (statistics.observation_mean, statistics.observation_std))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.train.learning_rate, weight_decay=recipe.train.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(recipe.train, step) / recipe.train.learning_rate
    )
    windows = store.windows(options.context_length, recipe.train.batch_size, recipe.seed)
    model.train()
    began = time.monotonic()
    for step in range(recipe.train.steps):
        batch = windows.batch(step)
        predicted = model(
            states=(batch.observations - mean) / std,
            actions=batch.actions,
            rewards=batch.rewards,
            returns_to_go=batch.returns_to_go.unsqueeze(-1) / scale,
            timesteps=batch.timesteps,
            attention_mask=batch.valid.long(),
        ).action_preds
        loss = (predicted[batch.valid] - batch.actions[batch.valid]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if recipe.train.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.train.gradient_clip)
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            print(f"{NAME}: update {step} of {recipe.train.steps}, loss {loss.item():.4f}", flush=True)
    seconds = time.monotonic() - began
    acting = from_transformers(
        model.eval(), state_mean=mean.tolist(), state_std=std.tolist(), return_scale=scale,
        environment=recipe.evaluate.environment or store.provenance["environment"],
    )  # fmt: skip
    return acting, seconds


def records(cell: Cell) -> list[dict[str, Any]]:
    """One for each target."""
    recipe = cell.recipe
    store = load(shipped.locate_source(recipe.data.source))
    model, seconds = train(recipe, store)
    found = evaluate(
        model,
        model.config.environment,
        targets=recipe.evaluate.targets,
        episodes=recipe.evaluate.episodes,
        seed=recipe.evaluate.seed,
        options=recipe.evaluate.environment_options,
    )
    common = {"method": NAME, "dataset": cell.dataset, "seed": cell.seed, "environment": found.environment}
    common |= {"updates": recipe.train.steps, "seconds": round(seconds, 3), "recipe": cell.digest}
    common |= {"fingerprint": store.fingerprint, **provenance()}
    return [common | {"target": target, "returns": found.returns(target).tolist()} for target in found.targets]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--method", required=True, help="the name of the Decision Transformer in the study")
    options = parser.parse_args()
    study = read_study(options.study)
    if study.threads:
        torch.set_num_threads(study.threads)
    out = options.study.parent / "peer.json"
    done = json.loads(out.read_text())["records"] if out.is_file() else []
    for cell in cells(study):
        if cell.method != options.method or any(record["recipe"] == cell.digest for record in done):
            continue
        done += records(cell)
        write_json(out, {"records": done})


if __name__ == "__main__":
    main()
