"""The coordinator: from contributions and evidence to verdicts and weights, each with its reasons in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.aggregation import server_step
from fedmed_cli.aggregation.evidence import PAIRWISE_UP_TO, collect
from fedmed_cli.aggregation.methods import COMBINE
from fedmed_cli.aggregation.robust import MEANS
from fedmed_cli.aggregation.state import AcceptedContribution, AggregationSettings, Evaluator, RoundState, SiteState
from fedmed_cli.aggregation.weighting import WEIGH
from fedmed_cli.errors import CombineError, InputError
from fedmed_cli.intervals import summarize
from fedmed_cli.records.aggregate import CoordinatorEvaluation, Evidence, SiteDecision, Truncation
from fedmed_cli.records.combining import METHODS, WEIGHTINGS
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.scores import Scores


@dataclass(frozen=True)
class Combination:
    """A combined adapter, what was decided about each site, and what the plan's rank cut away."""

    adapter: Adapter
    decisions: dict[str, SiteDecision]
    server_lr: float
    examination: CoordinatorEvaluation | None
    truncation: Truncation


def combine(
    plan: Plan,
    parent: Adapter,
    contributions: Mapping[str, AcceptedContribution],
    settings: AggregationSettings,
    *,
    before: Adapter | None = None,
    evaluator: Evaluator | None = None,
    scores: Sequence[Scores] = (),
) -> Combination:
    """Combine contributions that passed the gate. The result does not depend on the order of `contributions`.

    `before` is the global adapter before `parent`, which server momentum needs. `evaluator` is needed by the
    agentic weights, `scores` by crosseval. CombineError where a precondition of the settings does not hold, or where
    every contribution was rejected; InputError where the agentic weights have no evaluator.
    """
    _check_preconditions(settings, len(contributions), evaluator)
    sites, gram = collect(parent, contributions, settings.clip, WEIGHTINGS[settings.weights].claim)
    momentum = (settings.server_momentum, before) if before and settings.server_momentum else None
    state = RoundState(plan, parent, sites, gram, evaluator, scores, momentum)
    if not state.accepted:
        raise CombineError("every contribution was rejected: there is nothing to combine")
    WEIGH[settings.weights](state)
    if not any(site.weight for site in sites.values()):
        raise CombineError("every contribution was rejected: there is nothing to combine")
    if settings.robust != "none":
        _take_robust_mean(state, settings)
    weights = {name: site.weight for name, site in sites.items()}
    method = COMBINE[settings.method]
    server_lr = settings.server_lr
    losses_by_step: dict[str, float] = {}
    if server_lr is None:
        server_lr, losses_by_step = server_step.search(state, weights, method)
    adapter, truncation = state.build(method, state.coefficients(weights, server_lr))
    examination = None
    if evaluator is not None and settings.measures:
        examination = CoordinatorEvaluation(
            examples_digest=evaluator.digest,
            num_examples=len(evaluator.groups),
            num_groups=len(set(evaluator.groups)),
            parent=summarize(evaluator.losses(parent), evaluator.groups),
            result=summarize(evaluator.losses(adapter), evaluator.groups),
            server_lr_losses=losses_by_step,
        )
    decisions = {name: _decision_on(site) for name, site in sites.items()}
    return Combination(adapter, decisions, server_lr, examination, truncation)


def _check_preconditions(settings: AggregationSettings, num_sites: int, evaluator: Evaluator | None) -> None:
    weighting = WEIGHTINGS[settings.weights]
    if not METHODS[settings.method].takes_step and (settings.server_lr != 1 or settings.server_momentum):
        raise CombineError(
            f"{settings.method} takes the server's step 1 without momentum, found server_lr {settings.server_lr}, "
            f"server_momentum {settings.server_momentum:g}",
            hint="combine with svd for another step",
        )
    if weighting.measures and evaluator is None:
        raise InputError(f"--weights {settings.weights} needs the coordinator's examples (data/coordinator.jsonl)")
    fedexp = settings.server_lr is None and evaluator is None
    if (weighting.measures or settings.robust != "none" or fedexp) and num_sites > PAIRWISE_UP_TO:
        raise CombineError(
            f"agentic weights, robust means and FedExP's server step compare all pairs of at most "
            f"{PAIRWISE_UP_TO} sites, found {num_sites}",
            hint="use --weights tokens with the norm clip, and --server-lr 1",
        )
    if num_sites < weighting.fewest_sites:
        raise CombineError(
            f"{settings.weights} needs at least {weighting.fewest_sites} contributions, found {num_sites}"
        )


def _take_robust_mean(state: RoundState, settings: AggregationSettings) -> None:
    """Replace the weights by the robust mean's coefficients; they are of sites that have a weight."""
    chosen = [name for name, site in state.sites.items() if site.weight]
    positions = [position for position, site in enumerate(state.sites.values()) if site.weight]
    gram = state.clipped_gram()[np.ix_(positions, positions)]
    weights = np.array([state.sites[name].weight for name in chosen])
    for name, weight in zip(chosen, MEANS[settings.robust](gram, weights, settings.num_malicious), strict=True):
        site = state.sites[name]
        if abs(weight - site.weight) > 1e-9:
            site.reasons.append(f"{settings.robust} changes its weight {site.weight:.4f} to {weight:.4f}")
        site.weight = float(weight)


def _decision_on(site: SiteState) -> SiteDecision:
    record = site.contribution.record
    before, after = record.validation_before, record.validation_after
    return SiteDecision(
        adapter=record.adapter,
        contribution=site.contribution.record_digest,
        verdict=site.verdict,
        weight=site.weight,
        prior=site.claimed_weight,
        clip_factor=site.clip_factor,
        score=site.score,
        evidence=Evidence(
            num_examples=record.num_examples,
            num_tokens=record.num_tokens,
            reported_gain=before.mean - after.mean if before and after else None,
            update_norm=site.norm,
            cosines=site.cosines,
            copies=tuple(site.copies),
            gain=site.gain,
            gain_standard_error=site.gain_error,
            left_out_gain=site.left_out_gain,
        ),
        reasons=tuple(site.reasons),
    )
