"""`fedmed round`: whole rounds on one machine."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from fedmed_cli.cli import options as o
from fedmed_cli.cli.commands.report import renew_report

if TYPE_CHECKING:
    from fedmed_cli.aggregation.state import AggregationSettings
    from fedmed_cli.events import Say
    from fedmed_cli.records.plan import Plan
    from fedmed_cli.workspace import Workspace


def run_round(
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help=r"Run until this round exists \[one more round].")
    ] = None,
    relay: Annotated[
        int,
        typer.Option("--relay", min=0, metavar="N", help="Make the first N rounds of one site each, in turn."),
    ] = 0,
    training: o.TrainingOptions = o.TrainingOptions(),
    max_eval_samples: Annotated[
        int | None, typer.Option("--max-eval-samples", min=2, help="Examples to measure on [100].")
    ] = None,
    aggregation: o.AggregationOptions = o.AggregationOptions(),
    model: o.ModelOptions = o.ModelOptions(),
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Run whole rounds on one machine: train every site, aggregate, measure on the coordinator's examples.

    It resumes where it stopped, and does nothing that train-local, aggregate and report would not do.

    With --relay N each of the first N rounds has one site, in the plan's order and back (A, B, C, C, B, A): it trains
    on from the adapter of the site before it. Nothing is mixed into that adapter, and no agent can reject it.

    Example: fedmed round --rounds 3
    """
    from fedmed_cli.adapters import archive
    from fedmed_cli.data import coordinator_examples
    from fedmed_cli.errors import TrustError
    from fedmed_cli.federation.coordinator import default_weights

    screen, place = common.open()
    plan = place.read_plan()
    if plan.sites.keys:
        raise TrustError(
            f"the plan pins keys for {', '.join(plan.sites.keys)}: no one machine holds all of them",
            hint="each site runs 'fedmed train-local --key FILE', the coordinator 'fedmed aggregate'",
        )
    settings = aggregation.settings(partial(default_weights, place, screen.say), start_rounds=True)
    newest = place.newest_round()
    until = rounds or newest + 1
    if until <= newest and coordinator_examples.is_reported(
        place, newest, archive.archived_global(place, plan, newest).adapter.digest
    ):
        with place.lock():  # which clears up after a command that was interrupted
            page = renew_report(place, screen) if _is_report_older(place) else None
        lines = [f"round {until} exists already; the newest is {newest}"]
        screen.result({"rounds": [], "report": page}, *lines, *([f"wrote {page}"] if page else []))
        return
    if newest < min(relay, until):
        _check_turns(plan, settings)
    _say_whose_turn(place, plan, relay, until, screen.say)
    site_settings = training.site_settings(max_eval_samples)
    with place.lock(), contextlib.ExitStack() as stack:
        base = model.base_model(screen, training.load_in_4bit)
        base.find(plan.base)

        from fedmed_cli.cli.progress import step_events
        from fedmed_cli.cli.tables.round import summary_parts
        from fedmed_cli.events import Events
        from fedmed_cli.federation import simulation

        def events_for(name: str, number: int) -> Events:
            stack.close()
            if number and name != "coordinator":
                screen.say(f"round {number}, site {name}")
            return stack.enter_context(step_events(screen, f"round {number} {name}"))

        summaries = []
        lm = base.load(plan.base)
        for summary in simulation.run_rounds(
            place,
            plan,
            lm,
            until,
            settings,
            training=site_settings,
            max_eval_samples=max_eval_samples,
            relay=relay,
            events_for=events_for,
        ):
            stack.close()
            summaries.append(summary)
            screen.show(*summary_parts(summary), "")
        page = renew_report(place, screen)
    end = f"wrote {place.global_adapter(until)}" if summaries else f"round {newest} existed already and is measured now"
    lines = [f"{end}; next: fedmed compare, fedmed chat", *([f"wrote {page}: open it in a browser"] if page else [])]
    screen.result({"rounds": [summary.to_dict() for summary in summaries], "report": page}, *lines)


def _check_turns(plan: Plan, settings: AggregationSettings) -> None:
    """UsageError where rounds of one site cannot be made under this plan and with these settings."""
    from fedmed_cli.errors import UsageError
    from fedmed_cli.records.combining import WEIGHTINGS

    if plan.sites.min_sites > 1:
        raise UsageError(
            f"--relay: one site takes part in a round, and the plan requires {plan.sites.min_sites}",
            hint="set min_sites = 1 in federation.toml",
        )
    if settings.robust != "none" or WEIGHTINGS[settings.weights].fewest_sites > 1:
        raise UsageError("--relay: one site takes part in a round, and robust means and crosseval need several")
    if settings.server_momentum:
        raise UsageError("--relay: the server's momentum would mix the step of the site before into a site's adapter")


def _say_whose_turn(place: Workspace, plan: Plan, relay: int, until: int, say: Say) -> None:
    """Say which of the rounds to come are of one site, or that a relay has ended."""
    from fedmed_cli.adapters import archive
    from fedmed_cli.federation.simulation import taking_part

    newest = place.newest_round()
    if newest >= until:
        return
    if turns := range(newest + 1, min(relay, until) + 1):
        order = ", ".join(f"{number} {taking_part(plan, number, relay)[0]}" for number in turns)
        say(
            f"rounds of one site each: {order}; the next site trains on from its adapter, which nothing is "
            "mixed into and no agent can reject"
        )
        if relay >= until:
            say(f"the last round is of one site, whose questions then count most: --rounds {relay + 1} ends with all")
    elif relay:
        say(f"--relay {relay}: these rounds are made already; from here on all sites take part")
    elif newest and len(archive.archived_global(place, plan, newest).record.sites) == 1 < len(plan.sites.names):
        say(f"round {newest} was of one site; from here on all take part (a relay goes on with --relay N)")


def _is_report_older(place: Workspace) -> bool:
    """Whether the report is not there, or older than the newest number: a command was interrupted before it."""
    from fedmed_cli.reporting.write import REPORT_NAME

    page, metrics = place.reports / REPORT_NAME, place.root / "metrics.jsonl"
    return not page.exists() or (metrics.exists() and page.stat().st_mtime_ns < metrics.stat().st_mtime_ns)
