"""Rows that are not valid examples: what was wrong, counted by kind."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedmed_cli.errors import InputError
from fedmed_cli.events import Say

if TYPE_CHECKING:
    from fedmed_cli.records.split import BadRowCounts

DEFAULT_MAX_BAD = 0.001
MAX_LINES = 100


class BadRow(Exception):
    """A row that is not an example: its kind for the counts, and what was expected and found, without any value."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


@dataclass
class BadRows:
    """What was skipped, by kind: how many rows, and the lines of the first ones as "file:line"."""

    counts: Counter[str] = field(default_factory=Counter)
    lines: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    num_rows: int = 0
    turns_left_out: int = 0
    first: str | None = None

    def add(self, kind: str, file: int, line: int, message: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= MAX_LINES:
            self.lines[kind].append(f"{file}:{line}")
        self.first = self.first or message

    @property
    def total(self) -> int:
        return self.counts.total()

    @property
    def summary(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()))

    def check(self, max_bad: float) -> None:
        """InputError with the first bad row where more than the share `max_bad` of all rows is bad."""
        if self.first is not None and self.total > max_bad * self.num_rows:
            hint = f"{self.total} of {self.num_rows} rows are not valid examples ({self.summary}); correct them"
            hint += " and save the file as UTF-8" if self.counts["encoding"] else ""
            if max_bad and self.total < self.num_rows:
                hint += f", or skip them with --max-bad {min(1.0, self.total / self.num_rows * 1.01 + 0.001):.3f}"
            raise InputError(self.first, hint=hint)

    def report(self, say: Say) -> None:
        """Say what was skipped."""
        if self.total:
            say(f"{self.total} of {self.num_rows} rows are not valid examples and are skipped: {self.summary}")
        if self.turns_left_out:
            say(
                f"{self.turns_left_out} turns of conversations are left out: an example is the first question and "
                "its answer"
            )

    def to_record(self) -> dict[str, BadRowCounts]:
        """What was skipped, as split.json and division.json keep it."""
        from fedmed_cli.records.split import BadRowCounts

        return {kind: BadRowCounts(count, tuple(self.lines[kind])) for kind, count in sorted(self.counts.items())}
