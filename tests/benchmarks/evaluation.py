"""Evaluation of a return-conditioned policy against the loop that is written for transformers' own class.

    python tests/benchmarks/evaluation.py [--pairs 3] [--lanes 32] [--threads N]

Both play Hopper-v5 to its time limit (terminate_when_unhealthy=False) with a Decision Transformer of random weights,
K=20, 3 layers, 1 head, width 128. The peer is the one-environment loop of the Hugging Face course on Decision
Transformers: the last 20 steps, padded on the left, through `DecisionTransformerModel` at every step. Environment steps
a second, turn about; the ratio is the median over pairs. The same weights stand in both, and the script first checks
that they choose the same actions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import gymnasium
import numpy as np
import torch
import transformers

from seqwm.core.spaces import space_to_json
from seqwm.evaluation.evaluate import evaluate
from seqwm.methods.decision_transformer import DecisionTransformer, DecisionTransformerConfig, to_transformers

ENVIRONMENT, OPTIONS = "Hopper-v5", {"terminate_when_unhealthy": False}
CONTEXT, SCALE, TARGET = 20, 1000.0, 3600.0


def ours(model: DecisionTransformer, lanes: int, seed: int) -> tuple[float, int]:
    """Seconds and environment steps of `evaluate`, one episode in each lane."""
    began = time.perf_counter()
    found = evaluate(
        model, ENVIRONMENT, targets=[TARGET], episodes=lanes, seed=seed, lanes=lanes, options=OPTIONS, progress=False
    )
    return time.perf_counter() - began, sum(outcome.length for _, outcome in found.records)


@torch.no_grad()
def theirs(model: transformers.DecisionTransformerModel, steps: int, seed: int) -> tuple[float, int, list[np.ndarray]]:
    """Seconds, environment steps and actions of one episode, cut after `steps`; the environment's making included."""
    began = time.perf_counter()
    environment = gymnasium.make(ENVIRONMENT, **OPTIONS)
    observation, _ = environment.reset(seed=seed)
    width, size = model.config.state_dim, model.config.act_dim
    states = torch.from_numpy(observation).reshape(1, width).float()
    actions, rewards = torch.zeros(0, size), torch.zeros(0)
    target = torch.tensor(TARGET / SCALE).reshape(1, 1)
    timesteps = torch.zeros(1, 1, dtype=torch.long)
    taken: list[np.ndarray] = []
    for step in range(steps):
        actions = torch.cat([actions, torch.zeros(1, size)])
        rewards = torch.cat([rewards, torch.zeros(1)])
        rows = states[-CONTEXT:].reshape(1, -1, width)
        padding = CONTEXT - rows.shape[1]

        def left(values: torch.Tensor, padding: int = padding) -> torch.Tensor:
            return torch.cat([torch.zeros(1, padding, *values.shape[2:], dtype=values.dtype), values], 1)

        mask = torch.cat([torch.zeros(padding), torch.ones(rows.shape[1])]).to(torch.long).reshape(1, -1)
        _, predicted, _ = model(
            states=left(rows),
            actions=left(actions[-CONTEXT:].reshape(1, -1, size)),
            rewards=left(rewards[-CONTEXT:].reshape(1, -1, 1)),
            returns_to_go=left(target[:, -CONTEXT:].reshape(1, -1, 1)),
            timesteps=left(timesteps[:, -CONTEXT:]),
            attention_mask=mask,
            return_dict=False,
        )
        action = predicted[0, -1]
        actions[-1] = action
        taken.append(action.numpy())
        observation, reward, terminated, truncated, _ = environment.step(action.numpy())
        states = torch.cat([states, torch.from_numpy(observation).reshape(1, width).float()])
        rewards[-1] = float(reward)
        target = torch.cat([target, target[:, -1:] - float(reward) / SCALE], 1)
        timesteps = torch.cat([timesteps, torch.full((1, 1), step + 1)], 1)
        if terminated or truncated:
            break
    environment.close()
    return time.perf_counter() - began, len(taken), taken


def check_actions(model: DecisionTransformer, peer: transformers.DecisionTransformerModel) -> float:
    """The largest difference between both's actions over an episode's first 100 steps, with the peer's observations."""
    _, _, expected = theirs(peer, 100, seed=0)
    environment = gymnasium.make(ENVIRONMENT, **OPTIONS)
    observation, _ = environment.reset(seed=0)
    policy = model.policy([TARGET])
    state, reward, worst = policy.initial(1), 0.0, 0.0
    for step, wanted in enumerate(expected):
        seen = torch.from_numpy(observation).float()[None]
        action, state = policy.act(state, seen, torch.tensor([reward]), torch.tensor([step == 0]))
        worst = max(worst, float((action[0] - torch.from_numpy(wanted)).abs().max()))
        observation, reward, *_ = environment.step(wanted)
        reward = float(reward)
    return worst


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pairs", type=int, default=3)
    arguments.add_argument("--lanes", type=int, default=32)
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of both (%(default)s)")
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)

    environment = gymnasium.make(ENVIRONMENT, **OPTIONS)
    config = DecisionTransformerConfig(
        observation_space=space_to_json(environment.observation_space),
        action_space=space_to_json(environment.action_space),
        return_scale=SCALE,
        max_timestep=1001,
    )
    model = DecisionTransformer(config).eval()
    peer = to_transformers(model).eval()
    worst = check_actions(model, peer)
    assert worst < 1e-4, f"the two choose different actions (by up to {worst:g})"

    rates: list[tuple[float, float]] = []
    for pair in range(given.pairs):
        seconds, steps = ours(model, given.lanes, seed=pair)
        peer_seconds, peer_steps, _ = theirs(peer, 1000, seed=pair)
        rates.append((steps / seconds, peer_steps / peer_seconds))
    line = {
        "name": "hopper_evaluation",
        "ours": round(statistics.median(own for own, _ in rates), 1),
        "peer": round(statistics.median(other for _, other in rates), 1),
        "ratio": round(statistics.median(own / other for own, other in rates), 2),
        "unit": "environment steps/s",
        "lanes": given.lanes,
        "threads": given.threads,
        "largest_action_difference": worst,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
