"""A transformer over tokens is a world: it answers `encode`, `step` and `decode` (seqwm.core.protocols.WorldModel).

A state stands before the last row's observation, whose action is yet to be chosen. It holds the codes that can be read,
and their keys and values, so that a step computes its own tokens alone; *stop* is the world's end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from seqwm.control.token_memory import TokenMemory, hiding
from seqwm.control.token_model import TokenAgent
from seqwm.core.protocols import Step
from seqwm.core.types import Batch, State, TensorTree
from seqwm.nn.branched_cache import BranchedCache, Level


class TokenNetwork(TokenAgent, Protocol):
    """A token model whose memory is a `TokenMemory`."""

    def read(self, codes: Tensor, rows: Tensor) -> tuple[Level, Tensor]:
        """Keys and values of contexts int64 [B, R, D], and what stands at the last observation's end, [B, W]."""
        ...

    def possible(self) -> Tensor:
        """Added to logits [D, V + 1]: minus infinity for what cannot stand behind each column."""
        ...


@dataclass(frozen=True, slots=True)
class TokenWorld:
    """Dreams in a token network.

    Attributes:
        network: predicts codes.
        length: transitions that are read at most, C.
        slides: whether the oldest transition of a full context can be dropped alone (rotary positions); otherwise the
            older half is, and the rest read anew.
        penalty: what stood in place of the last reward of the episodes that terminated, or None.
        end_reward: the mean of the rewards that it hides.
    """

    network: TokenNetwork
    length: int
    slides: bool
    penalty: float | None
    end_reward: float

    @torch.no_grad()
    def encode(self, context: Batch) -> State:
        """The state before the last valid row's observation, whose action and reward are yet to come.

        State: codes int64 [B, C, D] and rows int64 [B], the transitions that can be read and how many they are; past
        int64 [B], how many were before them; cache [B, 2, layers, heads, slots, width / heads].
        """
        tokenizer, device = self.network.tokenizer, self.network.device
        rows = context.valid.sum(1).to(device)
        codes = tokenizer.discretizer.encode(tokenizer.numbers(context).to(device))
        oldest = (rows - self.length).clamp(min=0)
        places = (oldest[:, None] + torch.arange(self.length, device=device)).clamp(max=codes.shape[1] - 1)
        codes = codes.gather(1, places[..., None].expand(-1, -1, codes.shape[2]))
        rows = rows - oldest
        return {"codes": codes, "rows": rows, "past": torch.zeros_like(rows), "cache": self._cache(codes, rows)}

    @torch.no_grad()
    def step(self, state: State, action: TensorTree, generator: torch.Generator | None = None) -> Step:
        """Reward, end and next observation, drawn with the generator, or the likeliest codes without one.

        *Stop* stands in place of the last observation, which a transition does not hold; given is the likeliest one
        otherwise. Where a termination penalty was trained in place of the last reward, the mean of the rewards that it
        hides is given.
        """
        network, layout, stop = self.network, self.network.layout, self.network.tokenizer.codes
        full = state["rows"] == self.length
        if not self.slides and bool(full.any()):
            state = self._with_room(state, full)
        codes, rows, past = state["codes"].clone(), state["rows"], state["past"]
        lanes = torch.arange(len(rows), device=rows.device)
        used = (rows - 1) * (layout.columns - 1) + layout.observation
        before = state["cache"].permute(1, 2, 0, 3, 4, 5).contiguous()
        heads = before.shape[3]
        prefix = Level(before.flatten(2, 3), 0, before.shape[4])
        slots = torch.arange(prefix.stop, device=rows.device)
        prefix.mask = hiding(slots >= used[:, None], before.dtype, heads)
        cache = BranchedCache.root(prefix, heads, layout.columns - 1, layout.columns - 1)
        memory = TokenMemory(cache, past, past + rows - 1, layout.observation, 0, layout, network.possible())

        codes[lanes, rows - 1, layout.observation : layout.reward] = network.tokenizer.encode_action(action)
        for column in range(layout.observation, layout.reward):
            logits = network.extend(memory, codes[lanes, rows - 1, column, None], column)
        reward_code = _draw(logits, generator)
        codes[lanes, rows - 1, layout.reward] = reward_code[:, 0]
        network.extend(memory, reward_code, layout.reward)
        logits = network.extend(memory, torch.zeros_like(reward_code), layout.value)

        dropped = (rows == self.length).long()  # where it slides, the oldest transition makes room
        codes = torch.where(dropped[:, None, None].bool(), codes.roll(-1, dims=1), codes)
        present = rows - dropped
        codes[lanes, present] = 0
        for column in range(layout.observation):
            token = _draw(logits, generator)
            if column == 0:  # an end shows what is likeliest to be seen where there is none
                terminated = token[:, 0] == stop
                token = torch.where(token == stop, logits[..., :-1].argmax(-1), token)
            codes[lanes, present, column] = token[:, 0]
            logits = network.extend(memory, token, column)

        everything = torch.cat([before, cache.levels[-1].content.unflatten(2, (-1, heads)).to(before.dtype)], -2)
        places = slots + (dropped * (layout.columns - 1))[:, None]
        fresh = prefix.stop + slots - (used - dropped * (layout.columns - 1))[:, None]
        places = torch.where(places < used[:, None], places, fresh).clamp(max=everything.shape[-2] - 1)
        wide = places[None, None, :, None, :, None].expand(*everything.shape[:4], -1, everything.shape[-1])
        after = {
            "codes": codes,
            "rows": present + 1,
            "past": past + dropped,
            "cache": everything.gather(-2, wide).permute(2, 0, 1, 3, 4, 5),
        }
        return Step(after, self._reward(reward_code, terminated), terminated)

    def decode(self, state: State) -> TensorTree:
        """The observation (leaves [B, *shape]) that the state stands before."""
        rows = state["rows"]
        present = state["codes"][torch.arange(len(rows), device=rows.device), rows - 1]
        return self.network.tokenizer.decode_observation(present[:, : self.network.layout.observation])

    def _with_room(self, state: State, full: Tensor) -> State:
        """Without the older half of the contexts that are full, what is left read anew."""
        drop = self.length // 2
        codes = torch.where(full[:, None, None], state["codes"].roll(-drop, dims=1), state["codes"])
        rows = state["rows"] - full.long() * drop
        cache = state["cache"].clone()
        cache[full] = self._cache(codes[full], rows[full])
        return {"codes": codes, "rows": rows, "past": state["past"], "cache": cache}

    def _cache(self, codes: Tensor, rows: Tensor) -> Tensor:
        """Keys and values of every transition's place, lanes first; those not there are never read."""
        content = self.network.read(codes, rows)[0].content.unflatten(2, (len(codes), -1))
        slots = codes.shape[1] * (self.network.layout.columns - 1)
        room = content.new_zeros(*content.shape[:4], slots, content.shape[-1])
        room[..., : content.shape[-2], :] = content
        cache: Tensor = room.permute(2, 0, 1, 3, 4, 5)
        return cache

    def _reward(self, codes: Tensor, terminated: Tensor) -> Tensor:
        reward = self.network.tokenizer.decode_reward(codes[:, 0])
        if self.penalty is None:
            return reward
        return torch.where(terminated | (reward == self.penalty), self.end_reward, reward)


def _draw(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Codes int64 [B, 1] drawn from logits [B, 1, V + 1], or the likeliest without a generator."""
    if generator is None:
        return logits.argmax(-1)
    return torch.multinomial(logits[:, 0].softmax(-1), 1, generator=generator)
