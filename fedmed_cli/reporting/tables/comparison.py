"""Tables of a comparison: losses with paired differences, overall, by site and by column; and the matrix of sites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedmed_cli.intervals import FEW_GROUPS
from fedmed_cli.records.checks import ALONE, BASE, BOUNDS, GLOBAL, GLOBAL_OF_ROUND, PERSONAL
from fedmed_cli.records.comparison import Comparison, Matrix, Score
from fedmed_cli.records.measures import OVERALL, Interval
from fedmed_cli.records.plan import Plan
from fedmed_cli.reporting import numbers
from fedmed_cli.reporting.parts import Cell, Curves, Figure, Forest, Group, Part, Table, Text
from fedmed_cli.reporting.tables.answers import generated_parts, multiple_choice_parts

MAX_FOREST_ROWS = 40
MAX_COLUMNS = 20
STARS = Text("Below each loss is its difference from the base, marked * where its 95 % interval excludes 0.")
SHADES = 4
GAIN_OVER = {"base": "the base", "best_alone": "the best hospital alone", "mean_alone": "hospitals alone, mean"}


def in_order(names: Iterable[str], plan: Plan) -> list[str]:
    """Adapters in a reader's order: base, the sites', all others, the global ones of earlier rounds, the newest."""

    def key(name: str) -> tuple[int, int, str]:
        number = round_of(name)
        if name in (BASE, GLOBAL):
            return (0 if name == BASE else 4, 0, "")
        if name in plan.sites.names:
            return (1, plan.sites.names.index(name), "")
        return (2, 0, name) if number is None else (3, number, "")

    return sorted(names, key=key)


def round_of(name: str) -> int | None:
    """The round of an earlier global adapter, by its name; None for other names."""
    number = name.removeprefix(GLOBAL_OF_ROUND)
    return int(number) if name != number and number.isdecimal() and len(number) < 9 else None


def verdict(record: Comparison | None) -> str | None:
    """Whether federating helped overall, from the interval of global adapter minus base; None where that is unknown."""
    score = record.scores.get(GLOBAL, {}).get(OVERALL) if record else None
    if score is None or score.against_base is None or score.num_groups < 2:
        return None
    change = score.against_base
    if change.low <= 0 <= change.high:
        return (
            "The held-out examples do not show a difference between the global adapter and the base model: the 95 % "
            f"interval {numbers.interval(change)} nats includes 0."
        )
    better, lower = ("better", "lower") if change.high < 0 else ("worse", "higher")
    low, high = sorted((abs(change.low), abs(change.high)))
    return (
        f"On the held-out examples the global adapter is {better} than the base model: its loss is {lower} by "
        f"{abs(change.mean):.4f} nats per answer token (95 % interval {low:.4f} to {high:.4f})."
    )


def comparison_parts(record: Comparison, plan: Plan, name: str = "compare") -> list[Part]:
    """All that was measured of the adapters, but for the verdict. `name` makes its figure unique on a page."""
    scores = {name: record.scores[name] for name in in_order(record.scores, plan) if OVERALL in record.scores[name]}
    if not scores:
        return [Text("This comparison has no score on all examples together.", "missing")]
    parts = _about_parts(record, next(iter(scores.values()))[OVERALL])
    parts += _overall_tables({name: one[OVERALL] for name, one in scores.items()})
    sites = sorted({part for one in scores.values() for part in one} - {OVERALL})
    shares = {site: {name: one[site] for name, one in scores.items() if site in one} for site in sites}
    if len(shares) < 2:
        shares = {}  # the one site's share is the whole
    parts.append(_forest_figure({name: one[OVERALL] for name, one in scores.items()}, shares, name))
    if shares or record.columns:
        parts.append(STARS)
    if shares:
        parts.append(losses_table("Loss on each site's share of the examples", "site", shares, plan))
        parts += _worst_sites_text(record.worst_sites, shares)
    for column, values in record.columns.items():
        parts.append(losses_table(f"Loss by {column}", column, values, plan, folded=True))
    parts += _joining_parts(record)
    parts += _rounds_figure({one: score[OVERALL] for one, score in scores.items()}, record.round, name)
    parts += _recovered_parts(record)
    if record.choices is not None:
        order = in_order(record.choices.adapters, plan)
        parts.append(Group("Multiple choice", multiple_choice_parts(record.choices, order)))
    if record.generated is not None:
        order = in_order(record.generated.adapters, plan)
        parts.append(Group("Generated answers", generated_parts(record.generated, order)))
    return parts


def _about_parts(record: Comparison, score: Score) -> list[Part]:
    """What was measured on, and how sure that is."""
    examples = numbers.count(score.num_examples, "example") + (f" of site {record.site}" if record.site else "")
    tokens = numbers.count(score.num_tokens, "answer token")
    about = (
        f"{examples}, from {record.examples} ({tokens}). Losses are in nats per answer token; differences are paired "
        f"by example, below 0 is better; the 95 % intervals resample {numbers.count(score.num_groups, 'group')} "
        f"{record.num_resamples:,} times and are not corrected for their number."
    )
    parts: list[Part] = [Text(about), *numbers.few_groups(score.num_groups)]
    if record.num_skipped or record.num_truncated:
        skipped = f"{record.num_skipped:,} examples were skipped: the question alone fills the maximum length"
        parts.append(Text(f"{skipped}; {record.num_truncated:,} answers were cut there.", "note"))
    return parts


def _overall_tables(scores: Mapping[str, Score]) -> list[Part]:
    """Losses and differences to the base; and what else is compared, in a table of its own that fits 80 columns."""
    losses, others = [], []
    for name, score in scores.items():
        losses.append([name, numbers.loss(score), f"{score.perplexity:.2f}", numbers.interval(score.against_base)])
        tally = score.tally
        counts = f"{tally.wins:,} / {tally.ties:,} / {tally.losses:,}" if tally else ""
        others.append([name, numbers.interval(score.against_global), counts])
    parts: list[Part] = [Table("Overall", ["adapter", "loss", "ppl", "against base, 95 %"], losses)]
    if any(difference or counts for _, difference, counts in others):
        columns = ["adapter", "against global, 95 %", "better / same / worse"]
        parts.append(Table("Against the global adapter, and example by example against the base", columns, others))
    return parts


def _forest_figure(overall: Mapping[str, Score], shares: Mapping[str, Mapping[str, Score]], name: str) -> Part:
    """Every adapter's difference from the base, overall and on each site's share."""
    intervals: dict[str, Interval] = {}
    for adapter, score in overall.items():
        labels = {adapter: score} | {f"{adapter} on {site}": scores.get(adapter) for site, scores in shares.items()}
        intervals |= {label: one.against_base for label, one in labels.items() if one and one.against_base}
    if not intervals:
        return Text("Only the base model was measured.", "missing")
    table = Table(
        "Difference from the base model (nats per answer token)",
        ["adapter and share", "mean", "95 % from", "to"],
        [[label, *map(numbers.signed, (one.mean, one.low, one.high))] for label, one in intervals.items()],
    )
    strong = [label for label in intervals if label in overall]
    shown = list(intervals) if len(intervals) <= MAX_FOREST_ROWS else strong[:MAX_FOREST_ROWS]
    plot = Forest({label: intervals[label] for label in shown}, frozenset(strong), "nats against the base")
    caption = "Loss against the base model, 95 % intervals; left is better"
    if len(shown) < len(intervals):
        caption += f"; {len(shown)} of {len(intervals)} rows, all are in the table"
    return Figure(f"forest-{name}", caption, plot, table)


def losses_table(
    caption: str,
    head: str,
    by_value: Mapping[str, Mapping[str, Score]],
    plan: Plan,
    means: Mapping[str, float] | None = None,
    folded: bool = False,
) -> Table:
    """Each adapter's loss by value (of a column, or site), and below it the difference from the base."""
    adapters = in_order({name: None for scores in by_value.values() for name in scores}, plan)
    changes = [score.against_base for scores in by_value.values() for score in scores.values()]
    largest = max((abs(change.mean) for change in changes if change), default=0.0)
    rows: list[list[str | Cell]] = []
    for value, scores in by_value.items():
        lowest = min((score.loss for score in scores.values()), default=0.0)
        cells = [loss_cell(scores.get(name), largest, lowest) for name in adapters]
        first = next(iter(scores.values()), None)
        rows.append([value, *cells, numbers.examples_in_groups(first.num_examples, first.num_groups) if first else ""])
    if means is not None:
        rows.append(["mean", *(f"{means[name]:.4f}" if name in means else "" for name in adapters), ""])
    columns: list[str | Cell] = [head, *adapters, "examples"]
    if len(adapters) > max(MAX_COLUMNS, len(rows)):  # an adapter a row: so many columns fit nowhere
        (_, *values), *turned = map(list, zip(columns, *rows, strict=True))
        return Table(caption, ["adapter", *map(str, values)], turned, folded=folded)
    return Table(caption, [head, *adapters, "examples"], rows, folded=folded)


