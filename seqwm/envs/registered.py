"""The environments that come with the package, by id; `gymnasium.make("seqwm.envs:seqwm/...")` finds them, too."""

from __future__ import annotations

import gymnasium

_SINGLE: dict[str, dict[str, object]] = {
    "seqwm/CarRacing-v0": {"entry_point": "seqwm.envs.racing:CarRacing"},
    "seqwm/Catch-v0": {"entry_point": "seqwm.envs.catch:Catch"},
    "seqwm/TwoRooms-v0": {"entry_point": "seqwm.envs.rooms:TwoRooms", "max_episode_steps": 100},
    "seqwm/Sprite-v0": {"entry_point": "seqwm.envs.sprites:Sprite", "max_episode_steps": 50},
}
for _kind in ("dyna", "blocking", "shortcut"):
    _SINGLE[f"seqwm/{_kind.title()}Maze-v0"] = {
        "entry_point": "seqwm.envs.maze:Maze",
        "kwargs": {"kind": _kind},
        "max_episode_steps": 10_000,
    }
_VECTOR = {"seqwm/Dream-v0": "seqwm.control.dream:make_dream"}


def register() -> None:
    """Make every id known to Gymnasium; calling it again changes nothing."""
    for identity, arguments in _SINGLE.items():
        if identity not in gymnasium.registry:
            gymnasium.register(identity, **arguments)  # type: ignore[arg-type]
    for identity, entry_point in _VECTOR.items():
        if identity not in gymnasium.registry:
            gymnasium.register(identity, vector_entry_point=entry_point)
