"""How `fedmed keys` shows keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedmed_cli.records.plan import Plan
from fedmed_cli.records.signatures import fingerprint, fingerprint_digits
from fedmed_cli.reporting.parts import Table


def describe_key(public: str, path: Path) -> dict[str, str]:
    """What --json prints of a public key."""
    return {
        "public": public,
        "fingerprint": fingerprint(public),
        "spoken": fingerprint_digits(public),
        "path": str(path),
    }


def key_lines(public: str) -> list[str]:
    """A public key with its fingerprint, also in digits."""
    return [public, f"fingerprint    {fingerprint(public)}", f"to read aloud  {fingerprint_digits(public)}"]


def pinned_table(pinned: Mapping[str, str]) -> Table:
    """The keys of a plan by their owners."""
    rows = [[name, fingerprint(text), fingerprint_digits(text)] for name, text in pinned.items()]
    return Table("Keys that the plan pins", ("who", "fingerprint", "to read aloud"), rows, frozenset({0, 1, 2}))


def changes(before: Mapping[str, str], plan: Plan) -> tuple[list[str], list[Table]]:
    """Whose keys in the plan are not those pinned before, and a table of them."""
    now = plan.sites.keys
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    rows = [
        [name, *(fingerprint(keys[name]) if name in keys else "none" for keys in (before, now))] for name in changed
    ]
    return changed, [Table("Keys that changed", ("who", "before", "now"), rows, frozenset({1, 2}))] if rows else []
