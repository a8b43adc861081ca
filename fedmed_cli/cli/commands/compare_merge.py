"""`fedmed compare merge`: the hospitals' comparisons as one matrix, site by adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmed_cli.cli import options as o
from fedmed_cli.errors import UsageError


def merge(
    files: Annotated[list[Path], typer.Argument(help="The hospitals' reports/compare-SITE.json.", show_default=False)],
    require_signatures: o.RequireSignaturesOption = False,
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Merge what hospitals measured on their own test examples into one matrix, reports/matrix.json.

    Example: fedmed compare merge reports/compare-*.json
    """
    from fedmed_cli.adapters.signers import SignaturePolicy
    from fedmed_cli.evaluation import site_matrix
    from fedmed_cli.reporting.tables.comparison import matrix_parts
    from fedmed_cli.workspace.durable import write_file

    screen, place = common.open()
    plan = place.read_plan()
    if len(files) < 2:
        raise UsageError("compare merge takes two files or more, for example: compare merge reports/compare-*.json")
    with place.lock():
        record = site_matrix.merge(plan, files, SignaturePolicy(require_signatures, screen.say))
        path = place.reports / "matrix.json"
        place.set_aside(path)
        write_file(path, record.to_bytes())
    screen.result(record.to_dict(), *matrix_parts(record, plan), f"wrote {path}")
