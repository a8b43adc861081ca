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
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Check digests, signatures and lineage back to round 1. Changes nothing, never loads torch.

    Example: fedmed verify --recompute
    """
    from fedmed_cli.errors import UsageError
    from fedmed_cli.events import say_first
    from fedmed_cli.reporting.tables.verification import checked_table
    from fedmed_cli.trust.verify import verify_folder, verify_workspace

    screen, place = common.open()
    if folder is not None:
        if recompute:
            raise UsageError("--recompute goes with the whole workspace, not with one folder")
        plan = place.read_plan() if place.plan_path.exists() else None
        result = verify_folder(folder, place, plan, require_signatures)
    else:
        result = verify_workspace(place, place.read_plan(), recompute, require_signatures, screen.detail)
    for note in result.notes:
        screen.say(note)
    if len(result.faults) > 1:
        say_first(screen.say, [f"fault: {fault.message}" for fault in result.faults], "faults")
    result.raise_faults()
    claims = ", ".join(result.claims)
    proved = "digests, signatures and lineage" if require_signatures else "digests and lineage"
    screen.result(
        result.to_dict(),
        *([checked_table(result.checked)] if result.checked else []),
        *([f"cannot be recomputed and rests on the coordinator's word: {claims}"] if claims else []),
        f"{len(result.checked)} adapters checked: {proved} hold",
    )
