"""Whole paths of a learned world, from first states on: what a policy gradient learns from in a dream.

A path ends where the world says that the task does, where a pessimist halts it for what is not
known (`seqwm.control.pessimism`), and where it gives no numbers. Those that go on after `horizon` steps are cut.

Shapes, time first: H steps, N paths, F features of an observation, A of an action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from seqwm.nn.ensemble import Normals
from seqwm.nn.ensemble_world import EnsembleWorld

Doubt: TypeAlias = Callable[[Normals, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(what every member says [M, N, O], reward [N], terminated bool [N]) to the reward and the end that are kept."""


@dataclass(frozen=True, slots=True)
class Paths:
    """What was imagined; zeros behind the end of a path.

    Attributes:
        observation: [H + 1, N, F]; the one behind the last step, too.
        action: as the policy drew it, which may be out of bounds, [H, N, A].
        reward: [H, N].
        terminated: whether the path ended with this step, bool [H, N].
        lived: whether the path went as far as this step, bool [H, N].
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    lived: Tensor


@torch.no_grad()
def imagine_paths(
    world: EnsembleWorld,
    act: Callable[[Tensor], Tensor],
    starts: Tensor,
    horizon: int,
    generator: torch.Generator,
    doubt: Doubt,
) -> Paths:
    """One path from each start.

    Args:
        world: steps them.
        act: features of actions [N, A] in observations [N, F]; the world takes them within [-1, 1].
        starts: [N, F].
        horizon: H.
        generator: of the world's draws; `act` has its own.
        doubt: what a pessimist makes of rewards and ends.
    """
    lanes, observation = torch.arange(len(starts), device=starts.device), starts
    member = torch.full_like(lanes, -1)
    shape = horizon, len(starts)
    paths = Paths(
        observation=starts.new_zeros(horizon + 1, *starts.shape),
        action=starts.new_zeros(*shape, world.actions.size),
        reward=starts.new_zeros(shape),
        terminated=torch.zeros(shape, dtype=torch.bool, device=starts.device),
        lived=torch.zeros(shape, dtype=torch.bool, device=starts.device),
    )
    paths.observation[0] = starts
    for t in range(horizon):
        if not len(lanes):
            break
        action = act(observation)
        taken = action.clamp(-1, 1)
        said = world.ensemble(world.inputs(observation, taken))
        after = world.step(
            {"observation": observation, "member": member}, world.actions.restore(taken), generator, said
        )
        reward, ended = doubt(said, after.reward, after.terminated)
        following = after.state["observation"]
        numbers = following.isfinite().all(1) & reward.isfinite()
        paths.action[t, lanes] = action
        paths.reward[t, lanes] = reward.where(numbers, 0.0)
        paths.terminated[t, lanes] = ended | ~numbers
        paths.lived[t, lanes] = True
        going = ~ended & numbers
        lanes, observation, member = lanes[going], following[going], after.state["member"][going]
        paths.observation[t + 1, lanes] = observation
    return paths
