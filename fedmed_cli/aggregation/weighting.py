"""How much each site counts: from its claims, from what the coordinator measured, or from other sites' scores."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

TOKEN_CAP = 2.0
GAIN_SHARE, ERROR_SHARE = 0.6, 0.4
SMALLEST_SPREAD = 0.02
LARGEST_Z = 3.0
TEMPERATURE = 2.0
LARGEST_SHARE = 2.0
SMALLEST_PRIOR_SHARE = 0.25


@dataclass(frozen=True)
class SelfReport:
    """What a site says about its own loss before and after, and its number of examples."""

    initial: float
    final: float
    num_examples: int


def capped(claims: Mapping[str, float]) -> tuple[dict[str, float], float]:
    """Claims cut at twice their median, and that cap: no site gains by claiming more."""
    cap = TOKEN_CAP * statistics.median(claims.values())
    return {site: min(claim, cap) for site, claim in claims.items()}, cap


def normalised(values: Mapping[str, float]) -> dict[str, float]:
    """Values divided by their sum, which must be above 0."""
    total = sum(values[site] for site in sorted(values))
    return {site: values[site] / total for site in values}


def self_reported(reports: Mapping[str, SelfReport]) -> dict[str, float]:
    """The rule of the demo that fedmed re-creates, kept for comparison: it trusts what sites say of themselves.

    imp = initial − final, dev = |imp − mean(imp)|, L = 1 − (final − min)/(max − min), V = 1 − dev/max(dev),
    halved where dev > 5, q = max(0.6·L + 0.4·V, 0.1), w ∝ 0.7·q + 0.3·n/Σn. Where all agree, L and V are 1.
    """
    sites = sorted(reports)
    final = np.array([reports[site].final for site in sites])
    gain = np.array([reports[site].initial for site in sites]) - final
    count = np.array([reports[site].num_examples for site in sites], dtype=float)
    deviation = np.abs(gain - gain.mean())
    spread = final.max() - final.min()
    by_loss = 1 - (final - final.min()) / spread if spread > 0 else np.ones(len(sites))
    by_variance = 1 - deviation / deviation.max() if deviation.max() > 0 else np.ones(len(sites))
    by_variance[deviation > 5] /= 2
    quality = np.maximum(GAIN_SHARE * by_loss + ERROR_SHARE * by_variance, 0.1)
    share = count / count.sum() if count.sum() > 0 else np.full(len(sites), 1 / len(sites))
    weight = 0.7 * quality + 0.3 * share
    return dict(zip(sites, (float(w) for w in weight / weight.sum()), strict=True))


def robust_z(values: Sequence[float]) -> np.ndarray:
    """clip((x − median) / max(1.4826·MAD, 0.02 nats), −3, 3): (sites,)."""
    x = np.asarray(values, dtype=float)
    middle = np.median(x)
    spread = max(1.4826 * float(np.median(np.abs(x - middle))), SMALLEST_SPREAD)
    return np.asarray(np.clip((x - middle) / spread, -LARGEST_Z, LARGEST_Z))


def scores(gains: Mapping[str, float], errors: Mapping[str, float]) -> dict[str, float]:
    """0.6·z(−gain) + 0.4·z(standard error) for each site; lower is better."""
    sites = sorted(gains)
    by_gain = robust_z([-gains[site] for site in sites])
    by_error = robust_z([errors[site] for site in sites])
    total = GAIN_SHARE * by_gain + ERROR_SHARE * by_error
    return dict(zip(sites, (float(value) for value in total), strict=True))


def scored(
    prior: Mapping[str, float], score: Mapping[str, float], temperature: float = TEMPERATURE
) -> dict[str, float]:
    """Weights ∝ prior·exp(−score / temperature), bounded."""
    tilted = normalised({site: prior[site] * float(np.exp(-score[site] / temperature)) for site in prior})
    return bounded(tilted, prior)


def bounded(weights: Mapping[str, float], prior: Mapping[str, float]) -> dict[str, float]:
    """Weights of sum 1 between a quarter of the site's prior and 2/k; what is cut off goes to the others in proportion.

    Found by bisection on the common factor of what lies between the bounds, which is where no bound binds
    any more after sharing out the excess again and again.
    """
    sites = sorted(weights)
    low = np.array([SMALLEST_PRIOR_SHARE * prior[site] for site in sites])
    high = np.full(len(sites), min(1.0, LARGEST_SHARE / len(sites)))
    low = np.minimum(low, high)
    raw = np.array([max(weights[site], 1e-300) for site in sites])
    under, over = 0.0, 1.0
    while np.clip(raw * over, low, high).sum() < 1 and over < 1e300:
        over *= 2
    for _ in range(200):
        factor = (under + over) / 2
        if np.clip(raw * factor, low, high).sum() < 1:
            under = factor
        else:
            over = factor
    result = np.clip(raw * over, low, high)
    result /= result.sum()
    return dict(zip(sites, (float(w) for w in result), strict=True))
