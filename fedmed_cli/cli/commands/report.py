"""`fedmed report`: one HTML file about the federation, to look at and to send."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmed_cli.cli import options as o

if TYPE_CHECKING:
    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.workspace import Workspace


def report(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help=r"The file to write \[reports/report.html].", show_default=False),
    ] = None,
    answers: Annotated[
        bool, typer.Option("--answers/--no-answers", help="Show the generated answers of reports/answers.md.")
    ] = True,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check digests, signatures and lineage, and show what was found.")
    ] = False,
    require_signatures: o.RequireSignaturesOption = False,
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Write one HTML file about the federation: plan, data, losses, weights, comparison, bytes, lineage, limits.

    The file needs no network and contains no script; it is made only from records. Missing records are named, and so
    are those that hospitals should have signed, which are left out.

    Example: fedmed report
    """
    from fedmed_cli.adapters.signers import SignaturePolicy
    from fedmed_cli.reporting import write
    from fedmed_cli.text import number_of_bytes
    from fedmed_cli.trust.verify import Verification, verify_workspace

    screen, place = common.open()
    plan = place.read_plan()
    policy = SignaturePolicy(require_signatures, screen.say)
    verification = verify_workspace(place, plan, False, require_signatures, screen.detail) if verify else None
    written = write.report(place, output, answers=answers, verification=verification, policy=policy)
    result = verification or Verification(faults=list(written.untrusted))
    if result.faults:
        screen.say(f"wrote {written.path}, which names the faults")
        result.raise_faults()
    screen.result(
        {
            "path": str(written.path),
            "num_bytes": written.num_bytes,
            "with_plots": written.with_plots,
            "problems": list(written.problems),
        },
        f"wrote {written.path} ({number_of_bytes(written.num_bytes)}): open it in a browser; it needs no network",
    )


def renew_report(place: Workspace, screen: Screen) -> str | None:
    """Write the workspace's report after another command; None, said, where a file of another kind is in its place."""
    from fedmed_cli.adapters.signers import SignaturePolicy
    from fedmed_cli.errors import ConflictError
    from fedmed_cli.reporting import write

    try:
        return str(write.report(place, policy=SignaturePolicy(say=screen.say)).path)
    except ConflictError as error:
        screen.say(f"no report is written: {error.message}")
        return None
