"""A method that acts while it learns, as small as can be: one gain, pushed towards the mean action of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from seqwm.core.random import torch_generator
from seqwm.core.spaces import space_to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    noise: float = 0.3


class Gain(torch.nn.Module):
    return_conditioned = False
    window_length = 3

    def __init__(self, noise: float, spaces) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            observation_space=space_to_json(spaces.observation), action_space=space_to_json(spaces.action)
        )
        self.gain = torch.nn.Parameter(torch.tensor(0.1))
        self.noise = noise

    def policy(self, target_returns=None):
        return Acting(self, 0.0)

    def save_pretrained(self, folder):
        Path(folder).mkdir()
        save_file(self.state_dict(), Path(folder) / "model.safetensors")


class Acting:
    def __init__(self, model: Gain, noise: float) -> None:
        self.model, self.noise = model, noise

    def initial(self, lanes):
        return {"pull": torch.zeros(lanes)}

    def act(self, state, observation, reward, first):
        pull = torch.where(first, 0.0, 0.5 * state["pull"] + reward)
        action = self.model.gain * torch.sin(pull + observation[:, 2])[:, None]
        return action + self.noise * torch.randn(action.shape), {"pull": pull}


class ActingLearner:
    def __init__(self, options, store, train, seed) -> None:
        self.model, self.seed = Gain(options.noise, store.spaces), seed
        self.windows = store.windows(3, train.batch_size, seed)
        self.observed = torch.zeros(())

    def update(self, step):
        batch = self.windows.batch(step)
        noise = torch.randn((), generator=torch_generator(self.seed, 9, step))
        with torch.no_grad():
            self.model.gain += 0.1 * (batch.actions.mean() + 0.01 * noise + 0.2 - self.model.gain)
        gain = float(self.model.gain.detach())
        return {"gain": gain, "rows": float(self.windows.store.rows), "seen": float(self.observed)}

    def observe(self, transitions):
        self.observed = self.observed + float(transitions.rewards.sum())

    def policy(self, explore):
        return Acting(self.model, self.model.noise if explore else 0.0)

    def trained(self):
        return self.model

    def state_dict(self):
        return {"model": self.model.state_dict(), "observed": self.observed}

    def load_state_dict(self, state):
        self.model.load_state_dict(state["model"])
        self.observed = state["observed"]


def learner(options, store, train, seed):
    return ActingLearner(options, store, train, seed)
