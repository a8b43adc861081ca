"""The agent: measures every update on the coordinator's examples, rejects what harms, and weighs the rest.

Its decisions are made on results of `svd`, whatever the method of the round: a site is as good or as harmful under
one method as under another, and no other result of the plan's rank is nearer to the weighted mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

import numpy as np

from fedmed_cli.aggregation import shares
from fedmed_cli.aggregation.methods import svd
from fedmed_cli.aggregation.state import Evaluator, RoundState, SiteState
from fedmed_cli.intervals import Losses, standard_error
from fedmed_cli.records.measures import Interval

# A site is rejected where the round gains more than this without it, dilution aside (see `_dilution`): in nats,
# and as a share of what the round improves, both times the site's weight, for what a site can do goes by that.
# Of three honest sites on real data one showed up to 0.0042 nats where the round improved by 0.13.
REJECT_ABOVE = 0.03
REJECT_ABOVE_SHARE = 0.3
# Or where it brings next to nothing, beyond chance: less than this share of the median gain, and less than that by
# REJECT_ABOVE nats, so that no honest site goes in a late round, where gains are small. The round must be no
# worse without it.
IDLE_BELOW_SHARE = 0.2
SUSPECT_BELOW = 0.01  # nats under the median gain, or a tenth of it: nearer than that, leaving out is not tried
SUSPECT_BELOW_SHARE = 0.1
ORDINARY_COSINE = 0.5  # between two sites' updates, where there are no others to learn it from


def reject_and_weigh(state: RoundState) -> None:
    """Measure every update, reject the harmful ones, and weigh the rest.

    Leaving a site out is tried only for sites whose own gain is negative or lags the median: the loss is
    nearly convex in the update, so a mean of updates that each help cannot be what harms.
    """
    evaluator = state.evaluator
    assert evaluator is not None
    if len(state.accepted) == len(state.sites) == 1:
        (only,) = state.sites.values()
        only.weight = 1.0
        only.reasons.append("the only contribution: there is nothing to weigh")
        return
    start = evaluator.losses(state.parent)
    for site in state.accepted.values():
        adapter = site.contribution.adapter
        if site.clip_factor < 1:  # as it will be used, but without the momentum of `RoundState.build`
            adapter, _ = svd(state.plan, state.parent, [adapter], [site.clip_factor])
        losses = evaluator.losses(adapter)
        site.gain = evaluator.gain(start, losses)
        site.gain_error = standard_error(start, losses, evaluator.groups)
        _explain_gain(site, site.gain)
    fewest = math.ceil(len(state.sites) / 2)
    while len(state.accepted) > fewest:
        worst = _find_worst(state, evaluator, start)
        if worst is None:
            break
        site, reason = worst
        site.reject(reason)
    _weigh_accepted(state)


def _explain_gain(site: SiteState, gain: Interval) -> None:
    site.reasons.append(f"measured by the coordinator: {gain.mean:+.4f} nats [{gain.low:+.4f}, {gain.high:+.4f}]")
    record = site.contribution.record
    before, after = record.validation_before, record.validation_after
    if before and after and before.mean - after.mean > 0 and gain.high < 0:
        site.reasons.append(
            f"says that it improved by {before.mean - after.mean:.4f} nats on its own examples, but is worse here"
        )


def _weigh_accepted(state: RoundState) -> None:
    """Set the weights of all accepted sites from their capped claims and scores."""
    accepted = state.accepted
    if not accepted:
        return
    gains = {name: site.gain.mean for name, site in accepted.items() if site.gain}
    errors = {name: site.gain_error for name, site in accepted.items() if site.gain_error is not None}
    scores = shares.scores_of_gains(gains, errors)
    for name, weight in shares.weights_of_scores(state.claimed_weights(), scores).items():
        accepted[name].weight, accepted[name].score = weight, scores[name]


def _find_worst(state: RoundState, evaluator: Evaluator, start: Losses) -> tuple[SiteState, str] | None:
    """The site whose removal improves the round most, if that is beyond the threshold, and why it should go."""
    accepted = state.accepted
    gains = {name: site.gain for name, site in accepted.items() if site.gain}
    median = statistics.median(gain.mean for gain in gains.values())
    lag = max(SUSPECT_BELOW, SUSPECT_BELOW_SHARE * abs(median))
    suspects = [name for name, gain in gains.items() if gain.mean < max(0.0, median - lag)]
    if not suspects:
        return None
    weights = state.claimed_weights()
    with_all = evaluator.losses(state.build(svd, state.coefficients(weights, 1.0))[0])
    worst: tuple[SiteState, str] | None = None
    largest = -math.inf
    for name in suspects:
        site, measured = state.sites[name], gains[name]
        rest = {other: weight for other, weight in weights.items() if other != name}
        coefficients = state.coefficients(shares.normalise(rest), _dilution(state, weights, name))
        without = evaluator.losses(state.build(svd, coefficients)[0])
        gain = evaluator.gain(with_all, without)
        site.left_out_gain = gain
        improvement = start.mean - min(with_all.mean, without.mean)
        threshold = weights[name] * max(REJECT_ABOVE, REJECT_ABOVE_SHARE * improvement)
        site.reasons.append(
            f"without it the round gains {gain.mean:+.4f} nats [{gain.low:+.4f}, {gain.high:+.4f}], "
            f"threshold {threshold:.4f}"
        )
        reason = None
        if gain.low > 0 and gain.mean > threshold:
            reason = "the round is better without it"
        elif measured.high < IDLE_BELOW_SHARE * median and measured.mean < median - REJECT_ABOVE and gain.mean > 0:
            reason = (
                f"it brings less than a fifth of what the median site brings ({median:+.4f} nats), and "
                "the round is no worse without it"
            )
        if reason is not None and gain.mean > largest:
            worst, largest = (site, reason), gain.mean
    return worst


def _dilution(state: RoundState, weights: Mapping[str, float], site: str) -> float:
    """The length of the update with an ordinary site in the place of `site`, over that of the others only.

    Any further site shortens a mean of unlike updates, an honest one too. So the others are not compared at
    their full length, but at the one they would have beside a site of their own kind: of their mean norm, and
    to the others as each of them is to the rest.
    """
    rest = shares.normalise({name: weight for name, weight in weights.items() if name != site})
    share = weights[site]
    names, gram = list(state.sites), state.clipped_gram()
    mean = np.array([rest.get(name, 0.0) for name in names])
    squared = float(mean @ gram @ mean)
    if squared <= 0:
        return 1.0
    members = [names.index(name) for name in rest]
    ordinary = float(np.mean([gram[i, i] for i in members]))
    beside = ORDINARY_COSINE * ordinary
    if len(members) > 1:
        others = []
        for i in members:
            without = mean.copy()
            without[i] = 0
            others.append(float(gram[i] @ without / without.sum()))
        beside = float(np.mean(others))
    expected = (1 - share) ** 2 * squared + share**2 * ordinary + 2 * share * (1 - share) * beside
    return math.sqrt(max(expected, 0.0) / squared)
