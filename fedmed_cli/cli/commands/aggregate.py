"""`fedmed aggregate`: the coordinator combines contributions into the next global adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmed_cli.cli import options as o
from fedmed_cli.cli import parse
from fedmed_cli.errors import UsageError

if TYPE_CHECKING:
    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.federation.coordinator import RoundResult
    from fedmed_cli.reporting.parts import Part
    from fedmed_cli.workspace import Workspace


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
    waiting: o.WaitOptions = o.WaitOptions(),
    min_sites: Annotated[
        int | None,
        o.waiting_option("--min-sites", "With --deadline: minimum contributions [the plan's].", min=1, env=False),
    ] = None,
    deadline: Annotated[
        str | None,
        o.waiting_option(
            "--deadline", "With --wait: how long to wait for all sites, such as 48h [forever].", env=False
        ),
    ] = None,
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Combine the contributions to a round into its global adapter and file the round under rounds/.

    Every folder must pass the gate first; if one does not, nothing is written. Only agentic weights
    and --server-lr auto load the base model, to measure on the coordinator's examples.
    With --wait a bad folder does not stop the round: it is refused, and the others are awaited.

    Example: fedmed aggregate adapters/*
    """
    from fedmed_cli.cli.progress import step_events
    from fedmed_cli.cli.signing import load_signer
    from fedmed_cli.data import coordinator_examples
    from fedmed_cli.federation import coordinator, steps
    from fedmed_cli.records.measures import COORDINATOR
    from fedmed_cli.trust.keys import signer_for

    waiting.refuse_without_wait(deadline=deadline, min_sites=min_sites)
    if waiting.wait and (folders or exclude or dry_run or output):
        raise UsageError("--wait takes what comes: no folders, --exclude, --dry-run or --output")
    screen, place = common.open()
    plan = place.read_plan()
    default_weights = partial(coordinator.default_weights, place, screen.say)
    settings = aggregation.settings(default_weights, start_rounds=waiting.wait)
    signer = signer_for(COORDINATOR, plan, load_signer(screen, key, place.root))
    measures = settings.measures and bool(coordinator_examples.half(place, "decide"))
    if not measures and (max_eval_samples or model.base or model.base_wheel):
        screen.say("nothing is measured with these settings: --max-eval-samples, --base and --base-wheel have no use")
    base = model.base_model(screen)

    def combine(paths: Sequence[Path] | None) -> RoundResult:
        with step_events(screen, "coordinator") as events:
            return steps.aggregate(
                place,
                paths,
                settings,
                exclude=exclude or (),
                output=output,
                dry_run=dry_run,
                max_eval_samples=max_eval_samples,
                base=base,
                signer=signer,
                require_signatures=require_signatures,
                events=events,
            )

    if not waiting.wait:
        result = combine(folders)
        screen.result(result.record.to_dict(), *_parts(result))
        return
    enough = plan.sites.min_sites if min_sites is None else min_sites
    seconds = None if deadline is None else parse.duration("--deadline", deadline)
    if min_sites is not None and seconds is None:
        raise UsageError("--min-sites goes with --deadline: without it all sites are awaited")
    _wait(screen, place, waiting, enough, seconds, combine, require_signatures)


def _wait(
    screen: Screen,
    place: Workspace,
    waiting: o.WaitOptions,
    min_sites: int,
    deadline: float | None,
    combine: Callable[[Sequence[Path]], RoundResult],
    require_signatures: bool,
) -> None:
    from fedmed_cli.federation import unattended

    results: list[RoundResult] = []

    def make(paths: Sequence[Path]) -> None:
        results.append(combine(paths))
        screen.show(*_parts(results[-1]))

    mailbox = waiting.check(place)
    until = waiting.until(place)
    party = unattended.Coordinator(place, mailbox, until, min_sites, deadline, make, require_signatures, screen.say)
    unattended.wait(party, waiting.seconds)
    screen.result({"rounds": [result.record.to_dict() for result in results]}, f"round {until} is there")


def _parts(result: RoundResult) -> list[Part | str]:
    """What is shown of a round."""
    from fedmed_cli.reporting.tables.privacy import promises_table
    from fedmed_cli.reporting.tables.round import round_parts
    from fedmed_cli.text import number_of_bytes

    end = "dry run: nothing was written"
    if result.path is not None:
        end = f"wrote {result.path} ({number_of_bytes(result.num_bytes)}): send this folder to all sites"
    promises = promises_table(result.contributions, result.record.round)
    return [*promises, *round_parts(result.record), end]
