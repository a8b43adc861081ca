"""Shares of sites, numbers in and numbers out: from claims, and from measured gains with their errors."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

CLAIM_CAP = 2.0
GAIN_SHARE, ERROR_SHARE = 0.6, 0.4
SMALLEST_SPREAD = 0.02
LARGEST_Z = 3.0
TEMPERATURE = 2.0
LARGEST_SHARE = 2.0
SMALLEST_CLAIM_SHARE = 0.25


def claim_cap(claims: Iterable[float]) -> float:
    """Twice the middle claim, of an even number the lower middle one; claims of 0 do not count for it.

    Cut there, k ≤ n/2 of n sites get at most 2k/(n + k) of the whole by claiming what they like where the others'
    claims are equal, and 2k/(k + ⌊n/2⌋ + 1) whatever the others claim: of the middle claim m, none of the k has
    more than 2m, and at least ⌊n/2⌋ + 1 − k others have m or more.
    """
    return CLAIM_CAP * statistics.median_low(claim for claim in claims if claim > 0)


def normalise(values: Mapping[str, float]) -> dict[str, float]:
    """Values divided by their sum, which must be above 0."""
    total = sum(values[site] for site in sorted(values))
    return {site: values[site] / total for site in values}


def robust_z(values: Sequence[float]) -> np.ndarray:
    """clip((x − median) / max(1.4826·MAD, 0.02 nats), −3, 3): (sites,)."""
    x = np.asarray(values, dtype=float)
    middle = np.median(x)
    spread = max(1.4826 * float(np.median(np.abs(x - middle))), SMALLEST_SPREAD)
    return np.asarray(np.clip((x - middle) / spread, -LARGEST_Z, LARGEST_Z))


def scores_of_gains(gains: Mapping[str, float], errors: Mapping[str, float]) -> dict[str, float]:
    """0.6·z(−gain) + 0.4·z(standard error) for each site; lower is better."""
    sites = sorted(gains)
    by_gain = robust_z([-gains[site] for site in sites])
    by_error = robust_z([errors[site] for site in sites])
    total = GAIN_SHARE * by_gain + ERROR_SHARE * by_error
    return dict(zip(sites, (float(value) for value in total), strict=True))


def weights_of_scores(claimed: Mapping[str, float], scores: Mapping[str, float]) -> dict[str, float]:
    """Weights ∝ claimed·exp(−score / TEMPERATURE), bounded."""
    tilted = normalise({site: claimed[site] * float(np.exp(-scores[site] / TEMPERATURE)) for site in claimed})
    return bound_weights(tilted, claimed)


def bound_weights(weights: Mapping[str, float], claimed: Mapping[str, float]) -> dict[str, float]:
    """Weights of sum 1 between a quarter of what is claimed and 2/k; what is cut off goes to the others in proportion.

    Found by bisection on the common factor of what lies between the bounds, which is where no bound binds
    any more after sharing out the excess again and again.
    """
    sites = sorted(weights)
    low = np.array([SMALLEST_CLAIM_SHARE * claimed[site] for site in sites])
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
