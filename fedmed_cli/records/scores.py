"""`scores/SITE.json`: what a hospital measured of all contributions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fedmed_cli.records.checks import MAX_ROUND, check_digest, check_not_negative, check_range, check_site_name
from fedmed_cli.records.codec import Record
from fedmed_cli.records.measures import Run


@dataclass(frozen=True)
class SiteScore:
    """One adapter's gain on a site's validation examples against the adapter the round started from."""

    gain: float
    standard_error: float

    def __post_init__(self) -> None:
        check_not_negative(standard_error=self.standard_error)


@dataclass(frozen=True)
class Scores(Record):
    """`scores/SITE.json`: what a hospital measured of all contributions; `gains` is by adapter digest."""

    FORMAT: ClassVar[str] = "scores"

    site: str
    round: int
    plan: str
    base_fingerprint: str
    parent: str
    examples_digest: str
    num_examples: int
    num_groups: int
    gains: dict[str, SiteScore]
    run: Run = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_site_name(self.site)
        for name in ("plan", "base_fingerprint", "parent", "examples_digest"):
            check_digest(name, getattr(self, name))
        for name in self.gains:
            check_digest("gains", name)
        check_range(1, MAX_ROUND, round=self.round)
        check_not_negative(num_examples=self.num_examples, num_groups=self.num_groups)
