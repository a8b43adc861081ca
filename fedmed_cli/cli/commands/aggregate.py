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
    weights: o.WeightsOption = None,
    method: o.MethodOption = "svd",
    robust: o.RobustOption = "none",
    num_malicious: o.NumMaliciousOption = None,
    clip: o.ClipOption = 1.5,
    server_lr: o.ServerLrOption = None,
    server_momentum: o.ServerMomentumOption = 0.0,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Exclude this site (repeatable).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the decisions and write nothing.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the result there, not as a round of the federation.")
    ] = None,
    max_eval_samples: Annotated[
        int | None, typer.Option("--max-eval-samples", min=2, help="Coordinator's examples to measure on [100].")
    ] = None,
    device: o.DeviceOption = "auto",
    base: o.BaseOption = None,
    base_wheel: o.BaseWheelOption = None,
    key: o.KeyOption = None,
    require_signatures: o.RequireSignaturesOption = False,
    workspace: o.WorkspaceOption = Path("."),
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Combine the contributions to a round into its global adapter and file the round under rounds/.

    Every folder passes the gate first; one that does not aborts, and nothing is written. Only agentic weights
    and --server-lr auto load the base model, to measure on the coordinator's examples.

    Example: fedmed aggregate adapters/*
    """
    import contextlib

    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.cli.signing import load_signer
    from fedmed_cli.data import coordinator_examples
    from fedmed_cli.federation import coordinator
    from fedmed_cli.records.measures import COORDINATOR
    from fedmed_cli.trust.keys import signer_for
    from fedmed_cli.workspace import Workspace

    screen = Screen(as_json, quiet, verbose)
    place = Workspace(workspace, screen.say)
    plan = place.read_plan()
    chosen = weights or coordinator.default_weights(place)
    rules = o.rules(method, chosen, robust, num_malicious, clip, server_lr, server_momentum)
    signer = signer_for(COORDINATOR, plan, load_signer(screen, key, workspace))
    paths = folders or sorted(path for path in place.adapters.glob("*") if not path.name.startswith("."))
    with place.lock(), contextlib.ExitStack() as stack:
        examiner = None
        if rules.measures and coordinator_examples.half(place, "decide"):
            # What the gate refuses need not wait for a model.
            coordinator.check(place, plan, paths, exclude or (), output, require_signatures)
            from fedmed_cli.cli.progress import step_events
            from fedmed_cli.evaluation import coordinator_set, measuring
            from fedmed_cli.models import bases, language_model

            lm = language_model.load(bases.find_for_plan(plan.base, base, base_wheel, screen.say), device, screen.say)
            events = stack.enter_context(step_events(screen, "coordinator"))
            deciding = coordinator_set.coordinator_set(place, plan, lm, "decide", max_eval_samples, events.say)
            examiner = measuring.examiner(place, plan, lm, deciding, events.measured) if deciding else None
        elif max_eval_samples or base or base_wheel:
            screen.say("nothing is measured with these rules: --max-eval-samples, --base and --base-wheel have no use")
        result = coordinator.aggregate(
            place,
            paths,
            rules,
            exclude=tuple(exclude or ()),
            output=output,
            dry_run=dry_run,
            examiner=examiner,
            require_signatures=require_signatures,
            signer=signer,
            say=screen.say,
        )
    from fedmed_cli.report.tables.round import round_parts
    from fedmed_cli.text import number_of_bytes

    end = "dry run: nothing was written"
    if result.path is not None:
        end = f"wrote {result.path} ({number_of_bytes(result.num_bytes)}): send this folder to all sites"
    screen.result(result.record.to_dict(), *round_parts(result.record), end)
