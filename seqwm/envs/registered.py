"""The environments that come with the package, by id. Gymnasium calls `register` itself where seqwm is installed."""

from __future__ import annotations

import gymnasium

_SINGLE: dict[str, dict[str, object]] = {}
_VECTOR = {"seqwm/Dream-v0": "seqwm.control.dream:make_dream"}


def register() -> None:
    """Make every id known to Gymnasium; calling it again changes nothing."""
    for identity, arguments in _SINGLE.items():
        if identity not in gymnasium.registry:
            gymnasium.register(identity, **arguments)  # type: ignore[arg-type]
    for identity, entry_point in _VECTOR.items():
        if identity not in gymnasium.registry:
            gymnasium.register(identity, vector_entry_point=entry_point)
