"""How `fedmed compare` shows what it measured."""

from __future__ import annotations

from collections.abc import Mapping

from fedmed_cli.cli.screen import Table
from fedmed_cli.cli.tables import sparklines
from fedmed_cli.cli.tables.federation import interval_text
from fedmed_cli.intervals import FEW_GROUPS
from fedmed_cli.records.comparison import Choices, Comparison, Generated, Matrix, Rate, Score
from fedmed_cli.records.measures import OVERALL

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
        rows = [[name, interval_text(difference)] for name, difference in record.on_other_sites.items()]
        lines.append(Table("On the other sites' examples", ("adapter of one site", "global against it, 95 %"), rows))
    lines += _notes(record)
    if record.generated:
        lines += _generated(record.generated)
    if record.choices:
        lines += _choices(record.choices)
    return lines


def _percent(rate: Rate | None) -> str:
    if rate is None:
        return ""
    return f"{100 * rate.score.mean:.1f} [{100 * rate.score.low:.1f}, {100 * rate.score.high:.1f}]"


def _change(rate: Rate) -> str:
    gain = rate.against_base
    return f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]" if gain else ""


def _choices(record: Choices) -> list[Table | str]:
    rows = []
    for name, score in record.adapters.items():
        row = [name, _percent(score.accuracy), _percent(score.accuracy_norm), _change(score.accuracy_norm)]
        rows.append([*row, _percent(score.by_letter), _percent(score.asked), f"{score.num_unparseable}"])
    columns = ("adapter", "by text", "per character", "against base", "by letter", "asked", "unparseable")
    title = f"Accuracy in % on {record.num_questions} multiple-choice questions of {record.examples}"
    return [
        Table(title, columns, rows),
        f"Guessing gets {100 * record.chance:.1f} %. 95 % intervals; the difference to the base is that per character. "
        f"{record.num_asked} questions were asked for a letter; an answer without one counts as wrong.",
    ]


def _generated(record: Generated) -> list[Table | str]:
    rows = []
    for name, score in record.adapters.items():
        row = [name, _percent(score.rouge_l), _change(score.rouge_l), _percent(score.token_f1), _change(score.token_f1)]
        rows.append([*row, f"{score.num_empty}", f"{score.num_unfinished}"])
    columns = ("adapter", "ROUGE-L", "against base", "token F1", "against base", "empty", "cut")
    title = f"Generated answers to {record.num_questions} test questions against their reference answers, in %"
    return [
        Table(title, columns, rows),
        f"At most {record.max_new_tokens} tokens an answer; intervals resample {record.num_groups} groups. Words in "
        "common are no measure of being right.",
    ]


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
    rows = [[name, sparklines.interval(one.low, one.mean, one.high, start, end)] for name, one in drawn.items()]
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
        lines.append("with a single group no interval can be computed; the numbers stand for themselves")
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


def matrix_lines(record: Matrix) -> list[Table | str]:
    """The loss of each adapter at each site, and its gain on the base there."""
    names = ["base", *(name for name in record.adapters if name != "base")]
    losses, gains = [], []
    for site, cell in record.sites.items():
        scores = [cell.scores.get(name) for name in names]
        losses.append([f"{site} ({cell.num_examples})", *(f"{score.loss:.4f}" if score else "" for score in scores)])
        gains.append([site, *(interval_text(score.against_base) if score else "" for score in scores[1:])])
    losses.append(["mean of sites", *(f"{record.means[name]:.4f}" if name in record.means else "" for name in names)])
    lines: list[Table | str] = [
        Table("Held-out loss, site (examples) by adapter", ["site", *names], losses),
        Table("Against the base, 95 %", ["site", *names[1:]], gains),
    ]
    worst = record.worst_sites.get("global")
    score = record.sites[worst].scores["global"] if worst else None
    if score is not None and score.against_base is not None:
        lines.append(
            f"Worst site of the global adapter: {worst}, {interval_text(score.against_base)} against the base."
        )
    lines.append("Nats per answer token, negative is better; each hospital measured on its own test examples.")
    few = [f"{site} ({cell.num_groups})" for site, cell in record.sites.items() if cell.num_groups < FEW_GROUPS]
    if few:
        lines.append(f"few groups, so rough intervals: {', '.join(few)} ({FEW_GROUPS} or more are wanted)")
    return lines
