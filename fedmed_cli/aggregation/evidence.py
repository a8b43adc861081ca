"""Evidence that needs no model: norms, cosines, copies, claims; and the norm clip."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.adapters.folder import ContributionFolder
from fedmed_cli.adapters.low_rank import cut_to_rank, gram_of_innovations, update_norm
from fedmed_cli.aggregation import shares
from fedmed_cli.aggregation.state import AcceptedContribution, SiteState
from fedmed_cli.errors import CombineError

LARGEST_RATIO = 10.0  # of the longer of two updates to the shorter
PAIRWISE_UP_TO = 100
# Honest updates reach 0.44 to 0.70 between unlike hospitals on SmolLM2-135M, and 0.78 between two halves of one data
# set with large batches on a small model. Noise of 14 % of an update brings its copy down to 0.99.
COPY_COSINE = 0.99
EMPTY_BELOW = 1e-3  # of the middle norm, of an even number the lower middle one


def collect(
    parent: Adapter,
    contributions: Mapping[str, AcceptedContribution],
    clip: float | None,
    claim: Literal["tokens", "examples"] | None,
) -> tuple[dict[str, SiteState], np.ndarray | None]:
    """The state of each site, in the order of names, with all that its files say; and the updates' Gram matrix.

    The matrix is (sites, sites); above 100 sites there is none, which keeps time and memory linear. `claim` is what
    sites count by before any evidence (None: all alike). CombineError where no site claims any data.
    """
    names = sorted(contributions)
    adapters = [contributions[name].adapter for name in names]
    if len(names) <= PAIRWISE_UP_TO:
        gram = gram_of_innovations(parent, adapters)
        norms = [math.sqrt(max(0.0, squared)) for squared in np.diag(gram)]
    else:
        gram = None
        norms = [update_norm(parent, adapter) for adapter in adapters]
    sites = {name: SiteState(contributions[name], norm) for name, norm in zip(names, norms, strict=True)}
    of_updates = norms_of_updates(parent, contributions, dict(zip(names, norms, strict=True)))
    _reject_empty_updates(sites, of_updates)
    _compare_updates(sites, gram)
    _shorten_updates(sites, norm_limit(list(of_updates.values()), clip))
    _set_claimed_weights(sites, claim)
    return sites, gram


def norms_of_updates(
    parent: Adapter,
    contributions: Mapping[str, AcceptedContribution | ContributionFolder],
    norms: Mapping[str, float],
) -> dict[str, float]:
    """The norms of those sites that sent an update at all: not what they started from, nor one of norm 0."""
    found = {}
    for name, norm in norms.items():
        one = contributions[name]
        if norm > 0 and one.record.adapter != cut_to_rank(parent, one.adapter.max_rank).digest:
            found[name] = norm
    return found


def _reject_empty_updates(sites: Mapping[str, SiteState], norms: Mapping[str, float]) -> None:
    """No update, or one of next to nothing: it would dilute the others."""
    middle = statistics.median_low(norms.values()) if norms else 0.0
    for name, site in sites.items():
        if norms.get(name, 0.0) <= EMPTY_BELOW * middle:
            site.reject("it sent an empty update, which would only dilute the others")


def _compare_updates(sites: Mapping[str, SiteState], gram: np.ndarray | None) -> None:
    names = list(sites)
    if gram is None:
        for site in sites.values():
            site.reasons.append(f"not compared with the others: {len(names)} sites are more than {PAIRWISE_UP_TO}")
        return
    for i, site in enumerate(sites.values()):
        for j, name in enumerate(names):
            if i != j and site.norm > 0 and sites[name].norm > 0:
                cosine = float(np.clip(gram[i, j] / (site.norm * sites[name].norm), -1, 1))
                site.cosines[name] = cosine
                if cosine >= COPY_COSINE:
                    site.copies.append(name)
        if site.copies:
            site.reasons.append(f"sent the same update as {', '.join(site.copies)} (cosine {COPY_COSINE} or more)")


def norm_limit(norms: Sequence[float], clip: float | None) -> float:
    """The norm above which an update is shortened: `clip` times the middle one, of an even number the lower middle one.

    `norms` are those of sites that sent an update at all. Half of an even number may lie, and would move a mean of
    both. Of two sites nobody can say which one is right: there the longer update may have at most LARGEST_RATIO times
    the norm of the other.
    """
    if clip is None or len(norms) < 2:
        return math.inf
    return (clip if len(norms) > 2 else max(clip, LARGEST_RATIO)) * statistics.median_low(norms)


def _shorten_updates(sites: Mapping[str, SiteState], limit: float) -> None:
    for site in sites.values():
        if site.norm > limit:
            site.clip_factor = limit / site.norm
            site.reasons.append(
                f"update norm {site.norm:.3g} is above {limit:.3g}, the most that --clip allows: shortened to that"
            )


def _set_claimed_weights(sites: Mapping[str, SiteState], claim: Literal["tokens", "examples"] | None) -> None:
    if claim is None:
        for site in sites.values():
            site.claimed_weight = 1 / len(sites)
        return
    claims: dict[str, float] = {}
    for name, site in sites.items():
        record = site.contribution.record
        claims[name] = record.num_tokens if claim == "tokens" else record.num_examples
        site.reasons.append(f"claims {int(claims[name]):,} {claim} of training data")
    if not any(claims.values()):
        raise CombineError(f"the weights of all sites are 0: no site claims any {claim}")
    cap = shares.claim_cap(claims.values())
    for name, site in sites.items():
        if claims[name] == 0:
            site.reject(f"it claims no {claim}, so it has no weight")
        elif claims[name] > cap:
            site.reasons.append(f"capped at {int(cap):,} {claim}, twice the median claim")
    for name, share in shares.normalise({name: min(number, cap) for name, number in claims.items()}).items():
        sites[name].claimed_weight = share
