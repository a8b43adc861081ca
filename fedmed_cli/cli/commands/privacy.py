"""`fedmed privacy`: what a hospital's ledger says was spent on its records."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from fedmed_cli.cli import options as o


def privacy(
    ledger: o.LedgerOption = None,
    budget: Annotated[
        float | None, typer.Option("--dp-budget", min=1e-3, help="Epsilon that may be spent on the same records.")
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(
            "--dp-delta",
            min=1e-100,
            max=0.1,
            help=r"Delta at which epsilon is computed \[a tenth of one unit's share].",
        ),
    ] = None,
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Show the privacy budget that was spent on a hospital's records, over all rounds and federations, and the rest.

    It reads the ledger, which never leaves the hospital, and changes nothing.

    Example: fedmed privacy --dp-budget 8
    """
    from fedmed_cli.federation.private_training import list_spent
    from fedmed_cli.reporting.tables.privacy import spent_parts
    from fedmed_cli.trust.ledger import Ledger, default_ledger_path

    screen, place = common.open()
    book = Ledger(ledger or default_ledger_path(), place.private / "privacy-seal.json", screen.say)
    spent = list_spent(book.read(), budget, delta)
    screen.result({"ledger": str(book.path), "spent": [asdict(one) for one in spent]}, *spent_parts(spent, book.path))
