"""What `fedmed status` shows, on one screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedmed_cli.records.digests import short
from fedmed_cli.reporting import numbers
from fedmed_cli.reporting.parts import Pairs, Part
from fedmed_cli.text import MOST_NAMED

if TYPE_CHECKING:
    from fedmed_cli.federation.status import LastRound, SiteStatus, Status


def status_parts(status: Status) -> list[Part]:
    """Names with their values, the next steps last."""
    sites = status.sites
    rows = [
        ("round", f"{status.round}, base model {status.base}, plan {short(status.plan)}"),
        ("sites", f"{len(sites)}, at least {status.min_sites} per round"),
    ]
    for state in ("here", "awaited", "late", "refused"):
        names = [_named(name, site) for name, site in sites.items() if site.state == state]
        if names:
            rows.append((state, ", ".join(names)))
    rows += _first_rows("refuses", [one.reason + (f" ({one.hint})" if one.hint else "") for one in status.refused])
    rows += _last_rows(status.last) if status.last else []
    rows += _first_rows("note", status.notes)
    for one in status.next:
        rows += [(f"next, {one.who}", one.command or one.why), *([("", one.why)] if one.command else [])]
    return [Pairs(rows)]


def _first_rows(name: str, values: Sequence[str]) -> list[tuple[str, str]]:
    """A row each for the first few, and how many more there are."""
    more = len(values) - MOST_NAMED
    rows = [(name, value) for value in values[:MOST_NAMED]]
    return [*rows, ("", f"and {more:,} more, which --json shows")] if more > 0 else rows


def _named(name: str, site: SiteStatus) -> str:
    """A site with what is odd about its contribution."""
    odd = []
    if site.state in ("awaited", "late") and site.path:
        odd.append(f"{site.path} is for round {site.round}")
    if site.state == "here" and site.signature != "pinned key":
        odd.append("not signed" if site.signature == "none" else "signed with an unknown key")
    if site.has_checkpoint:
        odd.append("in training, or interrupted in it")
    return name + (f" ({'; '.join(odd)})" if odd else "")


def _last_rows(last: LastRound) -> list[tuple[str, str]]:
    """What the newest round gained, and what became of each site's contribution."""
    gained = "not measured by the coordinator"
    if last.loss_before is not None and last.loss_after is not None:
        change = numbers.signed(last.loss_after - last.loss_before)
        gained = f"loss {last.loss_before:.4f} to {last.loss_after:.4f} ({change}) on the {last.measured_on}"
    if gains := [one.reported_gain for one in last.sites.values() if one.reported_gain is not None]:
        gained += f"; the sites say they gained {numbers.signed(min(gains))} to {numbers.signed(max(gains))}"
    rows = [(f"round {last.round}", gained)]
    for verdict in ("accepted", "clipped", "rejected"):
        named = [
            f"{name} {one.weight:.3f}" + (f" ({'; '.join(one.reasons)})" if verdict == "rejected" else "")
            for name, one in last.sites.items()
            if one.verdict == verdict
        ]
        rows += [(f"  {verdict}", ", ".join(named))] if named else []
    left = {"sent nothing": last.missing, "excluded": last.excluded}
    return [*rows, *((f"  {what}", ", ".join(names)) for what, names in left.items() if names)]
