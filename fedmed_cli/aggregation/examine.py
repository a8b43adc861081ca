"""The agent: measures every update on the coordinator's examples, rejects what harms, and weighs the rest."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

import numpy as np

from fedmed_cli.aggregation import weighting
from fedmed_cli.aggregation.methods import svd
from fedmed_cli.aggregation.state import Case, Round
from fedmed_cli.intervals import Losses, standard_error

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


def judge(round_: Round) -> None:
    """Measure every update, reject the harmful ones, and weigh the rest.

    Leaving a site out is tried only for sites whose own gain is negative or lags the median: the loss is
    nearly convex in the update, so a mean of updates that each help cannot be what harms.
    """
    assert round_.examiner is not None
    if len(round_.cases) == 1:
        (only,) = round_.cases.values()
        only.weight = 1.0
        only.reasons.append("the only contribution: there is nothing to weigh")
        return
    start = round_.losses(round_.parent)
    for case in round_.cases.values():
        if case.norm == 0:
            case.rejected = True
            case.reasons.append("rejected: it would only dilute the others")
            continue
        adapter = case.submission.adapter
        if case.clip_factor < 1:  # as it will be used, but without the momentum of `Round.build`
            adapter, _ = svd(round_.plan, round_.parent, [adapter], [case.clip_factor])
        own = round_.losses(adapter)
        case.gain = round_.against(start, own)
        case.gain_error = standard_error(start, own, round_.examiner.groups)
        _say_gain(case)
    fewest = math.ceil(len(round_.cases) / 2)
    while sum(not case.rejected for case in round_.cases.values()) > fewest:
        worst = _try_without(round_, start)
        if worst is None:
            break
        round_.cases[worst].rejected = True
    _weigh(round_)


def _say_gain(case: Case) -> None:
    assert case.gain is not None
    case.reasons.append(
        f"measured by the coordinator: {case.gain.mean:+.4f} nats [{case.gain.low:+.4f}, {case.gain.high:+.4f}]"
    )
    record = case.submission.record
    before, after = record.validation_before, record.validation_after
    if before and after and before.mean - after.mean > 0 and case.gain.high < 0:
        case.reasons.append(
            f"says that it improved by {before.mean - after.mean:.4f} nats on its own examples, but is worse here"
        )


def _weigh(round_: Round) -> None:
    """Set the weights of all accepted sites from their capped claims and scores."""
    accepted = {site: case for site, case in round_.cases.items() if not case.rejected}
    if not accepted:
        return
    gains = {site: case.gain.mean for site, case in accepted.items() if case.gain}
    errors = {site: case.gain_error for site, case in accepted.items() if case.gain_error is not None}
    score = weighting.scores(gains, errors)
    for site, weight in weighting.scored(_prior(accepted), score).items():
        accepted[site].weight, accepted[site].score = weight, score[site]


def _prior(accepted: Mapping[str, Case]) -> dict[str, float]:
    """Weights by capped claims among the accepted; those who sent the same update share one weight."""
    return weighting.normalised(
        {site: case.prior / (1 + sum(name in accepted for name in case.copies)) for site, case in accepted.items()}
    )


def _try_without(round_: Round, start: Losses) -> str | None:
    """The site whose removal improves the round most, if that is beyond the threshold."""
    accepted = {site: case for site, case in round_.cases.items() if not case.rejected}
    gains = {site: case.gain.mean for site, case in accepted.items() if case.gain}
    middle = statistics.median(gains.values())
    lag = max(SUSPECT_BELOW, SUSPECT_BELOW_SHARE * abs(middle))
    suspects = [site for site, gain in gains.items() if gain < max(0.0, middle - lag)]
    if not suspects:
        return None
    weights = _prior(accepted)
    with_all = round_.losses(round_.build(round_.coefficients(weights, 1.0), "svd")[0])
    best: tuple[float, str, str] | None = None
    for site in suspects:
        own = round_.cases[site].gain
        assert own is not None
        rest = {name: weight for name, weight in weights.items() if name != site}
        part = round_.coefficients(weighting.normalised(rest), _dilution(round_, weights, site))
        without = round_.losses(round_.build(part, "svd")[0])
        gain = round_.against(with_all, without)
        round_.cases[site].left_out_gain = gain
        improvement = start.mean - min(with_all.mean, without.mean)
        threshold = weights[site] * max(REJECT_ABOVE, REJECT_ABOVE_SHARE * improvement)
        round_.cases[site].reasons.append(
            f"without it the round gains {gain.mean:+.4f} nats [{gain.low:+.4f}, {gain.high:+.4f}], "
            f"threshold {threshold:.4f}"
        )
        why = None
        if gain.low > 0 and gain.mean > threshold:
            why = "rejected: the round is better without it"
        elif own.high < IDLE_BELOW_SHARE * middle and own.mean < middle - REJECT_ABOVE and gain.mean > 0:
            why = (
                f"rejected: it brings less than a fifth of what the median site brings ({middle:+.4f} nats), and "
                "the round is no worse without it"
            )
        if why is not None and (best is None or gain.mean > best[0]):
            best = (gain.mean, site, why)
    if best is None:
        return None
    round_.cases[best[1]].reasons.append(best[2])
    return best[1]


def _dilution(round_: Round, weights: Mapping[str, float], site: str) -> float:
    """The length of the update with an ordinary site in the place of `site`, over that of the others alone.

    Any further site shortens a mean of unlike updates, an honest one too. So the others alone are not
    compared at their full length, but at the one they would have beside a site of their own kind: of
    their mean norm, and to the others as each of them is to the rest.
    """
    rest = weighting.normalised({name: weight for name, weight in weights.items() if name != site})
    share = weights[site]
    names, gram = list(round_.cases), round_.clipped_gram()
    mean = np.array([rest.get(name, 0.0) for name in names])
    squared = float(mean @ gram @ mean)
    if squared <= 0:
        return 1.0
    members = [names.index(name) for name in rest]
    own = float(np.mean([gram[i, i] for i in members]))
    beside = ORDINARY_COSINE * own
    if len(members) > 1:
        others = []
        for i in members:
            without = mean.copy()
            without[i] = 0
            others.append(float(gram[i] @ without / without.sum()))
        beside = float(np.mean(others))
    expected = (1 - share) ** 2 * squared + share**2 * own + 2 * share * (1 - share) * beside
    return math.sqrt(max(expected, 0.0) / squared)
