"""How `fedmed compare` shows what it measured."""

from __future__ import annotations

from collections.abc import Mapping

from fedmed_cli.commands import drawings
from fedmed_cli.commands.tables import interval_text
from fedmed_cli.intervals import FEW_GROUPS
from fedmed_cli.records import OVERALL, Comparison, Score
from fedmed_cli.screen import Table

NO_EFFECT = "The interval includes 0: these examples do not show a difference between global adapter and base."


def comparison_lines(record: Comparison) -> list[Table | str]:
    """All tables of a comparison, and in words what they mean."""
    lines = _overall(record)
    lines += _intervals(record)
    sites = [part for part in record.scores["base"] if part != OVERALL]
    if len(sites) > 1:
        lines.append(_parts("Loss on each site's share (examples)", record.scores, sites))
        lines += _worst(record)
    for column, values in record.columns.items():
        turned = {name: {value: values[value][name] for value in values} for name in record.scores}
        lines.append(_parts(f"Loss by {column} (examples)", turned, list(values)))
    if record.on_other_sites:
        rows = [[site, interval_text(difference)] for site, difference in record.on_other_sites.items()]
        lines.append(
            Table("On the other sites' examples", ("site", "global against the site's own adapter, 95 %"), rows)
        )
    lines += _notes(record)
    return lines


def _overall(record: Comparison) -> list[Table | str]:
    with_global = any(score[OVERALL].against_global for score in record.scores.values())
    columns = ["adapter", "loss", "ppl", "against base, 95 %", *(["against global, 95 %"] if with_global else [])]
    rows = []
    for name, score in record.scores.items():
        overall = score[OVERALL]
        row = [name, f"{overall.loss:.4f}", f"{overall.perplexity:.2f}", interval_text(overall.against_base)]
        row += [interval_text(overall.against_global)] if with_global else []
        tally = overall.tally
        rows.append([*row, f"{tally.wins}/{tally.ties}/{tally.losses}" if tally else ""])
    where = f" of site {record.site}" if record.site else ""
    num_examples = record.scores["base"][OVERALL].num_examples
    title = f"Held-out loss on {num_examples} examples{where} of {record.examples}"
    return [Table(title, [*columns, "better/same/worse"], rows)]


def _intervals(record: Comparison) -> list[Table | str]:
    """Every adapter's interval against the base drawn on one axis, where there is more than the base."""
    found = {name: score[OVERALL].against_base for name, score in record.scores.items()}
    drawn = {name: interval for name, interval in found.items() if interval is not None}
    if not drawn:
        return []
    start = min(0.0, *(interval.low for interval in drawn.values()))
    end = max(0.0, *(interval.high for interval in drawn.values()))
    rows = [[name, drawings.interval(one.low, one.mean, one.high, start, end)] for name, one in drawn.items()]
    title = f"Against the base, {start:+.3f} to {end:+.3f} nats; left is better"
    return [Table(title, ("adapter", "95 % interval"), rows, frozenset({0, 1}))]


def _parts(title: str, scores: Mapping[str, Mapping[str, Score]], parts: list[str]) -> Table:
    rows = [[name, *(f"{score[part].loss:.4f}" for part in parts)] for name, score in scores.items()]
    heads = [f"{part} ({scores['base'][part].num_examples})" for part in parts]
    return Table(title, ["adapter", *heads], rows)


def _worst(record: Comparison) -> list[str]:
    site = record.worst_sites.get("global")
    score = record.scores["global"][site] if site else None
    if score is None or score.against_base is None:
        return []
    return [f"Worst site of the global adapter: {site}, {interval_text(score.against_base)} against the base."]


def _notes(record: Comparison) -> list[Table | str]:
    base = record.scores["base"][OVERALL]
    lines: list[Table | str] = [
        f"Nats per answer token ({base.num_tokens:,} tokens); differences are paired, negative is better; "
        f"intervals resample {base.num_groups} groups."
    ]
    if base.num_groups < FEW_GROUPS:
        lines.append(f"only {base.num_groups} groups: the intervals are rough ({FEW_GROUPS} or more are wanted)")
    if base.num_groups < 2:
        lines.append("one group alone says nothing about others: there are no intervals, only the numbers themselves")
    if verdict := verdict_line(record):
        lines.append(verdict)
    if record.recovered:
        share = record.recovered
        lines.append(
            f"The global adapter reaches {100 * share.mean:.0f} % of the pooled adapter's gain on the base "
            f"[{100 * share.low:.0f} %, {100 * share.high:.0f} %]."
        )
    elif "pooled" in record.scores:
        lines.append("The pooled adapter is not clearly better than the base: no share of its gain is given.")
    return lines


def verdict_line(record: Comparison) -> str | None:
    """One sentence on whether federating helped overall, from the interval alone."""
    score = record.scores.get("global", {}).get(OVERALL)
    if score is None or score.against_base is None or score.num_groups < 2:
        return None
    interval = score.against_base
    if interval.high < 0:
        return f"The global adapter is better than the base by {-interval.mean:.4f} nats; the interval excludes 0."
    if interval.low > 0:
        return f"The global adapter is worse than the base by {interval.mean:.4f} nats; the interval excludes 0."
    return NO_EFFECT
