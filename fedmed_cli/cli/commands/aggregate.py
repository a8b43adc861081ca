"""`fedmed aggregate`: the coordinator combines contributions into the next global adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmed_cli.cli import options as o


def aggregate(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help=r"Contributions, folders or bundles \[all of adapters/].", show_default=False),
    ] = None,
    aggregation: o.AggregationOptions = o.AggregationOptions(),
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Exclude this site (repeatable).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the decisions and write nothing.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the result there, not as a round of the federation.")
    ] = None,
    max_eval_samples: Annotated[
        int | None, typer.Option("--max-eval-samples", min=2, help="Coordinator's examples to measure on [100].")
    ] = None,
    model: o.ModelOptions = o.ModelOptions(),
    key: o.KeyOption = None,
    require_signatures: o.RequireSignaturesOption = False,
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Combine the contributions to a round into its global adapter and file the round under rounds/.

    Every folder passes the gate first; one that does not aborts, and nothing is written. Only agentic weights
    and --server-lr auto load the base model, to measure on the coordinator's examples.

    Example: fedmed aggregate adapters/*
    """
    from fedmed_cli.cli.progress import step_events
    from fedmed_cli.cli.signing import load_signer
    from fedmed_cli.data import coordinator_examples
    from fedmed_cli.federation import coordinator, steps
    from fedmed_cli.records.measures import COORDINATOR
    from fedmed_cli.trust.keys import signer_for

    screen, place = common.open()
    plan = place.read_plan()
    settings = aggregation.settings(coordinator.default_weights(place))
    signer = signer_for(COORDINATOR, plan, load_signer(screen, key, place.root))
    measures = settings.measures and bool(coordinator_examples.half(place, "decide"))
    if not measures and (max_eval_samples or model.base or model.base_wheel):
        screen.say("nothing is measured with these settings: --max-eval-samples, --base and --base-wheel have no use")
    with step_events(screen, "coordinator") as events:
        result = steps.aggregate(
            place,
            folders,
            settings,
            exclude=exclude or (),
            output=output,
            dry_run=dry_run,
            max_eval_samples=max_eval_samples,
            base=model.base_model(screen),
            signer=signer,
            require_signatures=require_signatures,
            events=events,
        )
    from fedmed_cli.reporting.tables.privacy import promises_table
    from fedmed_cli.reporting.tables.round import round_parts
    from fedmed_cli.text import number_of_bytes

    end = "dry run: nothing was written"
    if result.path is not None:
        end = f"wrote {result.path} ({number_of_bytes(result.num_bytes)}): send this folder to all sites"
    promises = promises_table(result.contributions, result.record.round)
    screen.result(result.record.to_dict(), *promises, *round_parts(result.record), end)
