"""How much an adapter tells about single examples: membership, and canaries that only the hospital knows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedmed_cli.intervals import Losses, draw_groups
from fedmed_cli.records.audit import CanaryAudit, Membership
from fedmed_cli.records.measures import Interval

FPR = 0.01
CONFIDENCE = 0.95
_SHARES = (0.1, 0.25, 0.5, 1.0)  # of the canaries that are guessed, the most telling first
_MOST_EPSILON = 50.0


def scores(before: Losses, after: Losses) -> np.ndarray:
    """How much less each example costs an adapter than the base, in nats per token: high where it was trained on."""
    result: np.ndarray = (before.nll - after.nll) / before.num_tokens
    return result


def membership(
    members: np.ndarray, groups: Sequence[str], others: np.ndarray, other_groups: Sequence[str]
) -> Membership:
    """AUC and true-positive rate of an attacker who goes by `scores`, with intervals from a bootstrap of groups."""
    values = np.concatenate([members, others])
    is_member = np.repeat([True, False], [len(members), len(others)])
    names, number = np.unique([*groups, *other_groups], return_inverse=True)
    order = np.argsort(values, kind="stable")
    estimates = [_rates(values[order], is_member[order], np.ones(len(values)))]
    estimates += [
        _rates(values[order], is_member[order], weights[number][order]) for weights in draw_groups(len(names))
    ]
    points, resampled = estimates[0], np.array([one for one in estimates[1:] if not math.isnan(one[0])])
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    auc, tpr = (
        Interval(float(points[i]), float(min(low[i], points[i])), float(max(high[i], points[i]))) for i in (0, 1)
    )
    return Membership(len(members), len(others), len(names), auc, tpr, FPR)


def _rates(values: np.ndarray, is_member: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """AUC (a tie counts half) and the share of members above all but FPR of the others; values ascending, weighted."""
    ours, theirs = weights * is_member, weights * ~is_member
    if not ours.sum() or not theirs.sum():
        return math.nan, math.nan
    starts = np.flatnonzero(np.r_[True, values[1:] > values[:-1]])
    ours, theirs = np.add.reduceat(ours, starts), np.add.reduceat(theirs, starts)  # equal values together
    below = np.cumsum(theirs) - theirs
    auc = float((ours * (below + theirs / 2)).sum() / (ours.sum() * theirs.sum()))
    accused = np.cumsum(theirs[::-1])[::-1] / theirs.sum()  # of the others, where this value and above are accused
    return auc, float(ours[accused <= FPR].sum() / ours.sum())


def audit_canaries(values: np.ndarray, included: Sequence[bool], delta: float) -> CanaryAudit:
    """What the scores of canaries tell of the coin flips: one training, many flips (Steinke, Nasr, Jagielski 2023).

    The highest scores are guessed to be trained on, the lowest not. Several numbers of guesses are tried, and the
    confidence is divided among them.
    """
    is_in = np.asarray(included, dtype=bool)
    order = np.argsort(-values, kind="stable")
    best = (0.0, 0, 0)
    for share in _SHARES:
        half = int(len(values) * share / 2)
        if not half:
            continue
        correct = int(is_in[order[:half]].sum() + (~is_in[order[-half:]]).sum())
        low = epsilon_low(len(values), 2 * half, correct, delta, 1 - (1 - CONFIDENCE) / len(_SHARES))
        best = max(best, (low, 2 * half, correct))
    outside = np.sort(values[~is_in])
    ranks = len(outside) - np.searchsorted(outside, values[is_in], side="right") + 1  # 1: above all that were left out
    exposure = math.log2(len(outside) + 1) - np.log2(ranks)
    return CanaryAudit(
        num_canaries=len(values),
        num_included=int(is_in.sum()),
        num_guesses=best[1],
        num_correct=best[2],
        epsilon_low=best[0],
        found=int((ranks == 1).sum()),
        exposure=float(exposure.mean()) if len(exposure) else 0.0,
    )


def epsilon_low(num_flips: int, num_guesses: int, num_correct: int, delta: float, confidence: float) -> float:
    """The least epsilon that so many right guesses leave possible, 0 where guessing blindly does as well."""
    if _p_value(num_flips, num_guesses, num_correct, 0.0, delta) > 1 - confidence:
        return 0.0
    low, high = 0.0, _MOST_EPSILON
    while high - low > 1e-4:
        middle = (low + high) / 2
        if _p_value(num_flips, num_guesses, num_correct, middle, delta) > 1 - confidence:
            high = middle
        else:
            low = middle
    return low


def _p_value(num_flips: int, num_guesses: int, num_correct: int, epsilon: float, delta: float) -> float:
    """How likely at least so many right guesses are under (epsilon, delta), at most.

    Under epsilon a guess is right with probability at most e^epsilon / (1 + e^epsilon), whatever the others are; delta
    adds at most 2 num_flips delta max_i (P[at least num_correct - i] - P[at least num_correct]) / i (theorem 5.2).
    """
    from scipy.stats import binom  # takes a second, which only an audit should cost

    right = 1 / (1 + math.exp(-epsilon))
    at_least = binom.sf(np.arange(num_correct, -1, -1) - 1, num_guesses, right)  # of num_correct, one less, ... 0
    steps = np.arange(1, num_correct + 1)
    slack = float(np.max((at_least[1:] - at_least[0]) / steps, initial=0.0))
    return min(1.0, float(at_least[0]) + 2 * num_flips * delta * slack)
