"""The coordinator: from contributions and evidence to weights and verdicts, each with its reasons in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from fedmed_cli.adapters import CONTRIBUTION_NAME, Adapter, AdapterFolder
from fedmed_cli.aggregation.factors import gram_of_innovations
from fedmed_cli.aggregation.rules import RULES
from fedmed_cli.digests import sha256_bytes
from fedmed_cli.errors import CombineError
from fedmed_cli.records import Plan, SiteDecision, Truncation

DEFAULT_CLIP = 1.5
CLIP_FROM_SITES = 3
TOKEN_CAP = 2.0
PAIRWISE_UP_TO = 100


@dataclass(frozen=True)
class Combination:
    """A combined adapter, what was decided about each site, and what the plan's rank cut away."""

    adapter: Adapter
    decisions: dict[str, SiteDecision]
    truncation: Truncation


def site_weights(rule: str, folders: Mapping[str, AdapterFolder]) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Weights that sum to 1, and the reasons in words, for "tokens", "examples" or "uniform".

    What a site says about its own amount of data is a claim: tokens above twice the median are capped.
    """
    reasons: dict[str, list[str]] = {site: [] for site in folders}
    claims: dict[str, float] = {}
    for site, folder in folders.items():
        record = folder.contribution
        assert record is not None
        if rule == "uniform":
            claims[site] = 1.0
        else:
            claims[site] = float(record.num_tokens if rule == "tokens" else record.num_examples)
            reasons[site].append(f"claims {int(claims[site]):,} {rule} of training data")
    if rule == "tokens":
        cap = TOKEN_CAP * statistics.median(claims.values())
        for site, claim in claims.items():
            if claim > cap:
                reasons[site].append(f"capped at {int(cap):,} tokens, twice the median claim")
                claims[site] = cap
    total = math.fsum(claims.values())
    if total <= 0:
        raise CombineError(f"the weights of all sites are 0: no site claims any {rule}")
    return {site: claim / total for site, claim in claims.items()}, reasons


def combine(
    plan: Plan,
    parent: Adapter,
    folders: Mapping[str, AdapterFolder],
    *,
    method: str = "svd",
    weights: str = "tokens",
    clip: float | None = DEFAULT_CLIP,
    server_lr: float = 1.0,
) -> Combination:
    """Combine contributions that passed the gate. The result does not depend on the order of `folders`.

    From three sites on, an update longer than `clip` times the median length is shortened to that.
    """
    sites = sorted(folders)
    adapters = [folders[site].adapter for site in sites]
    weight, reasons = site_weights(weights, {site: folders[site] for site in sites})
    gram = gram_of_innovations(parent, adapters)
    norms = {site: math.sqrt(max(0.0, gram[i, i])) for i, site in enumerate(sites)}
    factor = dict.fromkeys(sites, 1.0)
    if clip is not None and len(sites) >= CLIP_FROM_SITES:
        limit = clip * statistics.median(norms.values())
        for site in sites:
            if norms[site] > limit:
                factor[site] = limit / norms[site]
                reasons[site].append(
                    f"update norm {norms[site]:.3g} is above {clip:g} x the median, shortened to {limit:.3g}"
                )
    for site in sites:
        if norms[site] == 0:
            reasons[site].append("sent an empty update: its adapter equals the one it started from")
    adapter, truncation = RULES[method](
        plan, parent, adapters, [server_lr * weight[site] * factor[site] for site in sites]
    )
    decisions = {}
    for i, site in enumerate(sites):
        record = folders[site].contribution
        assert record is not None
        cosines = {
            other: float(gram[i, j] / (norms[site] * norms[other]))
            for j, other in enumerate(sites)
            if i != j and len(sites) <= PAIRWISE_UP_TO and norms[site] > 0 and norms[other] > 0
        }
        decisions[site] = SiteDecision(
            adapter=folders[site].adapter.digest,
            contribution=sha256_bytes(folders[site].files[CONTRIBUTION_NAME]),
            weight=weight[site],
            verdict="clipped" if factor[site] < 1 else "accepted",
            clip_factor=factor[site],
            update_norm=norms[site],
            num_examples=record.num_examples,
            num_tokens=record.num_tokens,
            cosines=cosines,
            reasons=tuple(reasons[site]),
        )
    return Combination(adapter, decisions, truncation)
