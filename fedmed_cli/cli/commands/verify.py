"""`fedmed verify`: prove from the files alone what the global adapters were made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmed_cli.cli import options as o


def verify(
    folder: Annotated[
        Path | None, typer.Argument(help=r"One adapter folder or bundle \[the whole workspace].", show_default=False)
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Recompute every round and compare the result.")
    ] = False,
    require_signatures: o.RequireSignaturesOption = False,
    workspace: o.WorkspaceOption = Path("."),
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Check digests, signatures and lineage back to round 1. Changes nothing, never loads torch.

    Example: fedmed verify --recompute
    """
    from fedmed_cli.cli.screen import Screen, Table
    from fedmed_cli.errors import UsageError
    from fedmed_cli.trust.verify import verify_folder, verify_workspace
    from fedmed_cli.workspace import Workspace

    screen = Screen(as_json, quiet, verbose)
    place = Workspace(workspace, screen.say)
    if folder is not None:
        if recompute:
            raise UsageError("--recompute goes with the whole workspace, not with one folder")
        plan = place.read_plan() if place.plan_path.exists() else None
        result = verify_folder(folder, place, plan, require_signatures)
    else:
        result = verify_workspace(place, place.read_plan(), recompute, require_signatures, screen.detail)
    for note in result.notes:
        screen.say(note)
    for fault in result.faults if len(result.faults) > 1 else ():
        screen.say(f"fault: {fault.message}")
    result.raise_faults()
    rows = []
    for one in result.checked:
        again = "" if one.difference is None else "same bytes" if one.difference == 0 else f"{one.difference:.1e}"
        rows.append([one.path, str(one.round or ""), one.adapter[:12], one.signature, again])
    columns = ("adapter", "round", "digest", "signed by", "computed again")
    screen.result(
        result.to_dict(),
        *([Table("What was checked", columns, rows, frozenset({0, 2, 3, 4}))] if rows else []),
        *([f"not recomputable, so only the coordinator's word: {', '.join(result.claims)}"] if result.claims else []),
        f"{len(rows)} adapters: digests{', signatures' if require_signatures else ''} and lineage hold",
    )
