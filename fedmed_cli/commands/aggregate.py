"""`fedmed aggregate`: the coordinator combines contributions into the next global adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmed_cli import options as o


def aggregate(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Contributions, folders or bundles [all of adapters/].", show_default=False),
    ] = None,
    method: o.MethodOption = "svd",
    weights: o.WeightsOption = "tokens",
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Leave this site out (repeatable).")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the result there, not as a round of the federation.")
    ] = None,
    no_clip: Annotated[bool, typer.Option("--no-clip", help="Do not shorten updates above 1.5 x the median.")] = False,
    key: o.KeyOption = None,
    require_signatures: o.RequireSignaturesOption = False,
    workspace: o.WorkspaceOption = Path("."),
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Combine the contributions to a round into its global adapter and file the round under rounds/.

    Every folder passes the gate first; one that does not aborts, and nothing is written.

    Example: fedmed aggregate adapters/*
    """
    from fedmed_cli import rounds
    from fedmed_cli.aggregation.coordinator import DEFAULT_CLIP
    from fedmed_cli.commands.signing import load_signer
    from fedmed_cli.records import COORDINATOR
    from fedmed_cli.screen import Screen, number_of_bytes
    from fedmed_cli.trust import signer_for
    from fedmed_cli.workspace import Workspace

    o.choice("--method", method, ("svd", "stack", "factor-mean"))
    o.choice("--weights", weights, ("tokens", "examples", "uniform"))
    screen = Screen(as_json, quiet, verbose)
    place = Workspace(workspace, screen.say)
    signer = load_signer(screen, key, workspace)
    with place.lock():
        result = rounds.aggregate(
            place,
            folders or sorted(path for path in place.adapters.glob("*") if not path.name.startswith(".")),
            method=method,
            weights=weights,
            clip=None if no_clip else DEFAULT_CLIP,
            exclude=tuple(exclude or ()),
            output=output,
            require_signatures=require_signatures,
            signer=signer_for(COORDINATOR, place.read_plan(), signer),
            say=screen.say,
        )
    from fedmed_cli.commands.tables import aggregate_table

    screen.result(
        result.record.to_dict(),
        *aggregate_table(result.record),
        f"wrote {result.path} ({number_of_bytes(result.num_bytes)}): send this folder to all sites",
    )
