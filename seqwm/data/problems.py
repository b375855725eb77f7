"""What can be wrong with logged data, and where: the record that validation returns and import refuses with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from seqwm.core.errors import DataError

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One place in one file that is wrong.

    Attributes:
        check: the class of the problem in kebab case, for example 'not-finite'; the full list stands in
            `seqwm.data.validate.CHECKS`.
        found: what stands there.
        expected: what should.
        mend: what the reader can do about it.
        file, episode, step, column: the place, as far as it is known.
        severity: an error refuses the import, a warning is told.
    """

    check: str
    found: str
    expected: str
    mend: str
    file: str | None = None
    episode: int | str | None = None
    step: int | None = None
    column: str | None = None
    severity: Severity = "error"

    def __str__(self) -> str:
        place = [self.file] if self.file else []
        place += [
            f"{name} {value}" for name, value in (("episode", self.episode), ("step", self.step)) if value is not None
        ]
        place += [f"column '{self.column}'"] if self.column else []
        where = ", ".join(place)
        return f"{where}{': ' if where else ''}[{self.check}] found {self.found}; expected {self.expected}; {self.mend}"

    def to_json(self) -> dict[str, Any]:
        """The record as JSON, empty places left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(slots=True)
class Findings:
    """Where readers and checks put what they find.

    Import runs strict: the first error raises `DataError` and nothing is written. Validation collects them all.
    """

    strict: bool = True
    problems: list[Problem] = field(default_factory=list)

    def add(self, problem: Problem) -> None:
        """Keep a problem; under `strict` an error raises `DataError` at once."""
        self.problems.append(problem)
        if self.strict and problem.severity == "error":
            raise DataError([problem])

    def extend(self, problems: Iterator[Problem] | list[Problem]) -> None:
        """Keep several; under `strict` all of them are in the error."""
        kept = list(problems)
        self.problems += kept
        if self.strict and any(p.severity == "error" for p in kept):
            raise DataError([p for p in kept if p.severity == "error"])

    @property
    def errors(self) -> list[Problem]:
        """The problems that refuse the import."""
        return [p for p in self.problems if p.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        """The problems that are told and no more."""
        return [p for p in self.problems if p.severity == "warning"]
