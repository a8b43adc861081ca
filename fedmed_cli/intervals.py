"""Losses per example into means, standard errors and paired intervals, all over groups of examples."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmed_cli.records.measures import Interval, Loss

NUM_RESAMPLES, SEED = 2000, 0
FEW_GROUPS = 30
_NORMAL = 1.959963984540054  # the 97.5 % quantile


@dataclass(frozen=True)
class Losses:
    """Per example: `nll` summed over its supervised tokens, in nats, and how many tokens those are."""

    nll: np.ndarray
    num_tokens: np.ndarray

    @property
    def mean(self) -> float:
        """Nats per supervised token over all examples together."""
        return float(self.nll.sum() / self.num_tokens.sum())

    def take(self, indices: Sequence[int]) -> Losses:
        chosen = np.asarray(indices, dtype=int)
        return Losses(self.nll[chosen], self.num_tokens[chosen])


def _group_numbers(groups: Sequence[str]) -> tuple[np.ndarray, int]:
    names, numbers = np.unique(np.asarray(groups), return_inverse=True)
    return numbers, len(names)


def summarize(losses: Losses, groups: Sequence[str]) -> Loss:
    """Mean loss with its standard error: linearised ratio estimator over groups (Cochran, 1977, ch. 6 and 9)."""
    numbers, count = _group_numbers(groups)
    mean = losses.mean
    residuals = np.bincount(numbers, weights=losses.nll - mean * losses.num_tokens, minlength=count)
    total = float(losses.num_tokens.sum())
    error = float(np.sqrt(count / (count - 1) * np.sum(residuals**2)) / total) if count > 1 else 0.0
    return Loss(mean, error, len(losses.nll), count, int(total))


def standard_error(first: Losses, second: Losses, groups: Sequence[str]) -> float:
    """Standard error of first minus second, nats per token, over groups (paired by example)."""
    return summarize(Losses(first.nll - second.nll, first.num_tokens), groups).standard_error


def paired_interval(first: Losses, second: Losses, groups: Sequence[str]) -> Interval:
    """First minus second, nats per token, with a 95 % interval from a bootstrap of groups.

    Both must be measured on the same examples in the same order (ValueError where token counts differ).
    """
    if not np.array_equal(first.num_tokens, second.num_tokens):
        raise ValueError("paired losses must be of the same examples")
    return ratio_interval(first.nll - second.nll, first.num_tokens, first.num_tokens, groups)


def share_of_gain(start: Losses, one: Losses, bound: Losses, groups: Sequence[str]) -> Interval | None:
    """How much of the gain of `bound` on `start` `one` has, with a 95 % interval that resamples nothing.

    The interval is Fieller's (1954) for a ratio of two sums over groups, with Student's quantile as `ratio_interval`
    has it: where the bound's gain is near 0 a bootstrap's is far too narrow. None where that gain is not above 0 beyond
    chance, or there is one group.
    """
    numbers, count = _group_numbers(groups)
    if count < 2:
        return None
    parts = (start.nll - one.nll, start.nll - bound.nll, start.num_tokens)
    gain, whole, tokens = (np.bincount(numbers, weights=part, minlength=count) for part in parts)
    gain_rest, whole_rest = (part - part.sum() / tokens.sum() * tokens for part in (gain, whole))
    factor = student(tokens.sum() ** 2 / np.sum(tokens**2) - 1) ** 2 * count / (count - 1)
    # A share s is inside where (Σ gain − s·Σ whole)² ≤ factor · Σ (gain_rest − s·whole_rest)², or a·s² − 2b·s + c ≤ 0.
    a = whole.sum() ** 2 - factor * whole_rest @ whole_rest
    b = gain.sum() * whole.sum() - factor * gain_rest @ whole_rest
    c = gain.sum() ** 2 - factor * gain_rest @ gain_rest
    if whole.sum() <= 0 or a <= 0:
        return None
    half = math.sqrt(max(0.0, b * b - a * c)) / a
    return Interval(float(gain.sum() / whole.sum()), float(b / a - half), float(b / a + half))


def mean_interval(values: np.ndarray, groups: Sequence[str]) -> Interval:
    """The mean of one value an example, with a 95 % interval from a bootstrap of groups."""
    ones = np.ones(len(values))
    return ratio_interval(values, ones, ones, groups)


def ratio_interval(
    numerator: np.ndarray, denominator: np.ndarray, sizes: np.ndarray, groups: Sequence[str]
) -> Interval:
    """Σ numerator / Σ denominator over examples, with a 95 % interval from a bootstrap that resamples groups.

    A percentile bootstrap is too narrow where groups are few or unlike in size (80 % instead of 95 % with five). So
    its distribution is stretched: to the jackknife's standard error, and from the normal quantile to Student's
    at G' − 1 degrees of freedom, where G' = (Σ sizes)² / Σ sizes² over groups is their effective number (Kish, 1965;
    for clusters Carter, Schnepel and Steigerwald, 2017). A simulation in the tests covers 95 % ± 2. One group alone
    says nothing about others: then the interval is the point itself, and callers say how many groups there were.
    """
    numbers, count = _group_numbers(groups)
    parts = np.stack([np.bincount(numbers, weights=part, minlength=count) for part in (numerator, denominator)], 1)
    total = parts.sum(axis=0)  # parts: (groups, 2)
    mean = float(total[0] / total[1])
    if count < 2:
        return Interval(mean, mean, mean)
    resampled = draw_groups(count) @ parts
    deviations = resampled[:, 0] / resampled[:, 1] - mean
    spread = deviations.std()
    if not spread > 0:
        return Interval(mean, mean, mean)
    left_out = total - parts
    ratios = left_out[:, 0] / left_out[:, 1]
    jackknife = np.sqrt((count - 1) / count * np.sum((ratios - ratios.mean()) ** 2))
    size = np.bincount(numbers, weights=sizes, minlength=count)
    effective = size.sum() ** 2 / np.sum(size**2)
    low, high = np.percentile(deviations, [2.5, 97.5]) * student(effective - 1) / _NORMAL * jackknife / spread
    return Interval(mean, float(mean + low), float(mean + high))


@functools.lru_cache(maxsize=2)  # 10,000 groups take 160 MB
def draw_groups(count: int) -> np.ndarray:
    """How often each resample takes each group: (NUM_RESAMPLES, count)."""
    generator = np.random.Generator(np.random.Philox(SEED))
    return generator.multinomial(count, np.full(count, 1 / count), size=NUM_RESAMPLES).astype(np.float64)


def student(freedom: float) -> float:
    """The 97.5 % quantile of Student's t; degrees of freedom need not be whole, and count as 1 at least."""
    from scipy.special import stdtrit  # takes a tenth of a second, which only measuring should cost

    return float(stdtrit(max(freedom, 1.0), 0.975))


def wilson(count: int, total: int) -> Interval:
    """A share of `total` independent yes-or-no outcomes with its 95 % interval (Wilson, 1927)."""
    from scipy.stats import binomtest  # takes a second, which only measuring should cost

    interval = binomtest(count, total).proportion_ci(method="wilson")
    return Interval(count / total, float(interval.low), float(interval.high))


def paired_shares(only_first: int, only_second: int, total: int) -> Interval:
    """Difference of two shares of yes-or-no outcomes on the same `total` questions, with its 95 % interval.

    `only_first` and `only_second` count where just one of them holds. Bonett and Price (2012): one is added to both, so
    that no interval is empty where few questions tell the two apart.
    """
    first, second = (only_first + 1) / (total + 2), (only_second + 1) / (total + 2)
    middle = first - second
    half = _NORMAL * math.sqrt((first + second - middle**2) / (total + 2))
    return Interval((only_first - only_second) / total, max(-1.0, middle - half), min(1.0, middle + half))
