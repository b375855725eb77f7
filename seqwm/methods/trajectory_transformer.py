"""Trajectory Transformer: a language model of transitions, and planning by beam search in it.

Janner, Li and Levine, "Offline Reinforcement Learning as One Big Sequence Modeling Problem", 2021. Default settings are
those of jannerm/trajectory-transformer; the tokens are described in `seqwm.tokenizers.transition`.

What is notable:

- The value is predicted and never read: its token is masked as a key, also for itself, and is embedded the same
  whatever its code, so that nothing else can depend on it and a context needs no values.
- Each column has its own output head. Training evaluates all in one batched product, a search only the one it needs.
- Positions are learned and absolute, as in the paper, and then cover `context_length` transitions, no more; or rotary,
  and then every token reads the last `context_length` transitions wherever it stands, so that a cache stays valid when
  its oldest transition is dropped.
- Windows run over terminations (`overrun`), so that *stop* is learned at the rate at which episodes end.
- A search reads the logged context once for all beams; its logits are those of the whole sequence.
- As a world model: `encode` stands before the last row's observation, its action yet to be chosen; *stop* is its end.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel, initialization

from seqwm.control.beam_search import Objective, SearchOptions
from seqwm.control.token_memory import TokenMemory, hiding
from seqwm.control.token_planner import TokenPlanner
from seqwm.control.token_world import TokenWorld
from seqwm.core.errors import DataError
from seqwm.core.protocols import Step
from seqwm.core.spaces import space_from_json
from seqwm.core.types import Batch, Spaces, State, TensorTree
from seqwm.data.problems import Problem
from seqwm.nn.branched_cache import BranchedCache, Level
from seqwm.nn.logged_config import LoggedConfig
from seqwm.nn.processor import computes_in_bf16
from seqwm.nn.transformer import Block, Transformer
from seqwm.tokenizers.transition import Bins, TransitionTokenizer

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore


ACTING = ("planner", "objective", "goal")
"""The options that say how a trained model acts, and can be changed when it is evaluated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe.

    Attributes:
        context_length: transitions in a training window, and the most that a token reads.
        layers, heads, width, dropout: of the transformer; dropout is of embeddings, attention and residual branches.
        positions: 'learned' as in the paper, or 'rotary'.
        bins: of every column that is not discrete.
        binning: how their edges are chosen; which is better differs between data sets.
        binning_of: columns or groups that are binned otherwise: {reward: uniform, 'observation[3]': uniform}.
        discount: of the value.
        termination_penalty: what the last reward of an episode that terminated is taken to be; null leaves it.
        action_weight, reward_weight, value_weight: of their losses, the observation's being 1.
        planner: the search that acts.
        objective: what its plans maximise: 'return' (offline reinforcement learning), 'likelihood' (imitation), or
            'goal': to come near one.
        goal: values to come near, by column: {'observation[0]': 0.8}; columns that are not named may be anything.
    """

    context_length: int = 10
    layers: int = 4
    heads: int = 4
    width: int = 128
    dropout: float = 0.1
    positions: Literal["learned", "rotary"] = "learned"
    bins: int = 100
    binning: Bins = "quantile"
    binning_of: dict[str, Bins] = field(default_factory=dict)
    discount: float = 0.99
    termination_penalty: float | None = -100.0
    action_weight: float = 5.0
    reward_weight: float = 1.0
    value_weight: float = 1.0
    planner: SearchOptions = field(default_factory=SearchOptions)
    objective: Objective = "return"
    goal: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("context_length", 2), ("layers", 1), ("heads", 1), ("width", 1), ("bins", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least {least}")
        if self.width % self.heads:
            raise ValueError(f"width: found {self.width}, expected a multiple of the {self.heads} heads")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount: found {self.discount}, expected a number above 0 and at most 1")
        if bool(self.goal) != (self.objective == "goal"):
            found = f"objective '{self.objective}' {'with' if self.goal else 'without'} a goal"
            raise ValueError(f"goal: found {found}, expected a goal with objective 'goal', and with no other")
        try:
            planning_context(self.planner, self.context_length, self.positions)
        except ValueError as error:
            raise ValueError(f"planner: {error}") from None


def window_options(options: Options) -> dict[str, Any]:
    """What `store.windows` is asked for besides its length, so that a batch holds what the loss needs."""
    return {
        "discount": options.discount,
        "end_reward": options.termination_penalty,
        "overrun": options.context_length - 1,
    }


def planning_context(planner: SearchOptions, context_length: int, positions: str) -> int:
    """Transitions that a search stands on; ValueError where they and the horizon exceed what was trained."""
    if positions == "rotary":
        return min(planner.context or context_length, context_length)
    context = planner.context or max(context_length - planner.horizon, 1)
    if context + planner.horizon > context_length:
        raise ValueError(
            f"found context {context} and horizon {planner.horizon}, expected at most the {context_length} transitions "
            "of context_length together: shorten them, train with a longer context_length, or with rotary positions"
        )
    return context


def build(options: Options, store: TrajectoryStore) -> TrajectoryTransformer:
    """A model with fresh weights for the data of a store, its bins fitted on all transitions.

    Raises:
        DataError: the objective needs rewards and the data has none.
        DataError, SpaceError, RecipeError: as `TransitionTokenizer.fit`.
    """
    source = store.provenance.get("source")
    if options.objective == "return" and not store.has_rewards:
        raise _no_rewards(source)
    tokenizer = TransitionTokenizer.fit(
        store,
        bins=options.bins,
        binning=options.binning,
        binning_of=options.binning_of,
        discount=options.discount,
        end_reward=options.termination_penalty,
    )
    if options.goal:
        tokenizer.goal(options.goal)
    config = TrajectoryTransformerConfig(
        **store.described(),
        codes=tokenizer.codes,
        has_rewards=store.has_rewards,
        end_reward=_mean_end_reward(store),
        **dataclasses.asdict(options),
    )
    model = TrajectoryTransformer(config)
    model.tokenizer.load_state_dict(tokenizer.state_dict())
    return model


class TrajectoryTransformerConfig(LoggedConfig):
    """Everything needed to make the network and to act: sizes, spaces, the planner, and what it was trained on.

    Besides the fields of `Options`:

    Attributes:
        codes: the most codes that any column has, V.
        has_rewards: whether the data had rewards.
        end_reward: mean reward of the steps that ended the task, which a termination penalty hides.
    """

    model_type = "seqwm_trajectory_transformer"

    codes: int = 2
    has_rewards: bool = True
    end_reward: float = 0.0
    context_length: int = 10
    layers: int = 4
    heads: int = 4
    width: int = 128
    dropout: float = 0.1
    positions: str = "learned"
    bins: int = 100
    binning: str = "quantile"
    binning_of: dict[str, str] | None = None
    discount: float = 0.99
    termination_penalty: float | None = None
    action_weight: float = 5.0
    reward_weight: float = 1.0
    value_weight: float = 1.0
    planner: dict[str, Any] | None = None
    objective: str = "return"
    goal: dict[str, float] | None = None
    initializer_range: float = 0.02


class TrajectoryTransformer(PreTrainedModel):
    """The network; `policy` plans with it, `encode`, `step` and `decode` dream in it."""

    config_class = TrajectoryTransformerConfig
    return_conditioned = False

    def __init__(self, config: TrajectoryTransformerConfig) -> None:
        super().__init__(config)
        if config.observation_space is None or config.action_space is None:
            raise ValueError("config: found no spaces, expected observation_space and action_space as JSON")
        spaces = Spaces(space_from_json(config.observation_space), space_from_json(config.action_space))
        self.tokenizer = TransitionTokenizer(spaces, config.codes, config.discount)
        self.layout = self.tokenizer.layout
        columns, width = self.layout.columns, config.width
        self.token_embedding = nn.Embedding((columns - 1) * config.codes + 1, width)  # the value has but one
        self.rotary = config.positions == "rotary"
        self.position_embedding = None if self.rotary else nn.Embedding(config.context_length * columns, width)
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = Transformer(config.layers, config.heads, width, dropout=config.dropout, rotary=self.rotary)
        self.heads = nn.Parameter(torch.empty(columns, width, config.codes + 1))  # heads[d] reads behind column d
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            initialization.normal_(self.heads, std=self.config.initializer_range)

    # -- learning ---------------------------------------------------------------------------------------------------

    @property
    def window_length(self) -> int:
        """Rows of a training window, T."""
        length: int = self.config.context_length
        return length

    def forward(self, codes: Tensor) -> Tensor:
        """Logits [B, T, D, V + 1] of the token behind each of the codes int64 [B, T, D]; the last one is stop's."""
        batch, rows, columns = codes.shape
        tokens = torch.arange(rows * columns, device=codes.device)
        embedded = self.dropout(self._embed(codes.flatten(1), tokens % columns, tokens))
        hidden = self.transformer(embedded, mask=self._readable(tokens))
        by_column = hidden.reshape(batch * rows, columns, -1).transpose(0, 1)
        logits = torch.baddbmm(self.possible()[:, None].to(by_column.dtype), by_column, self.heads)
        return logits.transpose(0, 1).reshape(batch, rows, columns, -1)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted cross-entropy, the mean over predicted tokens; its parts are given in nats.

        Predicted is every code of a valid row but the window's first, and a stop behind a termination. What follows a
        row that was merely cut, or lies beyond the window, is not known and not counted.
        """
        layout, numbers = self.layout, self.tokenizer.numbers(batch)
        codes = self.tokenizer.discretizer.encode(numbers)
        logits = self(codes)
        stop = logits.shape[-1] - 1
        following = codes[..., :1].roll(-1, dims=1).masked_fill(batch.terminated[..., None], stop)
        targets = torch.cat([codes[..., 1:], following], -1)
        follows = batch.valid.roll(-1, dims=1) + batch.terminated * self._ends_seen(batch)[:, None]
        follows = torch.cat([follows[:, :-1], torch.zeros_like(follows[:, :1])], 1)
        known = torch.cat([batch.valid[..., None].expand(-1, -1, layout.columns - 1), follows[..., None]], -1)
        losses = F.cross_entropy(logits.flatten(0, 2).float(), targets.flatten(), reduction="none").view_as(targets)
        totals, counts = (losses * known).sum((0, 1)), known.sum((0, 1))  # by the column before
        parts = [layout.observation - 1, layout.action, 1, 1, 1]
        weights = [1.0, self.config.action_weight, self.config.reward_weight, self.config.value_weight, 1.0]
        loss = torch.stack([w * part.sum() for w, part in zip(weights, totals.split(parts), strict=True)]).sum()
        outside = (self.tokenizer.discretizer.outside(numbers) & batch.valid[..., None]).sum()
        figures = {"clipped": outside / (batch.valid.sum() * layout.columns)}
        names = ["observation", "action", "reward", "value", "next"]
        for name, total, count in zip(names, totals.detach().split(parts), counts.split(parts), strict=True):
            figures[name] = total.sum() / count.sum().clamp(min=1e-6)
        return loss / counts.sum(), figures

    @staticmethod
    def _ends_seen(batch: Batch) -> Tensor:
        """How much a termination in each window counts, float32 [B].

        A window that looks behind the end it shows has met it as any other boundary is met. One of the T - c + 1
        windows that begin with their episode and show its end at row c ends right there; it would not have looked
        behind a row that did not terminate, so it must not count, but its content is that of the others.
        """
        unused = batch.valid.shape[1] - batch.valid.sum(1)
        return torch.where(batch.timesteps[:, 0] == 0, unused / (unused + 1), 1.0)

    # -- what a search needs (seqwm.control.beam_search.TokenModel) -------------------------------------------------

    def prefill(self, codes: Tensor, rows: Tensor, horizon: int) -> tuple[TokenMemory, Tensor]:
        """Memory of the past and the logits of the first action code, as `TokenModel` has it.

        Raises:
            ValueError: more transitions than learned positions were trained for.
        """
        limit = self.config.context_length
        if codes.shape[1] > limit or (not self.rotary and codes.shape[1] + horizon > limit):
            raise ValueError(
                f"{codes.shape[1]} logged and {horizon} imagined transitions of {self.layout.columns} tokens; expected "
                f"at most {limit}, which `context_length` was trained for: plan with a shorter context or horizon"
            )
        level, hidden = self.read(codes, rows)
        remembered = self.layout.columns - 1
        cache = BranchedCache.root(level, self.config.heads, horizon * remembered, remembered)
        memory = TokenMemory(
            cache, torch.zeros_like(rows), rows - 1, self.layout.observation, 0, self.layout, self.possible()
        )
        return memory, self._logits(hidden, self.layout.observation - 1, memory.possible)[:, None]

    def branch_bytes(self, horizon: int) -> int:
        """Keys and values that one branch gathers in that many transitions."""
        tokens = horizon * (self.layout.columns - 1)
        size: int = tokens * 2 * self.config.layers * self.config.width * self.heads.element_size()
        return size

    def extend(self, memory: TokenMemory, codes: Tensor, column: int) -> Tensor:
        """Append one code a branch; the logits of the column that follows, as `TokenModel` has it."""
        if column == 0:
            memory.begin_row(self.config.context_length if self.rotary else None)
        environments, branches = codes.shape
        position = (memory.row * self.layout.columns + column)[:, None]
        x = self._embed(codes, column, position).flatten(0, 1)[:, None]
        turn = position.expand(-1, branches).reshape(-1, 1, 1)
        remembered = column != self.layout.value
        for layer, block in enumerate(self._blocks()):
            query, key, value = (part.squeeze(2) for part in block.project(x, turn))
            read = memory.cache.attend(layer, query, *((key, value) if remembered else (None, None)))
            x = block.finish(x, read[:, None])
        if remembered:
            memory.cache.advance()
        memory.column = (column + 1) % self.layout.columns
        logits = self._logits(self.transformer.norm(x[:, 0]), column, memory.possible)
        return logits.view(environments, branches, -1)

    def expectation(self, logits: Tensor, column: int) -> Tensor:
        """The mean value of one column under its logits [..., V + 1]."""
        return self.tokenizer.discretizer.expectation(logits[..., :-1].softmax(-1), column)

    def distance(self, codes: Tensor, goal: Tensor) -> Tensor:
        """Distance [E, N] of observation codes [E, N, O] to goals [E, O], each column in units of its range."""
        return self.tokenizer.distance(codes, goal)

    # -- acting -----------------------------------------------------------------------------------------------------

    def policy(
        self,
        target_returns: Sequence[float] | None = None,
        *,
        objective: Objective | None = None,
        goal: Mapping[str, float] | None = None,
        planner: SearchOptions | None = None,
        seed: int = 0,
    ) -> TokenPlanner:
        """The planner as a policy.

        Args:
            target_returns: must be None: a plan seeks the best, not a given return.
            objective: another one than the recipe's.
            goal: for 'goal': values by column, as in `Options`.
            planner: another search than the recipe's.
            seed: names the draws of the search.

        Raises:
            DataError: the objective needs rewards and the data had none.
            RecipeError: the goal names a column that there is not.
            ValueError: context and horizon exceed what was trained; a goal is missing, or of no use.
        """
        if target_returns is not None:
            raise ValueError("a Trajectory Transformer plans for the best return and takes no target returns")
        if objective is None:
            objective, goal = self.config.objective, goal or self.config.goal
        if objective == "return" and not self.config.has_rewards:
            raise _no_rewards(self.config.dataset)
        options = planner or SearchOptions(**(self.config.planner or {}))
        context = planning_context(options, self.config.context_length, self.config.positions)
        sought = self.tokenizer.goal(goal) if goal else None
        half = options.precision == "bf16" and computes_in_bf16(self.device.type)
        network = self.with_half_products() if half else self
        return TokenPlanner(network, options, context, objective, sought, seed)

    def with_half_products(self) -> TrajectoryTransformer:
        """A copy whose blocks multiply, and remember the past, in bfloat16; embeddings and heads stay in float32."""
        network = copy.deepcopy(self)
        for block in network._blocks():
            block.to_half_products()
        return network

    # -- a world to dream in (seqwm.core.protocols.WorldModel) ------------------------------------------------------

    def encode(self, context: Batch) -> State:
        """The state before the last valid row's observation, as `TokenWorld.encode`."""
        return self._world().encode(context)

    def step(self, state: State, action: TensorTree, generator: torch.Generator | None = None) -> Step:
        """Reward, end and next observation, as `TokenWorld.step`."""
        return self._world().step(state, action, generator)

    def decode(self, state: State) -> TensorTree:
        """The observation (leaves [B, *shape]) that the state stands before."""
        return self._world().decode(state)

    def _world(self) -> TokenWorld:
        config = self.config
        return TokenWorld(self, config.context_length, self.rotary, config.termination_penalty, config.end_reward)

    # -- the network, one place at a time ---------------------------------------------------------------------------

    def _embed(self, codes: Tensor, columns: Tensor | int, positions: Tensor) -> Tensor:
        """Embedded tokens [..., N, W] of codes [..., N] in the given columns and places."""
        index = codes + columns * self.config.codes
        embedded: Tensor = self.token_embedding(index.clamp(max=self.layout.value * self.config.codes))
        return embedded if self.position_embedding is None else embedded + self.position_embedding(positions)

    def _readable(self, tokens: Tensor) -> Tensor:
        """Which tokens (columns) each token (row) may read, bool [N, N]: those before, no values, no row too old."""
        query, key, columns = tokens[:, None], tokens[None], self.layout.columns
        readable = (key <= query) & (key % columns != self.layout.value)
        if self.rotary:
            readable &= query // columns - key // columns < self.config.context_length
        return readable

    def possible(self) -> Tensor:
        """Added to logits [D, V + 1]: minus infinity for what cannot stand behind each column."""
        following = self.tokenizer.discretizer.counts.roll(-1)
        codes = torch.arange(self.config.codes + 1, device=following.device)
        possible = codes < following[:, None]
        possible[self.layout.value, -1] = True
        return torch.zeros(possible.shape, device=following.device).masked_fill(~possible, -torch.inf)

    def _blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.transformer.blocks))

    def _logits(self, hidden: Tensor, column: int, possible: Tensor) -> Tensor:
        return torch.addmm(possible[column], hidden, self.heads[column])

    def read(self, codes: Tensor, rows: Tensor) -> tuple[Level, Tensor]:
        """Keys and values of contexts int64 [E, R, D], and what stands at the last observation's end, [E, W]."""
        layout = self.layout
        tokens = torch.arange((codes.shape[1] - 1) * layout.columns + layout.observation, device=codes.device)
        kept = torch.nonzero(tokens % layout.columns != layout.value)[:, 0]
        x = self._embed(codes.flatten(1)[:, : len(tokens)], tokens % layout.columns, tokens)
        readable, content = self._readable(tokens), []
        for block in self._blocks():
            query, key, value = block.project(x)
            read = F.scaled_dot_product_attention(query, key, value, attn_mask=readable)
            x = block.finish(x, read.transpose(1, 2).flatten(2))
            content.append(torch.stack([key[:, :, kept], value[:, :, kept]]).flatten(1, 2))
        last = (rows - 1) * layout.columns + layout.observation - 1
        hidden = self.transformer.norm(x[torch.arange(len(rows), device=rows.device), last])
        level = Level(torch.stack(content, 1), 0, len(kept))
        if bool((rows < codes.shape[1]).any()):
            used = (rows - 1) * (layout.columns - 1) + layout.observation
            hidden_slots = torch.arange(len(kept), device=rows.device) >= used[:, None]
            level.mask = hiding(hidden_slots, level.content.dtype, self.config.heads)
        return level, hidden


def _no_rewards(source: str | None) -> DataError:
    mend = "train on data with rewards, or set model.objective to 'likelihood' or 'goal', which need none"
    return DataError([Problem("no-rewards", f"no rewards in {source or 'the data'}", "a reward in every row", mend)])


def _mean_end_reward(store: TrajectoryStore) -> float:
    ends = np.flatnonzero(store.terminated)
    if not store.has_rewards or not len(ends):
        return 0.0
    rewards = store.windows(1, 1).gather(ends, store.lengths[ends] - 1).rewards
    assert rewards is not None
    return float(rewards.mean())


AutoConfig.register(TrajectoryTransformerConfig.model_type, TrajectoryTransformerConfig)
AutoModel.register(TrajectoryTransformerConfig, TrajectoryTransformer)
