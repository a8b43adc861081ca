"""Losses per example into means, standard errors and paired intervals, all over groups of examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmed_cli.records import Interval, Loss

NUM_RESAMPLES = 2000
FEW_GROUPS = 30


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


def paired_interval(
    first: Losses, second: Losses, groups: Sequence[str], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """First minus second, nats per token, with a 95 % percentile bootstrap interval that resamples groups.

    Both must be measured on the same examples in the same order (ValueError where token counts differ).
    """
    if not np.array_equal(first.num_tokens, second.num_tokens):
        raise ValueError("paired losses must be of the same examples")
    numbers, count = _group_numbers(groups)
    difference = np.bincount(numbers, weights=first.nll - second.nll, minlength=count)
    tokens = np.bincount(numbers, weights=first.num_tokens, minlength=count)
    generator = np.random.Generator(np.random.Philox(seed))
    draws = generator.multinomial(count, np.full(count, 1 / count), size=num_resamples)
    resampled = (draws @ difference) / (draws @ tokens)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(float(difference.sum() / tokens.sum()), float(low), float(high))
