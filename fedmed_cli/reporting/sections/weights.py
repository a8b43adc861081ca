"""The report on aggregation: who counted how much in each round, and why."""

from __future__ import annotations

from fedmed_cli.reporting.parts import Figure, Group, Part, Section, Stacked, Table, Text
from fedmed_cli.reporting.tables.round import round_parts, scores_table
from fedmed_cli.reporting.workspace_records import WorkspaceRecords


def weights_section(records: WorkspaceRecords) -> Section:
    """Each round's weights and verdicts, with the reasons that the coordinator wrote down."""
    aggregates = [(one.number, one.aggregate) for one in records.rounds if one.aggregate is not None]
    if not aggregates:
        return Section("weights", "Weights and verdicts", [Text("No round has been aggregated here yet.", "missing")])
    sites = sorted({site for _, record in aggregates for site in record.sites})
    shares = {
        f"round {number}": {site: record.sites[site].weight if site in record.sites else 0.0 for site in sites}
        for number, record in aggregates
    }
    rows = [[name, *(f"{one[site]:.3f}" for site in sites)] for name, one in shares.items()]
    table = Table("Weight of each site by round", ["round", *sites], rows)
    parts: list[Part] = [Figure("shares", "Weights by round", Stacked(shares, sites, "weight in the result"), table)]
    newest = aggregates[-1][0]
    parts += [
        Group(f"Round {number}", round_parts(record), folded=number != newest)
        for number, record in reversed(aggregates)
    ]
    owners = {one.adapter: site for _, record in aggregates for site, one in record.sites.items()}
    owners |= {record.adapter: site for site, record in records.waiting.items()}
    if records.scores:
        about = "Scores can be used to choose weights (--weights crosseval); do not report them as results."
        parts += [scores_table(records.scores.values(), owners), Text(about, "note")]
    return Section("weights", "Weights and verdicts", parts)