def loss_cell(score: Score | None, largest: float, lowest: float) -> Cell:
    """A loss over its difference from the base; the shade grows with that up to `largest` where it is not by chance."""
    if score is None:
        return Cell()
    kinds = ["lowest"] if score.loss == lowest else []
    change = score.against_base
    if change is None:
        return Cell(f"{score.loss:.4f}", " ".join(kinds))
    clear = score.num_groups > 1 and not change.low <= 0 <= change.high
    if clear:
        shade = max(1, round(SHADES * abs(change.mean) / largest)) if largest else 1
        kinds.append(f"{'better' if change.mean < 0 else 'worse'}-{shade}")
    return Cell(f"{score.loss:.4f}", " ".join(kinds), (numbers.signed(change.mean) + "*" * clear,))


def matrix_parts(matrix: Matrix, plan: Plan) -> list[Part]:
    """What hospitals measured, each on its own examples, merged."""
    by_site = {site: one.scores for site, one in matrix.sites.items()}
    about = Text("Each hospital measured every adapter on its own test examples.")
    return [about, *site_matrix_parts(by_site, plan, matrix.means, matrix.worst_sites)]


def site_matrix_parts(
    by_site: Mapping[str, Mapping[str, Score]],
    plan: Plan,
    means: Mapping[str, float] | None = None,
    worst_sites: Mapping[str, str] | None = None,
) -> list[Part]:
    """What each hospital measured on its own examples: every adapter's loss there, and the global one's gain."""
    parts: list[Part] = [
        STARS,
        losses_table(
            "Loss at each site" + ", and the plain mean over sites" * bool(means), "site", by_site, plan, means
        ),
    ]
    rows = [
        [site, numbers.interval(scores[GLOBAL].against_base)] for site, scores in by_site.items() if GLOBAL in scores
    ]
    if rows:
        parts.append(Table("Global adapter against the base", ["site", "difference in nats, 95 %"], rows))
    parts += _worst_sites_text(worst_sites or {}, by_site)
    groups = {site: score.num_groups for site, scores in by_site.items() for score in scores.values()}
    few = [f"{site} ({number})" for site, number in groups.items() if number < FEW_GROUPS]
    if few:
        parts.append(
            Text(f"Few groups, so rough intervals: {', '.join(few)} (at least {FEW_GROUPS} are recommended).", "note")
        )
    return parts


