"""Robust means of updates, computed from their Gram matrix alone: each gives one coefficient a site."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedmed_cli.errors import CombineError

WEISZFELD_STEPS = 200
CENTRED_CLIPPING_STEPS = 5
SMOOTHING = 1e-6
TOLERANCE = 1e-12

Mean = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def geometric_median(gram: np.ndarray, weights: np.ndarray, num_malicious: int) -> np.ndarray:
    """The point with the least weighted sum of distances, by smoothed Weiszfeld steps (RFA, arXiv 1912.13445).

    gram: (sites, sites), weights: (sites,) with sum 1. CombineError unless n ≥ 2f + 1.
    """
    _check_number("geometric-median", len(weights), 2 * num_malicious + 1, num_malicious)
    smallest = SMOOTHING * np.sqrt(max(float(np.diag(gram).max()), 0.0))
    coefficients = weights
    for _ in range(WEISZFELD_STEPS):
        pull: np.ndarray = weights / np.maximum(distances_to(gram, coefficients), max(smallest, 1e-300))
        new: np.ndarray = pull / pull.sum()
        if np.abs(new - coefficients).max() < TOLERANCE:
            return new
        coefficients = new
    return coefficients


def multi_krum(gram: np.ndarray, weights: np.ndarray, num_malicious: int) -> np.ndarray:
    """The weighted mean of the n − f updates nearest to their n − f − 2 nearest others (arXiv 1703.02757).

    CombineError unless n ≥ 2f + 3. Ties go by the order of the sites.
    """
    count = len(weights)
    _check_number("multi-krum", count, 2 * num_malicious + 3, num_malicious)
    norms = np.diag(gram)
    squared = np.maximum(norms[:, None] + norms[None, :] - 2 * gram, 0.0)
    np.fill_diagonal(squared, np.inf)
    scores = np.sort(squared, axis=1)[:, : count - num_malicious - 2].sum(axis=1)
    chosen = np.argsort(scores, kind="stable")[: count - num_malicious]
    coefficients = np.zeros(count)
    coefficients[chosen] = weights[chosen]
    if coefficients.sum() <= 0:
        raise CombineError("multi-krum: the sites it chose have weight 0")
    return np.asarray(coefficients / coefficients.sum())


def centred_clipping(gram: np.ndarray, weights: np.ndarray, num_malicious: int) -> np.ndarray:
    """v ← v + Σ w_i·clip(D_i − v, τ) from v = 0, five times (arXiv 2012.10333); τ is the median norm.

    The coefficients need not sum to 1. CombineError unless n ≥ 2f + 1.
    """
    _check_number("centred-clipping", len(weights), 2 * num_malicious + 1, num_malicious)
    radius = float(np.median(np.sqrt(np.maximum(np.diag(gram), 0.0))))
    coefficients = np.zeros(len(weights))
    for _ in range(CENTRED_CLIPPING_STEPS):
        distance = distances_to(gram, coefficients)
        steps = weights * np.minimum(1.0, radius / np.maximum(distance, 1e-300))
        coefficients = coefficients * (1 - steps.sum()) + steps
    return coefficients


def distances_to(gram: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """‖D_i − Σ_j a_j·D_j‖ for each site: (sites,)."""
    mixed = gram @ coefficients
    squared = np.diag(gram) - 2 * mixed + coefficients @ mixed
    return np.asarray(np.sqrt(np.maximum(squared, 0.0)))


def _check_number(name: str, num_sites: int, fewest: int, num_malicious: int) -> None:
    if num_sites < fewest:
        raise CombineError(
            f"{name} against {num_malicious} malicious sites needs at least {fewest} contributions, found {num_sites}",
            hint="lower --num-malicious, or take another --robust",
        )


# The rows of `records/combining.ROBUST_MEANS`, without that of the weighted mean itself.
MEANS: dict[str, Mean] = {
    "geometric-median": geometric_median,
    "multi-krum": multi_krum,
    "centred-clipping": centred_clipping,
}
