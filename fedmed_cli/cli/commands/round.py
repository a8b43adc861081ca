"""`fedmed round`: whole rounds on one machine."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmed_cli.cli import options as o
from fedmed_cli.cli.commands.report import renew_report

if TYPE_CHECKING:
    from fedmed_cli.workspace import Workspace


def run_round(
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help=r"Run until this round exists \[one more round].")
    ] = None,
    max_steps: o.MaxStepsOption = None,
    batch_size: o.BatchSizeOption = 2,
    gradient_accumulation_steps: o.AccumulationOption = 1,
    num_train_epochs: o.EpochsOption = None,
    max_batch_tokens: o.BatchTokensOption = None,
    gradient_checkpointing: o.CheckpointingOption = False,
    load_in_4bit: o.FourBitOption = False,
    eval_steps: o.EvalStepsOption = None,
    early_stopping_patience: o.PatienceOption = None,
    save_steps: o.SaveStepsOption = None,
    logging_steps: o.LoggingStepsOption = 10,
    report_to: o.ReportToOption = None,
    max_eval_samples: Annotated[
        int | None,
        typer.Option("--max-eval-samples", min=2, help="Examples to measure on [100]."),
    ] = None,
    weights: o.WeightsOption = None,
    method: o.MethodOption = "svd",
    robust: o.RobustOption = "none",
    num_malicious: o.NumMaliciousOption = None,
    clip: o.ClipOption = 1.5,
    server_lr: o.ServerLrOption = None,
    server_momentum: o.ServerMomentumOption = 0.0,
    device: o.DeviceOption = "auto",
    base: o.BaseOption = None,
    base_wheel: o.BaseWheelOption = None,
    workspace: o.WorkspaceOption = Path("."),
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Run whole rounds on one machine: train every site, aggregate, measure on the coordinator's examples.

    It resumes where it stopped, and does nothing that train-local, aggregate and report would not do.

    Example: fedmed round --rounds 3
    """
    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.data import coordinator_examples
    from fedmed_cli.errors import TrustError
    from fedmed_cli.federation.coordinator import default_weights
    from fedmed_cli.models import bases
    from fedmed_cli.workspace import Workspace

    screen = Screen(as_json, quiet, verbose)
    place = Workspace(workspace, screen.say)
    plan = place.read_plan()
    if plan.sites.keys:
        raise TrustError(
            f"the plan pins keys for {', '.join(plan.sites.keys)}: no one machine holds all of them",
            hint="each site runs 'fedmed train-local --key FILE', the coordinator 'fedmed aggregate'",
        )
    chosen = weights or default_weights(place)
    methods = ("svd", "factor-mean")
    rules = o.rules(method, chosen, robust, num_malicious, clip, server_lr, server_momentum, methods)
    newest = place.newest_round()
    until = rounds or newest + 1
    if until <= newest and coordinator_examples.is_reported(place, newest):
        with place.lock():  # which clears up after a command that was interrupted
            page = renew_report(place, screen) if _is_report_older(place) else None
        lines = [f"round {until} exists already; the newest is {newest}"]
        screen.result({"rounds": [], "report": page}, *lines, *([f"wrote {page}"] if page else []))
        return
    settings = o.site_settings(
        max_steps=max_steps,
        num_train_epochs=num_train_epochs,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        max_batch_tokens=max_batch_tokens,
        gradient_checkpointing=gradient_checkpointing,
        eval_steps=eval_steps,
        early_stopping_patience=early_stopping_patience,
        save_steps=save_steps,
        logging_steps=logging_steps,
        report_to=report_to,
        max_eval_samples=max_eval_samples,
    )
    with place.lock(), contextlib.ExitStack() as stack:
        local = bases.find_for_plan(plan.base, base, base_wheel, screen.say)

        from fedmed_cli.cli.progress import step_events
        from fedmed_cli.cli.tables.federation import aggregate_table, contribution_lines, loss_curves, round_table
        from fedmed_cli.events import Events
        from fedmed_cli.federation import simulation
        from fedmed_cli.models import language_model

        def events_for(name: str, number: int) -> Events:
            stack.close()
            if number and name != "coordinator":
                screen.say(f"round {number}, site {name}")
            return stack.enter_context(step_events(screen, f"round {number} {name}"))

        summaries = []
        lm = language_model.load(local, device, screen.say, screen.detail, load_in_4bit=load_in_4bit)
        for summary in simulation.run_rounds(
            place,
            plan,
            lm,
            until,
            rules,
            settings=settings,
            max_eval_samples=max_eval_samples,
            events_for=events_for,
        ):
            stack.close()
            summaries.append(summary)
            if not as_json:
                first = next(iter(summary.contributions.values()))
                curves = loss_curves(summary.contributions)
                screen.result(None, round_table(summary), *curves, *aggregate_table(summary.aggregate))
                screen.result(None, contribution_lines(first)[-1], "")
        page = renew_report(place, screen)
    if as_json:
        screen.result({"rounds": [summary.to_dict() for summary in summaries], "report": page})
    else:
        there = (
            f"wrote {place.global_adapter(until)}"
            if summaries
            else f"round {until} existed already and is measured now"
        )
        lines = [f"{there}; next: fedmed compare, fedmed chat"]
        screen.result(None, *lines, *([f"wrote {page}: open it in a browser"] if page else []))


def _is_report_older(place: Workspace) -> bool:
    """Whether the report is not there, or older than the newest number: a command was interrupted before it."""
    from fedmed_cli.report import REPORT_NAME

    page, metrics = place.reports / REPORT_NAME, place.root / "metrics.jsonl"
    return not page.exists() or (metrics.exists() and page.stat().st_mtime_ns < metrics.stat().st_mtime_ns)
