"""The three interfaces: what a world is, what acts, what learns. All are structural; nothing inherits from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from seqwm.core.types import Batch, Metrics, State, TensorTree

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a world: the state after it, reward float32 [B] and terminated bool [B]."""

    state: State
    reward: torch.Tensor
    terminated: torch.Tensor


@runtime_checkable
class WorldModel(Protocol):
    """A learned environment as pure functions of an explicit state.

    Lanes are independent: what the generator draws for a lane does not depend on what happens in the others. Tensors of
    a state keep their names, dtypes and shapes from `encode` on.
    """

    def encode(self, context: Batch) -> State:
        """The state at the last valid row's observation in each of B windows.

        Action, reward and end of that row are yet to come and not read; the rows before it were lived through.
        """
        ...

    def step(self, state: State, action: TensorTree, generator: torch.Generator | None) -> Step:
        """The state, reward and end that follow `action` (leaves [B, ...]) taken in `state`.

        Drawn with the generator; without one the likeliest happens.
        """
        ...

    def decode(self, state: State) -> TensorTree:
        """The observation (leaves [B, ...]) that `state` stands for; a planner never pays for it."""
        ...


@runtime_checkable
class Policy(Protocol):
    """Anything that acts in a batch of lanes. Lanes are independent and reset themselves where `first` is True."""

    def initial(self, lanes: int) -> State:
        """The state before any step."""
        ...

    def act(
        self, state: State, observation: TensorTree, reward: torch.Tensor, first: torch.Tensor
    ) -> tuple[TensorTree, State]:
        """Actions (leaves [B, ...]) for observations (leaves [B, ...]).

        `reward` float32 [B] is the one that followed the previous action and means nothing where `first` (bool [B])
        is True.
        """
        ...


class Learner(Protocol):
    """What the training loop drives: it owns its networks, optimisers and windows.

    What it draws at random is named by the seed and the step, so no state of a generator is ever saved.
    """

    def update(self, step: int) -> Metrics:
        """One gradient update, number `step` counted from 0; returns finite scalars to log."""
        ...

    def policy(self, explore: bool) -> Policy:
        """What acts now: with exploration for collecting, without for evaluation.

        A collector asks before every round and carries the policy's state on. An exploring policy may draw from torch's
        default generator, which is seeded for every round.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs besides the seed: tensors in nested dicts, and JSON scalars."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        ...

    def trained(self) -> Any:
        """The model to evaluate and to save."""
        ...
