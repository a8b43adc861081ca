"""What `fedmed doctor` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedmed_cli.reporting.numbers import count
from fedmed_cli.reporting.parts import Cell, Part, Table, Text

if TYPE_CHECKING:
    from fedmed_cli.federation.doctor.findings import Diagnosis


def diagnosis_parts(diagnosis: Diagnosis) -> list[Part]:
    """A row a check, with the remedy below what was seen, and a sentence for all."""
    rows: list[list[str | Cell]] = []
    for one in diagnosis.findings:
        remedy = (f"remedy: {one.remedy}",) if one.remedy else ()
        rows.append([one.check, one.level, Cell(one.seen, lines=remedy)])
    rows += [[name, "", f"not checked: {reason}"] for name, reason in diagnosis.not_checked.items()]
    levels = [one.level for one in diagnosis.findings]
    found = f"{count(levels.count('FAIL'), 'failure')}, {count(levels.count('WARN'), 'warning')}"
    return [
        Table("Checks", ("check", "", "finding"), rows, frozenset({1, 2})),
        Text(f"{found}, in {count(len(levels), 'check')}."),
    ]
