"""What is promised about privacy: the statement in a contribution, and the lines of a hospital's ledger."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fedmed_cli.records.checks import check_digest, check_known, check_range, check_site_name
from fedmed_cli.records.codec import OMIT_IF_EMPTY, Record

UnitOfPrivacy = Literal["example", "group"]

_ACCOUNTANT = re.compile(r"[A-Za-z0-9 .,-]{1,100}")
NO_GUARANTEE = "No formal privacy guarantee holds: the adapter may reveal the contents of individual records."
# Fields of a contribution that are computed from records and not noised.
OUTSIDE = (
    "num_examples",
    "num_skipped",
    "num_tokens",
    "num_truncated",
    "validation_after",
    "validation_before",
)


LARGEST_DELTA = 1e-5  # at which an epsilon counts where a plan limits it


@dataclass(frozen=True)
class Mechanism:
    """One training by DP-SGD: `steps` steps, in each of which every unit takes part with `sampling_rate`.

    The noise's standard deviation is `noise_multiplier` times the norm to which a unit's gradient is shortened.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        check_range(1e-12, 1, sampling_rate=self.sampling_rate)
        check_range(1e-6, 1e6, noise_multiplier=self.noise_multiplier)
        check_range(1, 10_000_000, steps=self.steps)


@dataclass(frozen=True)
class Privacy:
    """An (epsilon, delta) guarantee for each unit whose records were trained on; add or remove one unit.

    `epsilon` is of this training alone, `total_epsilon` of all trainings on these records that the hospital's ledger
    knows, this one included; None where one of them had no guarantee. `outside` names the fields of the contribution
    that the guarantee does not cover.
    """

    epsilon: float
    total_epsilon: float | None
    delta: float
    unit: UnitOfPrivacy
    max_grad_norm: float
    mechanism: Mechanism
    accountant: str
    outside: tuple[str, ...] = OUTSIDE

    def __post_init__(self) -> None:
        check_range(0, 1e6, epsilon=self.epsilon, total_epsilon=self.total_epsilon)
        check_range(1e-300, 0.5, delta=self.delta)
        check_range(1e-12, 1e12, max_grad_norm=self.max_grad_norm)
        if not _ACCOUNTANT.fullmatch(self.accountant):
            raise ValueError("accountant must be 1 to 100 letters, digits, spaces and marks of a version")
        for name in self.outside:
            check_known("outside", name, OUTSIDE)
        if self.total_epsilon is not None and self.total_epsilon < self.epsilon:
            raise ValueError(f"total_epsilon {self.total_epsilon:g} is below epsilon {self.epsilon:g}")

    def __str__(self) -> str:
        total = "unbounded" if self.total_epsilon is None else f"{self.total_epsilon:.3g}"
        return (
            f"({self.epsilon:.3g}, {self.delta:.2g})-differential privacy for each {self.unit}; "
            f"with all earlier trainings on these records epsilon is {total}"
        )


@dataclass(frozen=True)
class LedgerEntry(Record):
    """A line of `privacy.jsonl`: one training that touched a hospital's records. Numbers and digests only.

    `data` is the digest of the training examples and `sketch` their least 64-bit digests, by which another set that
    shares many of them is recognised. `group_by` is the column whose groups are the unit. Without a `mechanism` the
    training had no guarantee. `previous` is the SHA-256 of the line before, 64 zeros in the first.
    """

    FORMAT: ClassVar[str] = "ledger"

    site: str
    plan: str
    round: int
    data: str
    sketch: tuple[str, ...]
    num_units: int
    unit: UnitOfPrivacy
    mechanism: Mechanism | None
    adapter: str
    created: str
    previous: str
    group_by: str | None = field(default=None, metadata=OMIT_IF_EMPTY)

    def __post_init__(self) -> None:
        check_site_name(self.site)
        for name in ("plan", "data", "adapter", "previous"):
            check_digest(name, getattr(self, name))
        check_range(1, 10_000_000, round=self.round)
