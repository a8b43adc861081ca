"""The report on aggregation: who counted how much in each round, and why."""

from __future__ import annotations

from fedmed_cli.records.aggregate import Aggregate, SiteDecision
from fedmed_cli.records.digests import short
from fedmed_cli.report import plots, wording
from fedmed_cli.report.page import Cell, Figure, Grid, Group, Pairs, Part, Section, Text
from fedmed_cli.report.workspace_facts import Facts


def weights_section(facts: Facts, drawn: bool) -> Section:
    """Each round's weights and verdicts, with the reasons that the coordinator wrote down."""
    records = [(one.number, one.aggregate) for one in facts.rounds if one.aggregate is not None]
    if not records:
        return Section("weights", "Weights and verdicts", [Text("No round has been aggregated here yet.", "missing")])
    sites = sorted({site for _, record in records for site in record.sites})
    shares = {
        f"round {number}": {site: record.sites[site].weight if site in record.sites else 0.0 for site in sites}
        for number, record in records
    }
    table = Grid(
        "Weight of each site by round",
        ["round", *sites],
        [[name, *(f"{one[site]:.3f}" for site in sites)] for name, one in shares.items()],
    )
    newest = next(reversed(shares.items()))
    said = wording.joined([f"{site} {weight:.2f}" for site, weight in list(newest[1].items())[: plots.MAX_SERIES]])
    description = f"Horizontal bars, one a round, divided by site. In {newest[0]} the weights are {said}."
    parts: list[Part] = []
    if len(sites) <= plots.MAX_SERIES:
        drawing = plots.stacked("shares", shares, sites, "weight in the result") if drawn else None
        parts.append(Figure("shares", "Weights by round", description, drawing, table))
    else:
        parts += [table, Text(f"{len(sites)} sites are too many for a plot.", "note")]
    for number, record in reversed(records):
        parts.append(Group(f"Round {number}", _round_parts(record), folded=number != records[-1][0]))
    parts += _scores_parts(facts)
    return Section("weights", "Weights and verdicts", parts)


def _scores_parts(facts: Facts) -> list[Part]:
    """What hospitals measured of each other's contributions, for `--weights crosseval`."""
    owners = {
        one.adapter: site for each in facts.rounds if each.aggregate for site, one in each.aggregate.sites.items()
    }
    owners |= {record.adapter: site for site, record in facts.waiting.items()}
    rows = [
        [
            record.site,
            f"{record.round}",
            owners.get(adapter, short(adapter)),
            wording.signed(one.gain),
            f"{one.standard_error:.4f}",
            f"{record.num_examples:,}",
        ]
        for record in facts.scores.values()
        for adapter, one in record.gains.items()
    ]
    if not rows:
        return []
    columns = ["scored by", "round", "adapter of", "gain in nats", "standard error", "validation examples"]
    title = "Hospitals' scores of contributions"
    about = "Scores can be used to choose weights (--weights crosseval); do not report them as results."
    return [Grid(title, columns, rows, frozenset({2}), folded=True), Text(about, "note")]


def _round_parts(record: Aggregate) -> list[Part]:
    how = f"Combined by {record.method} with weights {record.weights}"
    how += f", robust mean {record.robust} against {record.num_malicious}" if record.robust != "none" else ""
    how += f", updates clipped above {record.clip:g} times the median norm" if record.clip is not None else ""
    how += f", server step {record.server_lr:g}" if record.server_lr != 1 else ""
    how += f", server momentum {record.server_momentum:g}" if record.server_momentum else ""
    rows = [_decision(name, one) for name, one in record.sites.items()]
    reasons: list[tuple[str, str | Cell]] = [(name, Cell(lines=one.reasons)) for name, one in record.sites.items()]
    for names, verdict, why in (
        (record.missing, "missing", "sent nothing"),
        (record.excluded, "excluded", "left out with --exclude"),
    ):
        rows += [[name, Cell(verdict, "gone"), "", "", "", ""] for name in names]
        reasons += [(name, why) for name in names]
    columns = ["site", "verdict", "weight", "by claims", "update norm", "measured gain"]
    parts: list[Part] = [
        Text(f"{how}. Difference to the exact weighted mean: {wording.percent(record.truncation.overall)}."),
        Grid(f"Decisions of round {record.round}", columns, rows, frozenset({1})),
        Text("Why, as the record says:"),
        Pairs(tuple(reasons)),
    ]
    seen = record.examination
    if seen is not None:
        parts.append(
            Text(
                f"Decided on {wording.count(seen.num_examples, 'example')} of the coordinator's "
                f"({wording.count(seen.num_groups, 'group')}): loss {seen.parent.mean:.4f} before, "
                f"{seen.result.mean:.4f} after. These numbers were used to choose the weights; "
                "do not report them as results.",
                "note",
            )
        )
        parts += [Text(warning, "note")] if (warning := wording.few_groups(seen.num_groups)) else []
    if record.weights == "self-reported":
        parts.append(Text("Self-reported weights can be won by lying about the loss; they are for comparison.", "note"))
    return parts


def _decision(name: str, one: SiteDecision) -> list[str | Cell]:
    clipped = f" (to {one.clip_factor:.2f})" if one.clip_factor < 1 else ""
    gain = wording.interval(one.evidence.gain) or "not measured"
    return [
        name,
        Cell(one.verdict + clipped, one.verdict),
        f"{one.weight:.3f}",
        f"{one.prior:.3f}",
        f"{one.evidence.update_norm:.3f}",
        gain,
    ]
