"""`personal.json`: a hospital's private adapter, which does not leave the hospital."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fedmed_cli.records.checks import (
    MAX_ROUND,
    check_digest,
    check_files,
    check_not_negative,
    check_range,
    check_site_name,
)
from fedmed_cli.records.codec import Record
from fedmed_cli.records.measures import Interval, Run


@dataclass(frozen=True)
class Personal(Record):
    """`personal/SITE/personal.json`: how much of a hospital's own training was mixed into the global adapter.

    The adapter is the global one (`parent`, of round `round`) plus `share` of what `num_steps` steps on the hospital's
    examples changed. `losses` has the loss at each share on one half of the validation examples, which chose; `change`
    is the loss minus the global adapter's on the other half (`num_deciding` examples of `num_groups` groups).
    """

    FORMAT: ClassVar[str] = "personal"

    site: str
    round: int
    plan: str
    base_fingerprint: str
    parent: str
    adapter: str
    share: float
    losses: dict[str, float]
    change: Interval
    num_choosing: int
    num_deciding: int
    num_groups: int
    num_examples: int
    num_steps: int
    files: dict[str, str]
    run: Run = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_site_name(self.site)
        check_range(1, MAX_ROUND, round=self.round)
        for name in ("plan", "base_fingerprint", "parent", "adapter"):
            check_digest(name, getattr(self, name))
        check_files(self.files)
        check_range(0, 1, share=self.share)
        counts = ("num_choosing", "num_deciding", "num_groups", "num_examples", "num_steps")
        check_not_negative(**{name: getattr(self, name) for name in counts})
