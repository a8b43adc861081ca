"""How much each site counts: by its claims, by what the coordinator measured, or by what sites measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np

from fedmed_cli.aggregation import shares
from fedmed_cli.aggregation.examine import reject_and_weigh
from fedmed_cli.aggregation.state import RoundState
from fedmed_cli.errors import CombineError
from fedmed_cli.records.digests import short

# Of the demo that fedmed re-creates (three hospitals, Mistral-7B-Instruct-v0.2).
DEMO_LOSS_SHARE, DEMO_VARIANCE_SHARE = 0.6, 0.4
DEMO_QUALITY_SHARE, DEMO_DATA_SHARE = 0.7, 0.3
DEMO_SMALLEST_QUALITY = 0.1
DEMO_OUTLIER = 5.0  # nats from the mean improvement; beyond that the variance counts half


def by_claims(state: RoundState) -> None:
    """The shares of claimed data."""
    for name, weight in state.claimed_weights().items():
        state.sites[name].weight = weight


def crosseval(state: RoundState) -> None:
    """By the other sites' scores: for each adapter the median over the reports of all but its own site.

    CombineError where fewer than half of the sites scored an adapter.
    """
    gains, errors = {}, {}
    accepted = state.accepted
    for name, site in accepted.items():
        digest = site.contribution.record.adapter
        reports = [
            one.gains[digest]
            for one in state.scores
            if one.site != name and one.parent == state.parent.digest and digest in one.gains
        ]
        fewest = math.ceil(len(accepted) / 2)
        if len(reports) < fewest:
            raise CombineError(
                f"crosseval: site {name}'s adapter {short(digest)} was scored by {len(reports)} other sites, "
                f"expected at least {fewest}",
                hint="each hospital runs 'fedmed compare score --site SITE' with all contributions in adapters/, "
                "and sends scores/SITE.json",
            )
        gains[name] = statistics.median(report.gain for report in reports)
        errors[name] = statistics.median(report.standard_error for report in reports)
        site.reasons.append(f"gains {gains[name]:+.4f} nats in the median of {len(reports)} other sites' scores")
    scores = shares.scores_of_gains(gains, errors)
    for name, weight in shares.weights_of_scores(state.claimed_weights(), scores).items():
        accepted[name].weight, accepted[name].score = weight, scores[name]


def self_reported(state: RoundState) -> None:
    """By the rule of the demo that fedmed re-creates, for comparison: it trusts what sites say of themselves.

    CombineError where a site reports no validation loss.
    """
    initial, final = [], []
    accepted = state.accepted
    for name, site in accepted.items():
        record = site.contribution.record
        if record.validation_before is None or record.validation_after is None:
            raise CombineError(f"--weights self-reported: site {name} reports no validation loss")
        initial.append(record.validation_before.mean)
        final.append(record.validation_after.mean)
        reported = f"loss {initial[-1]:.4f} before, {final[-1]:.4f} after"
        site.reasons.append(f"weighted by what it says of itself: {reported}")
    num_examples = [site.contribution.record.num_examples for site in accepted.values()]
    weights = demo_weights(np.array(initial), np.array(final), np.array(num_examples, dtype=float))
    for name, weight in state.share_among_copies(dict(zip(accepted, weights.tolist(), strict=True))).items():
        accepted[name].weight = weight


def demo_weights(initial: np.ndarray, final: np.ndarray, num_examples: np.ndarray) -> np.ndarray:
    """imp = initial − final, dev = |imp − mean(imp)|, L = 1 − (final − min)/(max − min), V = 1 − dev/max(dev),
    halved where dev > 5, q = max(0.6·L + 0.4·V, 0.1), w ∝ 0.7·q + 0.3·n/Σn. Where all agree, L and V are 1.

    All arrays are (sites,); the weights have sum 1.
    """
    gain = initial - final
    deviation = np.abs(gain - gain.mean())
    spread = final.max() - final.min()
    by_loss = 1 - (final - final.min()) / spread if spread > 0 else np.ones(len(final))
    by_variance = 1 - deviation / deviation.max() if deviation.max() > 0 else np.ones(len(final))
    by_variance[deviation > DEMO_OUTLIER] /= 2
    quality = np.maximum(DEMO_LOSS_SHARE * by_loss + DEMO_VARIANCE_SHARE * by_variance, DEMO_SMALLEST_QUALITY)
    total = num_examples.sum()
    data_share = num_examples / total if total > 0 else np.full(len(final), 1 / len(final))
    weight = DEMO_QUALITY_SHARE * quality + DEMO_DATA_SHARE * data_share
    return np.asarray(weight / weight.sum())


# The rows of `records/combining.WEIGHTINGS`: each sets the sites' weights, and their reasons.
WEIGH: dict[str, Callable[[RoundState], None]] = {
    "agentic": reject_and_weigh,
    "tokens": by_claims,
    "examples": by_claims,
    "uniform": by_claims,
    "crosseval": crosseval,
    "self-reported": self_reported,
}
