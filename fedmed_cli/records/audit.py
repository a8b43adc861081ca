"""`reports/audit-SITE.json`: what an attacker would have found in an adapter. Numbers and digests only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fedmed_cli.records.checks import check_digest, check_not_negative, check_range, check_site_name
from fedmed_cli.records.codec import Record
from fedmed_cli.records.measures import Interval, Run


@dataclass(frozen=True)
class Membership:
    """How well the change of the loss tells a training example from one of the site's own that was held out.

    `auc` is 0.5 for an attacker who guesses and 1 for one who is always right; `tpr` is the share of training examples
    found where `fpr` of the others are accused. Both with 95 % intervals over groups.
    """

    num_members: int
    num_others: int
    num_groups: int
    auc: Interval
    tpr: Interval
    fpr: float = 0.01

    def __post_init__(self) -> None:
        check_not_negative(num_members=self.num_members, num_others=self.num_others, num_groups=self.num_groups)


@dataclass(frozen=True)
class CanaryAudit:
    """What was found of the canaries: of `num_guesses` guesses whether one was trained on, `num_correct` were right.

    `epsilon_low` is a lower bound, with 95 % confidence, on the epsilon of any guarantee that could hold. `found` of
    the `num_included` have a higher score than all that were left out; `exposure` is the mean, in bits.
    """

    num_canaries: int
    num_included: int
    num_guesses: int
    num_correct: int
    epsilon_low: float
    found: int
    exposure: float

    def __post_init__(self) -> None:
        check_not_negative(**{name: getattr(self, name) for name in vars(self)})


@dataclass(frozen=True)
class Audit(Record):
    """`reports/audit-SITE.json`. `epsilon` is what was promised, with all earlier trainings; null: nothing."""

    FORMAT: ClassVar[str] = "audit"

    site: str
    round: int
    plan: str
    adapter: str
    epsilon: float | None
    delta: float | None
    membership: Membership
    canaries: CanaryAudit | None = None
    run: Run = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_site_name(self.site)
        check_digest("plan", self.plan)
        check_digest("adapter", self.adapter)
        check_range(1, 10_000_000, round=self.round)
