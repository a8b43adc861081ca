"""Evidence that needs no model: norms, cosines, copies, claims; and the norm clip."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

import numpy as np

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.adapters.low_rank import gram_of_innovations, update_norm
from fedmed_cli.aggregation import weighting
from fedmed_cli.aggregation.state import Case, Submission
from fedmed_cli.errors import CombineError
from fedmed_cli.records.aggregate import Weights

CLIP_FROM_SITES = 3
PAIRWISE_UP_TO = 100
COPY_COSINE = 0.999


def collect(
    parent: Adapter, submissions: Mapping[str, Submission], clip: float | None, rule: Weights
) -> tuple[dict[str, Case], np.ndarray | None]:
    """A case for each site, in the order of names, with all that its files say; and the Gram matrix of the updates.

    The matrix is (sites, sites); above 100 sites there is none, which keeps time and memory linear. CombineError
    where no site claims any data.
    """
    sites = sorted(submissions)
    adapters = [submissions[site].adapter for site in sites]
    if len(sites) <= PAIRWISE_UP_TO:
        gram = gram_of_innovations(parent, adapters)
        norms = [math.sqrt(max(0.0, squared)) for squared in np.diag(gram)]
    else:
        gram = None
        norms = [update_norm(parent, adapter) for adapter in adapters]
    cases = {site: Case(submissions[site], norm) for site, norm in zip(sites, norms, strict=True)}
    _relate(cases, gram)
    _clip(cases, clip)
    _set_prior(cases, rule)
    return cases, gram


def _relate(cases: Mapping[str, Case], gram: np.ndarray | None) -> None:
    sites = list(cases)
    for case in cases.values():
        if case.norm == 0:
            case.reasons.append("sent an empty update: its adapter equals the one it started from")
    if gram is None:
        for case in cases.values():
            case.reasons.append(f"not compared with the others: {len(sites)} sites are more than {PAIRWISE_UP_TO}")
        return
    for i, site in enumerate(sites):
        case = cases[site]
        for j, other in enumerate(sites):
            if i != j and case.norm > 0 and cases[other].norm > 0:
                cosine = float(np.clip(gram[i, j] / (case.norm * cases[other].norm), -1, 1))
                case.cosines[other] = cosine
                if cosine >= COPY_COSINE:
                    case.copies.append(other)
        if case.copies:
            case.reasons.append(f"sent the same update as {', '.join(case.copies)} (cosine {COPY_COSINE} or more)")


def _clip(cases: Mapping[str, Case], clip: float | None) -> None:
    if clip is None or len(cases) < CLIP_FROM_SITES:
        return
    limit = clip * statistics.median(case.norm for case in cases.values())
    for case in cases.values():
        if case.norm > limit:
            case.clip_factor = limit / case.norm
            case.reasons.append(f"update norm {case.norm:.3g} is above {clip:g} x the median, shortened to {limit:.3g}")


def _set_prior(cases: Mapping[str, Case], rule: Weights) -> None:
    """What each site would count before any evidence: the rule's own weights, or its capped tokens."""
    by = rule if rule in ("examples", "uniform") else "tokens"
    claims: dict[str, float] = {}
    for site, case in cases.items():
        record = case.submission.record
        claims[site] = {"tokens": record.num_tokens, "examples": record.num_examples, "uniform": 1}[by]
        if by != "uniform":
            case.reasons.append(f"claims {int(claims[site]):,} {by} of training data")
    if by == "tokens":
        claims, cap = weighting.capped(claims)
        for case in cases.values():
            if case.submission.record.num_tokens > cap:
                case.reasons.append(f"capped at {int(cap):,} tokens, twice the median claim")
    if sum(claims.values()) <= 0:
        raise CombineError(f"the weights of all sites are 0: no site claims any {by}")
    for site, share in weighting.normalised(claims).items():
        cases[site].prior = share
