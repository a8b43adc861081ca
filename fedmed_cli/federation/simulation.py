"""Whole rounds on one machine: train each site, aggregate, measure the global adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from fedmed_cli.adapters import archive, gate
from fedmed_cli.adapters.folder import CONTRIBUTION_NAME
from fedmed_cli.aggregation.state import AggregationSettings
from fedmed_cli.data import coordinator_examples, site_data
from fedmed_cli.errors import TrustError
from fedmed_cli.evaluation import measuring
from fedmed_cli.evaluation.coordinator_set import coordinator_set
from fedmed_cli.events import Events, Say
from fedmed_cli.federation import coordinator, site
from fedmed_cli.intervals import paired_interval, summarize
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.measures import Interval, Loss
from fedmed_cli.records.plan import Plan
from fedmed_cli.training.options import SiteSettings
from fedmed_cli.trust.ledger import Ledger
from fedmed_cli.workspace import Workspace


@dataclass(frozen=True)
class RoundSummary:
    """One round: each site's contribution, the aggregate, and the coordinator's own measurement of it."""

    contributions: dict[str, Contribution]
    aggregate: Aggregate
    before: Loss | None
    after: Loss | None
    change: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain JSON values."""
        return {
            "aggregate": self.aggregate.to_dict(),
            "contributions": {name: record.to_dict() for name, record in self.contributions.items()},
            "coordinator": {
                "before": asdict(self.before) if self.before else None,
                "after": asdict(self.after) if self.after else None,
                "change": asdict(self.change) if self.change else None,
            },
        }


def run_rounds(
    workspace: Workspace,
    plan: Plan,
    lm: LanguageModel,
    until: int,
    settings: AggregationSettings,
    *,
    training: SiteSettings = SiteSettings(),  # frozen
    max_eval_samples: int | None = None,
    relay: int = 0,
    events_for: Callable[[str, int], Events] = lambda name, round_number: Events(),
) -> Iterator[RoundSummary]:
    """Run rounds until round `until` exists, yielding a summary of each.

    All sites take part in a round, but in the first `relay` rounds one: see `taking_part`.
    It resumes: a site's contribution that already lies in `adapters/` for the round is taken as it is.
    `events_for(site or "coordinator", round)` gives where each step reports to. The caller holds the lock.
    """
    data = {name: site_data.workspace_data(workspace, name) for name in plan.sites.names}
    say = events_for("coordinator", 0).say
    deciding = coordinator_set(workspace, plan, lm, "decide", max_eval_samples, say) if settings.measures else None
    reporting = coordinator_set(workspace, plan, lm, "report", max_eval_samples, say)
    newest = workspace.newest_round()
    if newest and reporting is not None:
        made = archive.archived_global(workspace, plan, newest).adapter.digest
        if not coordinator_examples.is_reported(workspace, newest, made):
            events = events_for("coordinator", newest)
            events.say(f"round {newest} is there, but was not measured on the coordinator's examples: doing so now")
            _measure_round(workspace, plan, lm, newest, reporting, events)
    for round_number in range(newest + 1, until + 1):
        parent = archive.starting_adapter(workspace, plan, round_number)
        contributions = {}
        names = taking_part(plan, round_number, relay)
        for name in sorted(set(plan.sites.names) - set(names)):
            record = workspace.contribution(name) / CONTRIBUTION_NAME
            if record.exists() and Contribution.read(record).round == round_number:
                say(f"site {name}: its contribution to round {round_number} is left out: it is the turn of {names[0]}")
        for name in names:
            events = events_for(name, round_number)
            existing = _find_contribution(workspace, name, round_number, parent.digest)
            if existing is not None:
                events.say(f"site {name}: its contribution to round {round_number} is already there")
                _tell_other_steps(workspace, plan, existing, training, events.say)
                contributions[name] = existing
                continue
            result = site.train_local(
                workspace,
                plan,
                lm,
                name,
                data[name],
                parent,
                round_number,
                training,
                ledger=_ledger(workspace, plan, name, training),
                events=events,
            )
            contributions[name] = result.record
        events = events_for("coordinator", round_number)
        make_evaluator = None
        if deciding is not None:
            make_evaluator = partial(measuring.evaluator, workspace, plan, lm, deciding, events.measured)
        paths = [workspace.contribution(name) for name in names]
        aggregated = coordinator.aggregate(workspace, paths, settings, make_evaluator=make_evaluator, say=events.say)
        before = after = change = None
        if reporting is not None:
            before, after, change = _measure_round(workspace, plan, lm, round_number, reporting, events)
        yield RoundSummary(contributions, aggregated.record, before, after, change)


