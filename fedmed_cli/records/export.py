"""`export.json`: what an exported folder holds, where it comes from and how it was checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fedmed_cli.records.checks import check_digest, check_not_negative
from fedmed_cli.records.codec import Record
from fedmed_cli.records.measures import Run


@dataclass(frozen=True)
class Comparison:
    """Log-probabilities of answer tokens, in nats, by the export's consumer beside those of PEFT in `reference_dtype`.

    `effect` is the mean absolute change that the adapter makes under PEFT, `effect_found` what the export makes of it,
    and `slope` the least squares slope of the second over the first, token by token.
    """

    num_answers: int
    num_tokens: int
    reference_dtype: str
    mean_difference: float
    largest_difference: float
    effect: float
    effect_found: float
    slope: float


@dataclass(frozen=True)
class Export(Record):
    """`export.json`. `files` holds the SHA-256 of each other file; `record` is that of the adapter's own record."""

    FORMAT: ClassVar[str] = "export"

    form: str
    adapter: str
    base_fingerprint: str
    plan: str
    record: str | None
    round: int | None
    site: str | None
    files: dict[str, str]
    comparison: Comparison
    checked: str
    not_checked: str
    run: Run = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("adapter", "base_fingerprint", "plan"):
            check_digest(name, getattr(self, name))
        for name, digest in self.files.items():
            check_digest(f"files.{name[:80]}", digest)
        if self.record is not None:
            check_digest("record", self.record)
        check_not_negative(num_answers=self.comparison.num_answers, num_tokens=self.comparison.num_tokens)
