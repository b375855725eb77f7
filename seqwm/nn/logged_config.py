"""What the configuration of every model says of the data that it learned from."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class LoggedConfig(PreTrainedConfig):
    """The fields that `TrajectoryStore.described` fills.

    Attributes:
        observation_space, action_space: of a step, as JSON (`seqwm.core.spaces`); no actions where none were logged.
        dataset, dataset_fingerprint: what was learned from.
        environment: the Gymnasium id that the data names.
    """

    observation_space: dict[str, Any] | None = None
    action_space: dict[str, Any] | None = None
    dataset: str | None = None
    dataset_fingerprint: str | None = None
    environment: str | None = None
