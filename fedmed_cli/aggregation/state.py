"""What the coordinator is given, and what it knows and decides of each site."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.aggregation import shares
from fedmed_cli.aggregation.methods import Combine, Momentum
from fedmed_cli.intervals import Losses, paired_interval
from fedmed_cli.records.aggregate import Truncation, Verdict
from fedmed_cli.records.combining import METHODS, WEIGHTINGS
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.measures import Interval
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.scores import Scores


@dataclass(frozen=True)
class AcceptedContribution:
    """A contribution that passed the gate: its adapter, its record, and the digest of that record's file."""

    adapter: Adapter
    record: Contribution
    record_digest: str


@dataclass(frozen=True)
class Evaluator:
    """The coordinator's own examples: `losses(adapter)` measures one adapter on all of them.

    `groups` are what intervals resample, `example_sites` the site each example was taken from (empty: unknown).
    """

    digest: str
    groups: Sequence[str]
    example_sites: Sequence[str]
    losses: Callable[[Adapter], Losses]

    def gain(self, first: Losses, second: Losses) -> Interval:
        """How much better `second` is than `first`, in nats per answer token."""
        return paired_interval(first, second, self.groups)


@dataclass(frozen=True)
class AggregationSettings:
    """How to combine, by the names of `records/combining.py`.

    `server_lr` None asks for a search; `clip` None switches the norm clip off.
    """

    method: str = "svd"
    weights: str = "tokens"
    robust: str = "none"
    num_malicious: int = 1
    clip: float | None = 1.5
    server_lr: float | None = 1.0
    server_momentum: float = 0.0

    @property
    def measures(self) -> bool:
        """Whether the coordinator's examples are used where there are some."""
        return WEIGHTINGS[self.weights].measures or self.server_lr is None


def default_server_lr(method: str, weights: str) -> float | None:
    """A search (None) where the coordinator measures anyway and the method takes another step, else 1.

    On MedQuAD the search won, and cost no site anything (docs/benchmarks.md).
    """
    return None if METHODS[method].takes_step and WEIGHTINGS[weights].measures else 1.0


@dataclass
class SiteState:
    """What is known and decided of one site while the round is being combined.

    `claimed_weight` is the site's share by claims of data, before any evidence; `gain` and `left_out_gain` are in
    nats per answer token.
    """

    contribution: AcceptedContribution
    norm: float
    clip_factor: float = 1.0
    claimed_weight: float = 0.0
    weight: float = 0.0
    rejected: bool = False
    cosines: dict[str, float] = field(default_factory=dict)
    copies: list[str] = field(default_factory=list)
    gain: Interval | None = None
    gain_error: float | None = None
    left_out_gain: Interval | None = None
    score: float | None = None
    reasons: list[str] = field(default_factory=list)

    def reject(self, reason: str) -> None:
        """Leave the site's update out of the round."""
        self.rejected = True
        self.reasons.append(f"rejected: {reason}")

    @property
    def verdict(self) -> Verdict:
        if self.rejected:
            return "rejected"
        return "clipped" if self.clip_factor < 1 else "accepted"


@dataclass
class RoundState:
    """One round being decided: its sites, how similar their updates are, and how to build and measure what they give.

    `gram` holds the inner products of the updates, (sites, sites); None above 100 sites.
    """

    plan: Plan
    parent: Adapter
    sites: dict[str, SiteState]
    gram: np.ndarray | None
    evaluator: Evaluator | None = None
    scores: Sequence[Scores] = ()
    momentum: Momentum = None

    @property
    def accepted(self) -> dict[str, SiteState]:
        """The sites that were not rejected so far."""
        return {name: site for name, site in self.sites.items() if not site.rejected}

    def share_among_copies(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Weights of sum 1 in which those who sent the same update share one weight."""
        copies = {name: sum(copy in weights for copy in self.sites[name].copies) for name in weights}
        return shares.normalise({name: weight / (1 + copies[name]) for name, weight in weights.items()})

    def claimed_weights(self) -> dict[str, float]:
        """The accepted sites' shares of claimed data, of sum 1; copies share one weight."""
        return self.share_among_copies({name: site.claimed_weight for name, site in self.accepted.items()})

    def coefficients(self, weights: Mapping[str, float], server_lr: float) -> list[float]:
        """η·w_i·γ_i for each site in order."""
        return [server_lr * weights.get(name, 0.0) * site.clip_factor for name, site in self.sites.items()]

    def build(self, combine: Combine, coefficients: Sequence[float]) -> tuple[Adapter, Truncation]:
        """The adapter of these coefficients, one a site, with the round's momentum."""
        adapters = [site.contribution.adapter for site in self.sites.values()]
        return combine(self.plan, self.parent, adapters, coefficients, self.momentum)

    def norm(self, coefficients: Sequence[float]) -> float:
        """‖Σ c_i·D_i‖ over all modules together; only where there is a Gram matrix."""
        assert self.gram is not None
        c = np.asarray(coefficients)
        return math.sqrt(max(0.0, float(c @ self.gram @ c)))

    def clipped_gram(self) -> np.ndarray:
        """The Gram matrix of γ_i·D_i, (sites, sites); only where there is one."""
        assert self.gram is not None
        factors = np.array([site.clip_factor for site in self.sites.values()])
        return np.asarray(self.gram * np.outer(factors, factors))
