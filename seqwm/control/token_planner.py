"""A planner is a policy: beam search at every step, or the rest of the last plan.

The state holds what the search stands on, per lane: the codes of the last transitions, the step of the episode, the
plan that is being followed. Draws are named by the step, so a lane plans the same alone and among others, and a second
run plans as the first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqwm.control.beam_search import Objective, SearchOptions, beam_search
from seqwm.control.token_model import TokenAgent
from seqwm.core.types import State, TensorTree


class TokenPlanner:
    """Acts by beam search in a token model.

    State:
        codes int64 [B, C, D], rows int64 [B]: the last transitions, and how many there are.
        step int64 [B]: steps since the episode began.
        plan int64 [B, H, A], planned int64 [B], followed int64 [B]: action codes, how many of them may be followed
            before the next search, how many have been.
        clipped int64 [B]: observed values of this episode that lay beyond the training data.
    """

    def __init__(
        self,
        model: TokenAgent,
        options: SearchOptions,
        context: int,
        objective: Objective = "return",
        goal: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        """A policy.

        Args:
            model: predicts codes.
            options: the search.
            context: transitions that are remembered, C.
            objective: what is maximised.
            goal: for the objective 'goal': float32 [O], flat in the order of the observation's columns, NaN in those
                that may be anything.
            seed: names all draws.
        """
        self._model, self._options, self._context = model, options, context
        self._objective, self._seed = objective, seed
        self._goal = None if goal is None else goal.to(model.device, torch.float32)

    def initial(self, lanes: int) -> State:
        """The state before any step."""
        layout, device = self._model.layout, self._model.device

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(lanes, *shape, dtype=torch.int64, device=device)

        return {
            "codes": zeros(self._context, layout.columns),
            "rows": zeros(),
            "step": zeros(),
            "plan": zeros(self._options.horizon, layout.action),
            "planned": zeros(),
            "followed": zeros(),
            "clipped": zeros(),
        }

    @torch.inference_mode()
    def act(self, state: State, observation: TensorTree, reward: Tensor, first: Tensor) -> tuple[TensorTree, State]:
        """Actions (leaves [B, ...]) for observations (leaves [B, ...])."""
        tokenizer, layout, context = self._model.tokenizer, self._model.layout, self._context
        first = first.to(self._model.device)
        lanes = torch.arange(len(first), device=first.device)
        codes, plan = state["codes"].clone(), state["plan"].clone()
        rows = state["rows"].masked_fill(first, 0)
        step = (state["step"] + 1).masked_fill(first, 0)
        planned, followed = (state[name].masked_fill(first, 0) for name in ("planned", "followed"))

        codes[lanes, (rows - 1).clamp(min=0), layout.reward] = tokenizer.encode_reward(reward)
        codes = torch.where((rows == context)[:, None, None], codes.roll(-1, dims=1), codes)
        present = rows.clamp(max=context - 1)
        observed, clipped = tokenizer.encode_observation(observation)
        codes[lanes, present] = 0
        codes[lanes, present, : layout.observation] = observed
        rows = present + 1

        searching = torch.nonzero(followed >= planned)[:, 0]
        if len(searching):
            found = beam_search(
                self._model,
                codes[searching],
                rows[searching],
                self._options,
                objective=self._objective,
                goal=None if self._goal is None else self._goal.expand(len(searching), -1),
                keys=step[searching] + self._seed * 1_000_003,
            )
            plan[searching] = found.codes[:, 0, :, layout.observation : layout.reward]
            planned[searching] = found.lengths[:, 0].clamp(1, self._options.plan_every)
            followed[searching] = 0

        chosen = plan[lanes, followed]
        codes[lanes, present, layout.observation : layout.reward] = chosen
        return tokenizer.decode_action(chosen), {
            "codes": codes,
            "rows": rows,
            "step": step,
            "plan": plan,
            "planned": planned,
            "followed": followed + 1,
            "clipped": state["clipped"].masked_fill(first, 0) + clipped.sum(-1),
        }
