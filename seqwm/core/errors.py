"""Every exception that seqwm raises on purpose.

SeqwmError
├── DataError              something is wrong with logged data; carries the problems found
├── SpaceError             a space that a store, method or environment cannot take
├── RecipeError            a recipe that cannot be read or makes no sense
├── CheckpointError        a run folder that cannot be resumed or loaded
├── HubError               the Hub refused, cannot be reached, or sent what is not whole
├── UnfitEnvironmentError  an environment that cannot be built or does not fit the model
├── RolloutError           an environment or policy that failed in the middle of a run
├── MissingPackageError    an optional package that the request needs
└── TrainingError          training cannot go on (a loss that is not finite, say)

A message says where, what was found, what was expected, and the mend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seqwm.data.problems import Problem


class SeqwmError(Exception):
    """Base of everything seqwm raises on purpose; the command line prints it without a traceback."""


class DataError(SeqwmError):
    """Logged data that must not be used as it is; `problems` lists each place."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        shown = [str(problem) for problem in self.problems[:8]]
        if len(self.problems) > len(shown):
            shown.append(f"... and {len(self.problems) - len(shown)} more")
        super().__init__("\n".join(shown))


class SpaceError(SeqwmError):
    """A space that a store, a method or an environment cannot take."""


class RecipeError(SeqwmError):
    """A recipe that cannot be read or makes no sense."""


class CheckpointError(SeqwmError):
    """A run folder or checkpoint that cannot be resumed or loaded."""


class HubError(SeqwmError):
    """The Hub refused, cannot be reached, or sent what is not whole; the message names the next step."""


class UnfitEnvironmentError(SeqwmError):
    """An environment that cannot be built, or whose spaces differ from the model's."""


class RolloutError(SeqwmError):
    """An environment that raised, or a policy that gave no usable action, in the middle of a run.

    `lane` is the number of the environment that failed; None where it was the policy.
    """

    def __init__(self, message: str, lane: int | None = None) -> None:
        self.lane = lane
        super().__init__(message)


class MissingPackageError(SeqwmError):
    """An optional package that the request needs and that is not installed."""

    def __init__(self, package: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs the package '{package}': pip install {package}")


class TrainingError(SeqwmError):
    """Training cannot go on; `step` is the number of the update that failed, where one did."""

    def __init__(self, message: str, step: int | None = None) -> None:
        self.step = step
        super().__init__(message)
