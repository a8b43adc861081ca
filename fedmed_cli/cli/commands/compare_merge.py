"""`fedmed compare --merge`: the hospitals' comparisons as one matrix, site by adapter."""

from __future__ import annotations

from pathlib import Path

from fedmed_cli.cli.screen import Screen
from fedmed_cli.cli.tables.comparison import matrix_lines
from fedmed_cli.errors import UsageError
from fedmed_cli.evaluation import site_matrix
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import Workspace
from fedmed_cli.workspace.durable import write_file


def write_matrix(screen: Screen, place: Workspace, plan: Plan, files: list[Path]) -> None:
    """Merge the hospitals' comparisons and write reports/matrix.json."""
    if len(files) < 2:
        raise UsageError("--merge takes two files or more, for example --merge reports/compare-*.json")
    with place.lock():
        record = site_matrix.merge(plan, files, screen.say)
        path = place.reports / "matrix.json"
        place.set_aside(path)
        write_file(path, record.to_bytes())
    screen.result(record.to_dict(), *matrix_lines(record), f"wrote {path}")
