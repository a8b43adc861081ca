"""`fedmed status`: where the federation stands and what is next."""

from __future__ import annotations

from typing import Annotated

import typer

from fedmed_cli.cli import options as o


def status(
    site: Annotated[str | None, typer.Option("--site", help="Also say what this hospital does next.")] = None,
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Show the current round, whose contributions are here, awaited or refused, the last gain, and what to do next.

    Each contribution passes the gate as for 'fedmed aggregate', so what is refused here is refused there. It loads no
    model and writes nothing.

    Example: fedmed status --site B
    """
    from fedmed_cli.cli.tables.status import status_parts
    from fedmed_cli.federation.status import read_status

    screen, place = common.open()
    found = read_status(place, site)
    screen.result(found.to_dict(), *status_parts(found))