def _worst_sites_text(worst_sites: Mapping[str, str], by_site: Mapping[str, Mapping[str, Score]]) -> list[Part]:
    entries = []
    for adapter, site in worst_sites.items():
        score = by_site.get(site, {}).get(adapter) if adapter == GLOBAL else None
        entries.append(f"{adapter}: site {site}" + (f", {numbers.interval(score.against_base)}" if score else ""))
    return [Text(f"Site where each adapter gains least over the base: {'; '.join(entries)}.")] if entries else []


def _joining_parts(record: Comparison) -> list[Part]:
    """Whether joining paid: each site's adapters beside the global one, and what it uses now beside training alone."""
    joint, private = [], []
    for name, others in record.on_other_sites.items():
        is_private = name.startswith(PERSONAL)
        own = record.scores.get(name, {}).get(name.removeprefix(ALONE).removeprefix(PERSONAL))
        change = own.against_global if own else None
        if is_private:
            private.append([name, numbers.interval(change), numbers.interval(_reverse(others))])
        else:
            joint.append([name, numbers.interval(_reverse(change)), numbers.interval(others)])
    parts: list[Part] = []
    on = ["on its own site's examples", "on the other sites'"]
    if joint:
        title = "Global adapter minus one site's, nats with 95 % intervals (below 0: the global one is better)"
        parts.append(Table(title, ["adapter of one site", *on], joint))
    if private:
        title = "Private adapter minus the global one, nats with 95 % intervals (below 0: the private one is better)"
        parts.append(Table(title, ["private adapter", *on], private))
    if record.joined:
        title = "What a hospital uses now minus training alone, on its own examples (below 0: joining paid)"
        rows = [
            [site, f"{PERSONAL}{site}" if f"{PERSONAL}{site}" in record.adapters else GLOBAL, numbers.interval(change)]
            for site, change in record.joined.items()
        ]
        parts.append(Table(title, ["site", "it uses", "nats, 95 %"], rows))
    return parts


