"""Decision Transformer: act by continuing a sequence that begins with the return one asks for.

Chen et al., "Decision Transformer: Reinforcement Learning via Sequence Modeling", 2021. Settings from
kzl/decision-transformer.

**Tokens.** Three a step, in this order: the return still to come (r_t included), the observation, the action; each is a
linear map of its features plus an embedding of the time step, then one layer norm. The action is read off the
observation's token; the loss is its squared error (cross entropy for discrete actions), averaged over valid rows.

**What is notable.**

- Training and acting build the same window (`seqwm.data.windows`): the last K steps, rows that are there first, zeros
  behind them. Order alone keeps padding from being read, so what stands in it cannot matter.
- Acting: the return still to come loses r_t after the step, never before.
- Only observation tokens are read out, so the last layer runs queries and MLP for a third of the tokens.
- Normalisation, return scale and action bounds are part of the model; a target is given in the data's own units.
- `backbone: lstm` puts an LSTM in the place of attention (Siebenborn et al., "How Crucial is Transformer in Decision
  Transformer?", 2022), the baseline that shows what attention is worth.
- Weights go to and come from `transformers.DecisionTransformerModel` with equal outputs. There, every token gets row 0
  of an otherwise unused position table added, which folds into the bias of the embedding norm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import gymnasium.spaces
import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from seqwm.core.errors import CheckpointError, SpaceError
from seqwm.core.spaces import is_image, leaf_spaces, space_from_json, space_to_json
from seqwm.core.tree import flatten, unflatten
from seqwm.core.types import Batch, State, TensorTree
from seqwm.nn.leaves import ActionCodec, ObservationEncoder
from seqwm.nn.logged_config import LoggedConfig
from seqwm.nn.transformer import Activation, Transformer, initialise

if TYPE_CHECKING:
    from seqwm.data.store import TrajectoryStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The `model:` section of a recipe.

    Attributes:
        context_length: steps in a window, K.
        layers, heads, width: of the network; an LSTM has no heads.
        dropout: of embeddings, attention and residual branches.
        activation: of the MLP.
        backbone: 'transformer', or 'lstm' in its place.
        return_scale: what returns are divided by; null takes the largest |return| of the data, so that inputs are
            about 1 (the reference's 1000 for Hopper is of the same size).
        max_timestep: steps that have an embedding of their own, later ones share the last; null takes the longest
            episode of the data.
    """

    context_length: int = 20
    layers: int = 3
    heads: int = 1
    width: int = 128
    dropout: float = 0.1
    activation: Activation = "relu"
    backbone: Literal["transformer", "lstm"] = "transformer"
    return_scale: float | None = None
    max_timestep: int | None = None

    def __post_init__(self) -> None:
        for name in ("context_length", "layers", "heads", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if self.width % self.heads:
            raise ValueError(f"width: found {self.width}, expected a multiple of the {self.heads} heads")
        if self.return_scale is not None and not self.return_scale > 0:
            raise ValueError(f"return_scale: found {self.return_scale}, expected a positive number")


def build(options: Options, store: TrajectoryStore) -> DecisionTransformer:
    """A model with fresh weights for the data of a store.

    Raises:
        SpaceError: the store has no actions or no rewards, without which there is nothing to imitate or to ask for.
    """
    for present, what in ((store.has_actions, "actions"), (store.has_rewards, "rewards")):
        if not present:
            raise SpaceError(
                f"{store.path}: the data has no {what}; decision_transformer needs them, train a world model"
            )
    statistics = store.statistics
    settings = dataclasses.asdict(options)
    settings["return_scale"] = options.return_scale or max(float(np.abs(store.returns).max()), 1e-6)
    settings["max_timestep"] = options.max_timestep or statistics.max_length
    assert store.spaces.action is not None
    config = DecisionTransformerConfig(
        **store.described(),
        **settings,
    )
    model = DecisionTransformer(config)
    fitted = ObservationEncoder(store.spaces.observation, 1, statistics.observation_mean, statistics.observation_std)
    model.observe.mean.copy_(fitted.mean)
    model.observe.std.copy_(fitted.std)
    actions = ActionCodec(store.spaces.action, statistics.action_mean, statistics.action_std)
    model.actions.load_state_dict(actions.state_dict())
    return model


class DecisionTransformerConfig(LoggedConfig):
    """The fields of `Options`, the spaces as JSON (`seqwm.core.spaces`), and what the model was trained on."""

    model_type = "seqwm_decision_transformer"

    context_length: int = 20
    layers: int = 3
    heads: int = 1
    width: int = 128
    dropout: float = 0.1
    activation: str = "relu"
    backbone: str = "transformer"
    return_scale: float = 1.0
    max_timestep: int = 1000


class DecisionTransformer(PreTrainedModel):
    """The network; `loss` trains it, `policy` acts with it."""

    config_class = DecisionTransformerConfig
    return_conditioned = True

    def __init__(self, config: DecisionTransformerConfig) -> None:
        super().__init__(config)
        width = config.width
        self.observe = ObservationEncoder(space_from_json(config.observation_space or {}), width)
        self.actions = ActionCodec(space_from_json(config.action_space or {}))
        self.embed_return = nn.Linear(1, width)
        self.embed_action = nn.Linear(self.actions.size, width)
        self.embed_timestep = nn.Embedding(config.max_timestep, width)
        self.embed_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.backbone: Transformer | nn.LSTM
        if config.backbone == "lstm":
            between = config.dropout if config.layers > 1 else 0.0
            self.backbone = nn.LSTM(width, width, config.layers, batch_first=True, dropout=between)
        else:
            activation: Any = config.activation
            self.backbone = Transformer(
                config.layers, config.heads, width, dropout=config.dropout, activation=activation
            )
        self.predict_action = nn.Linear(width, self.actions.size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        initialise_leaf(module)

    @property
    def window_length(self) -> int:
        """Steps in a window."""
        return int(self.config.context_length)

    def forward(
        self,
        observations: TensorTree,
        actions: TensorTree,
        returns_to_go: Tensor,
        timesteps: Tensor,
        *,
        read: Tensor | None = None,
    ) -> Tensor:
        """Outputs for the action of every step, float [B, T, A] (`ActionCodec` makes actions of them).

        Args:
            observations: leaves [B, T, ...].
            actions: leaves [B, T, ...]; the one of a step is not read for that step's output.
            returns_to_go: float32 [B, T], in the data's units, r_t included.
            timesteps: int64 [B, T].
            read: int64 [B], the one step of each window to read out, giving [B, 1, A]; all steps when None.
        """
        time = self.embed_timestep(timesteps.clamp_max(self.config.max_timestep - 1))
        returns = self.embed_return((returns_to_go / self.config.return_scale).unsqueeze(-1))
        embedded = torch.stack(
            (
                returns + time,
                self.observe(observations) + time,
                self.embed_action(self.actions.features(actions)) + time,
            ),
            2,
        )
        # [B, T, 3, W] to [B, 3T - 1, W]: nothing reads the last action
        tokens = self.dropout(self.embed_norm(embedded)).flatten(1, 2)[:, :-1]
        places = torch.arange(1, tokens.shape[1], 3, device=tokens.device) if read is None else (3 * read + 1)[:, None]
        if isinstance(self.backbone, Transformer):
            features = self.backbone(tokens, read=places)
        else:
            features, _ = self.backbone(tokens)
            features = features[:, places] if read is None else features[torch.arange(len(read)), places[:, 0]][:, None]
        outputs: Tensor = self.predict_action(features)
        return outputs

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over valid rows of the action's squared error or cross entropy."""
        assert batch.actions is not None
        assert batch.returns_to_go is not None
        outputs = self(batch.observations, batch.actions, batch.returns_to_go, batch.timesteps)
        losses = self.actions.loss(outputs, batch.actions)
        return (losses * batch.valid).sum() / batch.valid.sum(), {}

    def policy(self, target_returns: Sequence[float] | None = None) -> DecisionTransformerPolicy:
        """The policy that asks for `target_returns`, one a lane, in the data's units.

        Raises:
            ValueError: without targets; what one gets depends on what one asks for.
        """
        if target_returns is None:
            raise ValueError("decision_transformer: expected target_returns, one for each lane; found none")
        return DecisionTransformerPolicy(self, target_returns)

    def save_pretrained(self, save_directory: str | Path, *, as_transformers: bool = False, **options: Any) -> None:
        """Write config.json and model.safetensors; `as_transformers`, those of transformers' own class."""
        if as_transformers:
            to_transformers(self).save_pretrained(save_directory, **options)
        else:
            super().save_pretrained(save_directory, **options)


class DecisionTransformerPolicy:
    """Acts greedily in a batch of lanes, each with the return still to come that it was given.

    The state holds the window of each lane as training would have drawn it: rows that are there first, zeros behind.
    """

    def __init__(self, model: DecisionTransformer, target_returns: Sequence[float]) -> None:
        self.model = model.eval()
        self.targets = torch.as_tensor(target_returns, dtype=torch.float32, device=model.device)

    def initial(self, lanes: int) -> State:
        """Empty windows; raises ValueError unless there is a target for each lane."""
        if lanes != len(self.targets):
            raise ValueError(f"found {len(self.targets)} target returns, expected one for each of the {lanes} lanes")
        model, length, device = self.model, self.model.window_length, self.model.device
        space = space_from_json(model.config.observation_space)
        state: State = {
            "target": self.targets.clone(),
            "return_to_go": torch.zeros(lanes, device=device),
            "timestep": torch.zeros(lanes, dtype=torch.int64, device=device),
            "returns_to_go": torch.zeros(lanes, length, device=device),
        }
        for path, leaf in leaf_spaces(space).items():
            kind = torch.uint8 if is_image(leaf) else torch.float32
            kind = kind if isinstance(leaf, gymnasium.spaces.Box) else torch.int64
            state[f"observation/{path}"] = torch.zeros((lanes, length, *(leaf.shape or ())), dtype=kind, device=device)
        for path, leaf in model.actions.zeros(lanes, length).items():
            state[f"action/{path}"] = leaf
        return state

    @torch.no_grad()
    def act(self, state: State, observation: TensorTree, reward: Tensor, first: Tensor) -> tuple[TensorTree, State]:
        """The action of each lane and its window with this step in it; see `seqwm.core.protocols.Policy`."""
        model, length = self.model, self.model.window_length
        timestep = torch.where(first, 0, state["timestep"] + 1)
        to_go = torch.where(first, state["target"], state["return_to_go"] - reward)
        place = timestep.clamp_max(length - 1)
        windows = {
            name: _next_window(window, first, timestep >= length) for name, window in state.items() if "/" in name
        }
        windows["returns_to_go"] = _next_window(state["returns_to_go"], first, timestep >= length)
        lanes = torch.arange(len(first), device=first.device)
        windows["returns_to_go"][lanes, place] = to_go
        for path, leaf in flatten(observation).items():
            windows[f"observation/{path}"][lanes, place] = leaf.to(windows[f"observation/{path}"].dtype)

        used = int(place.max()) + 1  # windows not yet full are cheaper
        begin = timestep - place
        steps = begin[:, None] + torch.arange(used, device=first.device)
        valid = torch.arange(used, device=first.device) <= place[:, None]
        outputs = model(
            _tree(windows, "observation", used),
            _tree(windows, "action", used),
            windows["returns_to_go"][:, :used],
            torch.where(valid, steps, 0),
            read=place,
        )
        action = model.actions.decode(outputs[:, 0])
        for path, leaf in flatten(action).items():
            windows[f"action/{path}"][lanes, place] = leaf
        return action, {"target": state["target"], "return_to_go": to_go, "timestep": timestep, **windows}


def to_transformers(model: DecisionTransformer) -> transformers.DecisionTransformerModel:
    """The same network as transformers' own class, so that it loads and runs without seqwm.

    As in every published Decision Transformer, that class takes standardised observations and scaled returns and gives
    actions in [-1, 1]. The figures stand in its config: state_mean, state_std, return_scale, action_centre,
    action_scale; so do context_length (steps in a window), the spaces and the environment.

    Raises:
        SpaceError: image observations or an LSTM, which that class does not have.
    """
    config = model.config
    if model.observe.linear is None or len(model.observe.cameras) or not isinstance(model.backbone, Transformer):
        raise SpaceError(
            "transformers' DecisionTransformerModel takes vector observations and a transformer backbone only"
        )
    exported = transformers.DecisionTransformerModel(
        transformers.DecisionTransformerConfig(
            state_dim=model.observe.linear.in_features,
            act_dim=model.actions.size,
            hidden_size=config.width,
            max_ep_len=config.max_timestep,
            action_tanh=all(model.actions.bounded.values()),
            vocab_size=1,
            bos_token_id=None,
            eos_token_id=None,
            n_positions=3 * config.context_length,
            n_layer=config.layers,
            n_head=config.heads,
            n_inner=4 * config.width,
            activation_function=config.activation,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            context_length=config.context_length,
            state_mean=model.observe.mean.tolist(),
            state_std=model.observe.std.tolist(),
            return_scale=config.return_scale,
            action_centre=model.actions.centre.tolist(),
            action_scale=model.actions.scale.tolist(),
            observation_space=config.observation_space,
            action_space=config.action_space,
            environment=config.environment,
        )
    )
    weights = {name: torch.zeros_like(weight) for name, weight in exported.state_dict().items()}  # heads ours lacks: 0
    for theirs, ours, transposed in _weight_names(config.layers):
        weight = model.get_parameter(ours).detach()
        weights[theirs] = weight.T.contiguous() if transposed else weight.clone()
    exported.load_state_dict(weights)
    return exported.eval()


def from_transformers(
    exported: transformers.DecisionTransformerModel,
    *,
    state_mean: Sequence[float] | None = None,
    state_std: Sequence[float] | None = None,
    return_scale: float | None = None,
    action_low: float = -1.0,
    action_high: float = 1.0,
    context_length: int | None = None,
    environment: str | None = None,
) -> DecisionTransformer:
    """A Decision Transformer of transformers' class; what is not given is read from its config, if it tells.

    Args:
        exported: for example one of the edbeeching/decision-transformer-gym-* checkpoints, whose configs tell nothing
            of this, or what `to_transformers` made, whose config tells everything.
        state_mean, state_std: what its observations were standardised with; such checkpoints tell them in their cards.
        return_scale: what its returns were divided by.
        action_low, action_high: bounds of every action, where its config does not tell the action space.
        context_length: steps in a window; 20, as in the paper, where its config does not tell.
        environment: Gymnasium id it was trained for.

    Raises:
        CheckpointError: the normalisation is neither given nor told, or its activation is another.
    """
    theirs = exported.config
    given = {"state_mean": state_mean, "state_std": state_std, "return_scale": return_scale}
    normal = {name: getattr(theirs, name, None) if value is None else value for name, value in given.items()}
    missing = [name for name, value in normal.items() if value is None]
    if missing:
        raise CheckpointError(
            f"config.json does not tell {', '.join(missing)}, without which the model cannot act; take them from its "
            "card and give them: seqwm.load_model(name, normalisation={'state_mean': [...], ...})"
        )
    if theirs.activation_function not in get_args(Activation):
        raise CheckpointError(
            f"config.json: activation_function: found {theirs.activation_function!r}, expected one of "
            f"{', '.join(get_args(Activation))}, which the Decision Transformer here has"
        )
    low, high = (action_low, action_high) if theirs.action_tanh else (-np.inf, np.inf)
    observation = gymnasium.spaces.Box(-np.inf, np.inf, (theirs.state_dim,), np.float32)
    action = gymnasium.spaces.Box(low, high, (theirs.act_dim,), np.float32)
    config = DecisionTransformerConfig(
        observation_space=getattr(theirs, "observation_space", None) or space_to_json(observation),
        action_space=getattr(theirs, "action_space", None) or space_to_json(action),
        environment=environment or getattr(theirs, "environment", None),
        context_length=context_length or getattr(theirs, "context_length", None) or 20,
        layers=theirs.n_layer,
        heads=theirs.n_head,
        width=theirs.hidden_size,
        dropout=theirs.resid_pdrop,
        activation=theirs.activation_function,
        return_scale=normal["return_scale"],
        max_timestep=theirs.max_ep_len,
    )
    model = DecisionTransformer(config)
    weights = exported.state_dict()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, ours, transposed in _weight_names(theirs.n_layer):
            own[ours].copy_(weights[name].T if transposed else weights[name])
        model.embed_norm.bias.add_(weights["encoder.wpe.weight"][0])
        model.observe.mean.copy_(torch.as_tensor(normal["state_mean"]))
        model.observe.std.copy_(torch.as_tensor(normal["state_std"]))
        if getattr(theirs, "action_space", None):
            model.actions.centre.copy_(torch.as_tensor(theirs.action_centre))
            model.actions.scale.copy_(torch.as_tensor(theirs.action_scale))
    model.eval()
    return model


def initialise_leaf(module: nn.Module) -> None:
    """GPT-2's initial weights for one layer; LSTMs keep torch's own."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        initialise(module)


def _weight_names(layers: int) -> list[tuple[str, str, bool]]:
    """(transformers' name, ours, whether one is the transpose of the other): GPT-2 keeps its linear maps transposed."""
    pairs = [("embed_timestep.weight", "embed_timestep.weight", False)]
    for theirs, ours in (
        ("embed_return", "embed_return"),
        ("embed_state", "observe.linear"),
        ("embed_action", "embed_action"),
        ("embed_ln", "embed_norm"),
        ("predict_action.0", "predict_action"),
        ("encoder.ln_f", "backbone.norm"),
    ):
        pairs += [(f"{theirs}.{part}", f"{ours}.{part}", False) for part in ("weight", "bias")]
    for layer in range(layers):
        for theirs, ours, transposed in (
            ("ln_1", "norm1", False),
            ("attn.c_attn", "qkv", True),
            ("attn.c_proj", "out", True),
            ("ln_2", "norm2", False),
            ("mlp.c_fc", "up", True),
            ("mlp.c_proj", "down", True),
        ):
            here, there = f"encoder.h.{layer}.{theirs}", f"backbone.blocks.{layer}.{ours}"
            pairs += [(f"{here}.weight", f"{there}.weight", transposed), (f"{here}.bias", f"{there}.bias", False)]
    return pairs


def _next_window(window: Tensor, first: Tensor, full: Tensor) -> Tensor:
    """Windows [N, K, ...] ready for the next row: emptied in lanes that begin, moved up by one in full ones."""
    shape = (-1,) + (1,) * (window.ndim - 1)
    moved = torch.cat([window[:, 1:], torch.zeros_like(window[:, :1])], 1)
    moved = torch.where(full.view(shape), moved, window)
    return torch.where(first.view(shape), torch.zeros_like(moved), moved)


def _tree(windows: State, kind: str, used: int) -> TensorTree:
    leaves = {name.partition("/")[2]: leaf[:, :used] for name, leaf in windows.items() if name.startswith(f"{kind}/")}
    tree: TensorTree = unflatten(leaves)
    return tree


AutoConfig.register(DecisionTransformerConfig.model_type, DecisionTransformerConfig)
# The name alone is taken, by transformers' class of the same name; the entry is kept by class.
AutoModel.register(DecisionTransformerConfig, DecisionTransformer, exist_ok=True)
