"""What the coordinator is given, and what it knows and decides of each site."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.aggregation.methods import RULES
from fedmed_cli.intervals import Losses, paired_interval
from fedmed_cli.records.aggregate import Truncation, Weights
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.measures import Interval
from fedmed_cli.records.plan import Plan

DEFAULT_CLIP = 1.5


@dataclass(frozen=True)
class Submission:
    """A contribution that passed the gate: its adapter, its record, and the digest of that record's file."""

    adapter: Adapter
    record: Contribution
    record_digest: str


@dataclass(frozen=True)
class Examiner:
    """The coordinator's own examples: `losses(adapter)` measures one adapter on all of them.

    `groups` are what intervals resample, `homes` the site each example was taken from (empty: unknown).
    """

    digest: str
    groups: Sequence[str]
    homes: Sequence[str]
    losses: Callable[[Adapter], Losses]


@dataclass(frozen=True)
class Rules:
    """How to combine. `server_lr` None asks for a search; `clip` None switches the norm clip off."""

    method: str = "svd"
    weights: Weights = "tokens"
    robust: str = "none"
    num_malicious: int = 1
    clip: float | None = DEFAULT_CLIP
    server_lr: float | None = 1.0
    server_momentum: float = 0.0

    @property
    def measures(self) -> bool:
        """Whether these rules use the coordinator's examples where there are some."""
        return self.weights == "agentic" or self.server_lr is None


@dataclass
class Case:
    """What is known and decided of one site while the round is being combined."""

    submission: Submission
    norm: float
    clip_factor: float = 1.0
    prior: float = 0.0
    weight: float = 0.0
    rejected: bool = False
    cosines: dict[str, float] = field(default_factory=dict)
    copies: list[str] = field(default_factory=list)
    gain: Interval | None = None
    gain_error: float | None = None
    left_out_gain: Interval | None = None
    score: float | None = None
    reasons: list[str] = field(default_factory=list)


@dataclass
class Round:
    """One round being decided: its sites, how alike their updates are, and how to build and measure what they give."""

    plan: Plan
    parent: Adapter
    rules: Rules
    cases: dict[str, Case]
    gram: np.ndarray | None
    examiner: Examiner | None
    before: Adapter | None

    def coefficients(self, weights: Mapping[str, float], server_lr: float) -> list[float]:
        """η·w_i·γ_i for each site in order."""
        return [server_lr * weights.get(site, 0.0) * case.clip_factor for site, case in self.cases.items()]

    def build(self, coefficients: Sequence[float], method: str | None = None) -> tuple[Adapter, Truncation]:
        """The adapter of these coefficients, one a site, with the rules' momentum, by their method or another."""
        momentum = (self.rules.server_momentum, self.before) if self.before and self.rules.server_momentum else None
        adapters = [case.submission.adapter for case in self.cases.values()]
        return RULES[method or self.rules.method](self.plan, self.parent, adapters, coefficients, momentum)

    def norm(self, coefficients: Sequence[float]) -> float:
        """‖Σ c_i·D_i‖ over all modules together; only where there is a Gram matrix."""
        assert self.gram is not None
        c = np.asarray(coefficients)
        return math.sqrt(max(0.0, float(c @ self.gram @ c)))

    def clipped_gram(self) -> np.ndarray:
        """The Gram matrix of γ_i·D_i, (sites, sites); only where there is one."""
        assert self.gram is not None
        factors = np.array([case.clip_factor for case in self.cases.values()])
        return np.asarray(self.gram * np.outer(factors, factors))

    def losses(self, adapter: Adapter) -> Losses:
        """An adapter's losses on the coordinator's examples."""
        assert self.examiner is not None
        return self.examiner.losses(adapter)

    def against(self, first: Losses, second: Losses) -> Interval:
        """How much better `second` is than `first`."""
        assert self.examiner is not None
        return paired_interval(first, second, self.examiner.groups)
