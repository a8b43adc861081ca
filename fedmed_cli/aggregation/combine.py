"""The coordinator: from contributions and evidence to verdicts and weights, each with its reasons in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.aggregation import examine, server_step, weighting
from fedmed_cli.aggregation.evidence import PAIRWISE_UP_TO, collect
from fedmed_cli.aggregation.robust import ROBUST
from fedmed_cli.aggregation.state import Case, Examiner, Round, Rules, Submission
from fedmed_cli.errors import CombineError, InputError
from fedmed_cli.intervals import summarize
from fedmed_cli.records.aggregate import Evidence, Examination, SiteDecision, Truncation
from fedmed_cli.records.digests import short
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.scores import Scores

CROSSEVAL_FROM_SITES = 4


@dataclass(frozen=True)
class Combination:
    """A combined adapter, what was decided about each site, and what the plan's rank cut away."""

    adapter: Adapter
    decisions: dict[str, SiteDecision]
    server_lr: float
    examination: Examination | None
    truncation: Truncation


def combine(
    plan: Plan,
    parent: Adapter,
    submissions: Mapping[str, Submission],
    rules: Rules,
    *,
    before: Adapter | None = None,
    examiner: Examiner | None = None,
    scores: Sequence[Scores] = (),
) -> Combination:
    """Combine contributions that passed the gate. The result does not depend on the order of `submissions`.

    `before` is the global adapter before `parent`, which server momentum needs. `examiner` is needed by the
    agentic weights, `scores` by crosseval. CombineError where a rule's precondition does not hold, or where
    every contribution was rejected; InputError where the agentic weights have no examiner.
    """
    by_norms = rules.server_lr is None and examiner is None  # FedExP
    pairwise = rules.weights == "agentic" or rules.robust != "none" or by_norms
    if pairwise and len(submissions) > PAIRWISE_UP_TO:
        raise CombineError(
            f"agentic weights, robust means and FedExP's server step compare all pairs of at most "
            f"{PAIRWISE_UP_TO} sites, found {len(submissions)}",
            hint="use --weights tokens with the norm clip, and --server-lr 1",
        )
    cases, gram = collect(parent, submissions, rules.clip, rules.weights)
    round_ = Round(plan, parent, rules, cases, gram, examiner, before)
    match rules.weights:
        case "agentic":
            if examiner is None:
                raise InputError("--weights agentic needs the coordinator's examples (data/coordinator.jsonl)")
            examine.judge(round_)
        case "crosseval":
            _crosseval(cases, scores, parent)
        case "self-reported":
            _self_reported(cases)
        case _:
            for case in cases.values():
                case.weight = case.prior
    if not any(case.weight for case in cases.values()):
        raise CombineError("every contribution was rejected: there is nothing to combine")
    return _finish(round_)


def _self_reported(cases: Mapping[str, Case]) -> None:
    reports = {}
    for site, case in cases.items():
        record = case.submission.record
        if record.validation_before is None or record.validation_after is None:
            raise CombineError(f"--weights self-reported: site {site} reports no validation loss")
        reports[site] = weighting.SelfReport(
            record.validation_before.mean, record.validation_after.mean, record.num_examples
        )
    for site, weight in weighting.self_reported(reports).items():
        said = f"loss {reports[site].initial:.4f} before, {reports[site].final:.4f} after"
        cases[site].weight = weight
        cases[site].reasons.append(f"weighted by what it says of itself: {said}")


def _crosseval(cases: Mapping[str, Case], scores: Sequence[Scores], parent: Adapter) -> None:
    """Weights from the other sites' scores: for each adapter the median over the reports of all but its own site."""
    if len(cases) < CROSSEVAL_FROM_SITES:
        raise CombineError(f"crosseval needs at least {CROSSEVAL_FROM_SITES} contributions, found {len(cases)}")
    gains, errors = {}, {}
    for site, case in cases.items():
        digest = case.submission.record.adapter
        reports = {
            one.site: one.gains[digest]
            for one in scores
            if one.site != site and one.parent == parent.digest and digest in one.gains
        }
        wanted = math.ceil(len(cases) / 2)
        if len(reports) < wanted:
            raise CombineError(
                f"crosseval: site {site}'s adapter {short(digest)} was scored by {len(reports)} other sites, "
                f"expected at least {wanted}",
                hint="each hospital runs 'fedmed compare score --site SITE' with all contributions in adapters/, "
                "and sends scores/SITE.json",
            )
        gains[site] = statistics.median(report.gain for report in reports.values())
        errors[site] = statistics.median(report.standard_error for report in reports.values())
        case.reasons.append(f"gains {gains[site]:+.4f} nats in the median of {len(reports)} other sites' scores")
    score = weighting.scores(gains, errors)
    for site, weight in weighting.scored({site: case.prior for site, case in cases.items()}, score).items():
        cases[site].weight, cases[site].score = weight, score[site]


def _finish(round_: Round) -> Combination:
    """Robust mean, server step, result, and the record of it all."""
    sites = list(round_.cases)
    weights = np.array([case.weight for case in round_.cases.values()])
    chosen = np.flatnonzero(weights)
    if round_.rules.robust != "none":
        gram = round_.clipped_gram()[np.ix_(chosen, chosen)]
        robust = ROBUST[round_.rules.robust](gram, weights[chosen], round_.rules.num_malicious)
        for number, position in enumerate(chosen):
            case = round_.cases[sites[position]]
            if abs(robust[number] - case.weight) > 1e-9:
                case.reasons.append(
                    f"{round_.rules.robust} changes its weight {case.weight:.4f} to {robust[number]:.4f}"
                )
            case.weight = float(robust[number])
    final = {site: case.weight for site, case in round_.cases.items()}
    server_lr, tried = server_step.search(round_, final)
    adapter, truncation = round_.build(round_.coefficients(final, server_lr))
    examination = None
    if round_.examiner is not None and round_.rules.measures:
        groups = round_.examiner.groups
        start, result = round_.losses(round_.parent), round_.losses(adapter)
        examination = Examination(
            examples_digest=round_.examiner.digest,
            num_examples=len(groups),
            num_groups=len(set(groups)),
            parent=summarize(start, groups),
            result=summarize(result, groups),
            server_lr_losses=tried,
        )
    decisions = {site: _decision(case) for site, case in round_.cases.items()}
    return Combination(adapter, decisions, server_lr, examination, truncation)


def _decision(case: Case) -> SiteDecision:
    record = case.submission.record
    before, after = record.validation_before, record.validation_after
    verdict = "rejected" if case.rejected else "clipped" if case.clip_factor < 1 else "accepted"
    return SiteDecision(
        adapter=record.adapter,
        contribution=case.submission.record_digest,
        verdict=verdict,  # type: ignore[arg-type]  # one of the three by construction
        weight=case.weight,
        prior=case.prior,
        clip_factor=case.clip_factor,
        score=case.score,
        evidence=Evidence(
            num_examples=record.num_examples,
            num_tokens=record.num_tokens,
            reported_gain=before.mean - after.mean if before and after else None,
            update_norm=case.norm,
            cosines=case.cosines,
            copies=tuple(case.copies),
            gain=case.gain,
            gain_standard_error=case.gain_error,
            left_out_gain=case.left_out_gain,
        ),
        reasons=tuple(case.reasons),
    )
