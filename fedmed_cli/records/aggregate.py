"""`aggregate.json`: the coordinator's evidence and decisions of a round."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fedmed_cli.records.checks import (
    MAX_ROUND,
    check_digest,
    check_files,
    check_key_fingerprint,
    check_known,
    check_not_negative,
    check_range,
    check_site_name,
)
from fedmed_cli.records.codec import OMIT_IF_EMPTY, Record
from fedmed_cli.records.combining import METHODS, ROBUST_MEANS, WEIGHTINGS
from fedmed_cli.records.measures import OVERALL, Interval, Loss, Run

Verdict = Literal["accepted", "clipped", "rejected"]


@dataclass(frozen=True)
class Evidence:
    """What the coordinator knows of one contribution. Gains are in nats per answer token, above 0 is better.

    `num_examples`, `num_tokens` and `reported_gain` are the site's own claims. `gain` is the coordinator's
    measurement of the adapter against the one the round started from; `left_out_gain` is what the round
    gains when this site is left out, dilution aside (None where it was not tried).
    """

    num_examples: int
    num_tokens: int
    reported_gain: float | None
    update_norm: float
    cosines: dict[str, float]
    copies: tuple[str, ...]
    gain: Interval | None
    gain_standard_error: float | None
    left_out_gain: Interval | None

    def __post_init__(self) -> None:
        check_not_negative(num_examples=self.num_examples, num_tokens=self.num_tokens, update_norm=self.update_norm)
        for name in (*self.cosines, *self.copies):
            check_site_name(name)
        for name, cosine in self.cosines.items():
            check_range(-1.000001, 1.000001, **{f"cosines.{name}": cosine})


@dataclass(frozen=True)
class SiteDecision:
    """What the coordinator decided about one contribution, from which evidence, and why.

    The update enters the result with `server_lr · weight · clip_factor`. `prior` is the weight before the
    coordinator's own evidence, `score` what moved it (lower is better).
    """

    adapter: str
    contribution: str
    verdict: Verdict
    weight: float
    prior: float
    clip_factor: float
    score: float | None
    evidence: Evidence
    reasons: tuple[str, ...]

    def __post_init__(self) -> None:
        check_digest("adapter", self.adapter)
        check_digest("contribution", self.contribution)
        check_not_negative(prior=self.prior)
        check_range(0, 2, weight=self.weight)
        check_range(0, 1, clip_factor=self.clip_factor)


@dataclass(frozen=True)
class Truncation:
    """Relative Frobenius error of the result against the exact weighted mean, over all modules and for each."""

    overall: float
    modules: dict[str, float]

    def __post_init__(self) -> None:
        for name, value in {OVERALL: self.overall, **self.modules}.items():
            check_not_negative(**{f"truncation of {name[:200]}": value})


@dataclass(frozen=True)
class CoordinatorEvaluation:
    """What the coordinator measured on the examples that it decides with. These numbers are no result."""

    examples_digest: str
    num_examples: int
    num_groups: int
    parent: Loss
    result: Loss
    server_lr_losses: dict[str, float]


@dataclass(frozen=True)
class Aggregate(Record):
    """`aggregate.json`: what a global adapter was made of."""

    FORMAT: ClassVar[str] = "aggregate"

    round: int
    plan: str
    sites_digest: str
    base_fingerprint: str
    parent: str
    adapter: str
    method: str
    weights: str
    robust: str
    num_malicious: int
    clip: float | None
    server_lr: float
    server_momentum: float
    sites: dict[str, SiteDecision]
    missing: tuple[str, ...]
    excluded: tuple[str, ...]
    examination: CoordinatorEvaluation | None
    truncation: Truncation
    files: dict[str, str]
    parent_record: str | None = field(default=None, metadata=OMIT_IF_EMPTY)
    signers: dict[str, str] = field(default_factory=dict, metadata=OMIT_IF_EMPTY)
    run: Run = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_range(1, MAX_ROUND, round=self.round)
        for name, table in (("method", METHODS), ("weights", WEIGHTINGS), ("robust", ROBUST_MEANS)):
            check_known(name, getattr(self, name), table)
        for name in ("plan", "sites_digest", "base_fingerprint", "parent", "adapter"):
            check_digest(name, getattr(self, name))
        if self.parent_record is not None:
            check_digest("parent_record", self.parent_record)
        for name in (*self.sites, *self.missing, *self.excluded, *self.signers):
            check_site_name(name)
        for name, signer in self.signers.items():
            check_key_fingerprint(f"signers.{name}", signer)
            if name not in self.sites:
                raise ValueError(f"signers.{name}: no contribution of this site is named")
        if not self.sites:
            raise ValueError("sites names no contribution")
        check_range(0, 100, server_lr=self.server_lr, clip=self.clip)
        check_range(0, 1, server_momentum=self.server_momentum)
        check_files(self.files)
        self._check_decisions()

    def _check_decisions(self) -> None:
        """ValueError where what is said of a site contradicts itself: it counts and was rejected, or was left out."""
        lists = {"sites": set(self.sites), "missing": set(self.missing), "excluded": set(self.excluded)}
        for one, other in (("sites", "missing"), ("sites", "excluded"), ("missing", "excluded")):
            for name in sorted(lists[one] & lists[other]):
                raise ValueError(f"site {name} is named by {one} and by {other}")
        for name, decision in self.sites.items():
            weight, verdict, factor = decision.weight, decision.verdict, decision.clip_factor
            # Without being rejected, a site has no weight where it claims no data, or Multi-Krum left it out.
            may_be_zero = verdict == "rejected" or decision.prior == 0 or self.robust == "multi-krum"
            if (verdict == "rejected" and weight != 0) or (weight == 0 and not may_be_zero):
                raise ValueError(f"sites.{name}: weight must be 0 where it is rejected, found {weight} and {verdict!r}")
            if verdict != "rejected" and (verdict == "clipped") != (factor < 1):
                raise ValueError(
                    f"sites.{name}: clip_factor must be below 1 where it is clipped, found {factor} and {verdict!r}"
                )
        total = math.fsum(decision.weight for decision in self.sites.values())
        if self.robust != "centred-clipping" and abs(total - 1) > 1e-6:
            raise ValueError(f"the weights of all sites must add up to 1, found {total}")
