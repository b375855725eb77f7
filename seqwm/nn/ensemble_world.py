"""The world that an ensemble learns: from an observation and an action, the change of the observation, reward and end.

Chua et al. 2018: particles that draw a member at every step (TS-1) or keep their first one (TS-inf); which, is in the
state. Inputs and outputs are standardised with figures of the rows that the ensemble was fitted to; they are buffers.
The end is one more output, a logit, and has come where it is above zero; or it is written by hand
(`seqwm.nn.ends`), as the reward can be (`seqwm.nn.rewards`).

Shapes: B rows, F features of an observation, A of an action, O = F + 2 outputs.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from gymnasium import Space
from gymnasium import spaces as gym_spaces
from torch import Tensor, nn

from seqwm.core.errors import SpaceError
from seqwm.core.protocols import Step
from seqwm.core.spaces import is_image, leaf_spaces
from seqwm.core.tree import flatten, tree_map, unflatten
from seqwm.core.types import Batch, State, TensorTree
from seqwm.nn.ends import EndRule
from seqwm.nn.ensemble import EnsembleOptions, GaussianEnsemble, Normals
from seqwm.nn.leaves import ActionCodec, Leaf
from seqwm.nn.rewards import RewardRule

Propagation = Literal["TS-1", "TS-inf"]


class EnsembleWorld(nn.Module):
    """State: observation float32 [B, F], and member int64 [B], the one that the row was last stepped by; -1 for none.

    Args:
        options: of the ensemble.
        propagation: how members are drawn.
        observation_space: Boxes of numbers.
        action_space: Discrete, MultiDiscrete, Box, or a Dict of them.
        ends: whether the task has ended in an observation, where that is written by hand and not learned.
        rewards: what a step earns, where that is written by hand and not learned.

    Raises:
        SpaceError: an observation that is an image or a category.
    """

    input_mean: Tensor
    input_std: Tensor
    output_mean: Tensor
    output_std: Tensor

    def __init__(
        self,
        options: EnsembleOptions,
        propagation: Propagation,
        observation_space: Space[Any],
        action_space: Space[Any],
        ends: EndRule | None = None,
        rewards: RewardRule | None = None,
    ) -> None:
        super().__init__()
        self.propagation: Propagation = propagation
        self.ends, self.rewards = ends, rewards
        spaces = leaf_spaces(observation_space)
        for path, space in spaces.items():
            if not isinstance(space, gym_spaces.Box) or is_image(space):
                raise SpaceError(
                    f"observation '{path}': found {space}, expected a Box of numbers for an ensemble; "
                    "dreamer and planet take images and categories"
                )
        self.leaves = [Leaf.of(path, space) for path, space in spaces.items()]
        self.actions = ActionCodec(action_space)
        self.size = sum(leaf.size for leaf in self.leaves)  # F
        inputs, outputs = self.size + self.actions.size, self.size + 2
        self.ensemble = GaussianEnsemble(options, inputs, outputs, flags=1)
        self.register_buffer("input_mean", torch.zeros(inputs))
        self.register_buffer("input_std", torch.ones(inputs))
        self.register_buffer("output_mean", torch.zeros(outputs))
        self.register_buffer("output_std", torch.ones(outputs))

    def encode(self, context: Batch) -> State:
        """The last valid row's observation; no member has stepped it yet."""
        last = context.valid.sum(1) - 1
        rows = torch.arange(len(last), device=last.device)
        observation = self.features(tree_map(lambda leaf: leaf[rows, last], context.observations))
        return {"observation": observation, "member": torch.full_like(last, -1)}

    def step(
        self, state: State, action: TensorTree, generator: torch.Generator | None, said: Normals | None = None
    ) -> Step:
        """What the drawn member draws; without a generator, the mean of the elites' means.

        `said`, what every member says of these rows, [M, B, O], is for who has asked them already.
        """
        observation, member, elites = state["observation"], state["member"], self.ensemble.elites
        features = self.actions.features(action)
        x = self.inputs(observation, features)
        if generator is None:
            outputs = (said or self.ensemble(x)).mean[elites].mean(0)
            centre = outputs
        else:
            drawn = elites[torch.randint(len(elites), member.shape, generator=generator, device=member.device)]
            member = torch.where(member < 0, drawn, member) if self.propagation == "TS-inf" else drawn
            own = self.ensemble.of_members(x, member) if said is None else said.of(member)
            noise = torch.randn(own.mean.shape, generator=generator, device=member.device)
            centre, outputs = own.mean, own.mean + (0.5 * own.log_variance).exp() * noise
        change = outputs * self.output_std + self.output_mean
        following = observation + change[:, :-2]
        ended = centre[:, -1] > 0 if self.ends is None else self.ends(following)
        reward = change[:, -2] if self.rewards is None else self.rewards(observation, features, following)
        return Step({"observation": following, "member": member}, reward, ended)

    def decode(self, state: State) -> TensorTree:
        """The observation of a state."""
        parts = state["observation"].split([leaf.size for leaf in self.leaves], -1)
        tree: TensorTree = unflatten(
            {leaf.path: leaf.restore(part) for leaf, part in zip(self.leaves, parts, strict=True)}
        )
        return tree

    def features(self, observations: TensorTree) -> Tensor:
        """Leaves [..., *leaf] to [..., F]."""
        values = flatten(observations)
        return torch.cat([leaf.features(values[leaf.path]) for leaf in self.leaves], -1)

    def inputs(self, observation: Tensor, action: Tensor) -> Tensor:
        """Features [B, F] and [B, A] as the ensemble takes them."""
        return (torch.cat([observation, action], -1) - self.input_mean) / self.input_std