def taking_part(plan: Plan, round_number: int, relay: int) -> tuple[str, ...]:
    """The sites of a round: all, but in the first `relay` rounds one, in the plan's order and back."""
    names = plan.sites.names
    if round_number > relay:
        return names
    walk, place = divmod(round_number - 1, len(names))
    return ((names[::-1] if walk % 2 else names)[place],)


def _tell_other_steps(workspace: Workspace, plan: Plan, existing: Contribution, wanted: SiteSettings, say: Say) -> None:
    """Say where a contribution that is there took other steps than the sites that are trained now will take."""
    options, took = wanted.options, existing.max_steps
    by_groups = wanted.privacy and wanted.max_steps is None and wanted.num_train_epochs is not None
    asked = took if by_groups else wanted.steps(plan, existing.num_examples)  # no record says how many groups there are
    each = f"{existing.per_device_train_batch_size} x {existing.gradient_accumulation_steps}"
    asked_each = f"{options.per_device_train_batch_size} x {options.gradient_accumulation_steps}"
    if (took, each) != (asked, asked_each):
        say(
            f"site {existing.site}: trained {took} steps of {each} examples, and {asked} of {asked_each} are asked for "
            f"now; to train it again, stop, remove {workspace.relative(workspace.contribution(existing.site))} and run "
            "this command once more"
        )


def _ledger(workspace: Workspace, plan: Plan, name: str, training: SiteSettings) -> Ledger | None:
    """A ledger of the site for this workspace alone: a simulation spends nobody's budget.

    None where there is neither privacy nor a limit to it.
    """
    if all(wanted is None for wanted in (training.privacy, training.budget, plan.privacy.max_epsilon)):
        return None
    path = workspace.private / f"privacy-{name}.jsonl"
    return Ledger(path, path.with_suffix(".seal"))


def _measure_round(
    workspace: Workspace,
    plan: Plan,
    lm: LanguageModel,
    round_number: int,
    reporting: measuring.EvaluationSet,
    events: Events,
) -> tuple[Loss, Loss, Interval]:
    """Measure what a round started from and what it made on the reporting examples, and log both."""
    parent = archive.starting_adapter(workspace, plan, round_number)
    result = archive.archived_global(workspace, plan, round_number).adapter
    first, second = (
        measuring.measure_cached(workspace, plan, lm, adapter, reporting, events.measured)
        for adapter in (parent, result)
    )
    before, after = (summarize(losses, reporting.groups) for losses in (first, second))
    workspace.log(
        "round",
        round=round_number,
        adapter=result.digest,
        coordinator_before=before.mean,
        coordinator_after=after.mean,
        num_examples=after.num_examples,
    )
    return before, after, paired_interval(second, first, reporting.groups)


def _find_contribution(workspace: Workspace, site: str, round_number: int, parent: str) -> Contribution | None:
    """The record of a site's contribution to this very round, if one is in adapters/; `aggregate` reads its weights."""
    path = workspace.contribution(site)
    if not (path / CONTRIBUTION_NAME).exists():
        return None
    record = Contribution.read(path / CONTRIBUTION_NAME)
    if record.round < round_number:
        return None
    if record.site != site:
        raise TrustError(f"{path}: expected a contribution of site {site}, found one of site {record.site}")
    gate.check_lineage(path, record, round_number, parent)
    return record