def _reverse(change: Interval | None) -> Interval | None:
    return Interval(-change.mean, -change.high, -change.low) if change else None


def _rounds_figure(overall: Mapping[str, Score], newest: int | None, name: str) -> list[Part]:
    """The global adapter's loss round by round, between the base and what else was measured as a bound."""
    rounds = ((round_of(one), score.loss) for one, score in overall.items())
    path = sorted((number, loss) for number, loss in rounds if number is not None and 0 < number < (newest or 0))
    if not path or newest is None or not {BASE, GLOBAL} <= set(overall):
        return []
    path = [(0, overall[BASE].loss), *path, (newest, overall[GLOBAL].loss)]
    lone = [one for one in overall if one.startswith(ALONE)]
    beside = [
        *sorted(lone, key=lambda one: overall[one].loss)[:1],
        *(one for one in overall if one in BOUNDS),
    ]
    lines = {GLOBAL: path} | {one: [(0, overall[one].loss), (newest, overall[one].loss)] for one in beside}
    table = Table(
        "Loss after each round",
        ["adapter", "round", "loss"],
        [[GLOBAL, str(number), f"{loss:.4f}"] for number, loss in path]
        + [[one, "", f"{overall[one].loss:.4f}"] for one in beside],
    )
    plot = Curves(lines, "round", "nats per answer token")
    return [
        Figure(f"rounds-{name}", "From the base to the newest round, between hospitals alone and pooled", plot, table)
    ]


def _recovered_parts(record: Comparison) -> list[Part]:
    """How much of each upper bound's gain the global adapter reaches, counted from base and from hospitals alone."""
    bounds = record.recovered
    if not bounds:
        return []
    has_alone = any(name.startswith(ALONE) for name in record.scores)
    rows = [
        [text, *(_share(getattr(shares, name)) for shares in bounds.values())]
        for name, text in GAIN_OVER.items()
        if name == "base" or has_alone
    ]
    parts: list[Part] = [
        Table("How much of the upper bound's gain the global adapter reaches", ["gain over", *bounds], rows)
    ]
    if any("not clear" in row for row in rows):
        parts.append(
            Text("Not clear: the bound is not better beyond chance, so no share of its gain is given.", "note")
        )
    return parts


def _share(share: Interval | None) -> str:
    if share is None:
        return "not clear"
    return f"{100 * share.mean:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]"
