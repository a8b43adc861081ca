"""The table of what `fedmed verify` checked."""

from __future__ import annotations

from collections.abc import Sequence

from fedmed_cli.records.digests import short
from fedmed_cli.reporting.parts import Table
from fedmed_cli.trust.verify import Checked


def checked_table(checked: Sequence[Checked]) -> Table:
    """Each adapter that was checked, who signed it, and how it compares when it was computed again."""
    recomputed = any(one.difference is not None for one in checked)
    rows = []
    for one in checked:
        again = "" if one.difference is None else "same bytes" if one.difference == 0 else f"{one.difference:.1e}"
        row = [one.path, str(one.round or ""), short(one.adapter), one.signature]
        rows.append([*row, again] if recomputed else row)
    columns = ["adapter", "round", "digest", "signed by", *(["recomputed"] if recomputed else [])]
    return Table("What was checked", columns, rows, frozenset({2, 3, 4}))
