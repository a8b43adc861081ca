"""The report on results: the comparison with its intervals, the matrix of sites and adapters, the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedmed_cli.records.comparison import Choices, Comparison, Generated, Score
from fedmed_cli.records.digests import short
from fedmed_cli.records.measures import OVERALL, Interval
from fedmed_cli.report import plots, wording
from fedmed_cli.report.page import Answers, Cell, Figure, Grid, Group, Part, Section, Text
from fedmed_cli.report.workspace_facts import Facts

MAX_ROWS_IN_A_FOREST = 40
SHADES = 4


def _in_order(facts: Facts, names: Sequence[str]) -> list[str]:
    """Adapters as a reader wants them: base, the sites' own, all others, global of each round, the newest global."""
    sites = {name: place for place, name in enumerate(facts.plan.sites.names)}

    def place(name: str) -> tuple[int, int, str]:
        number = name.removeprefix("global-")
        if name in ("base", "global"):
            return (0 if name == "base" else 4, 0, "")
        if name in sites:
            return (1, sites[name], "")
        return (3, int(number), "") if name != number and number.isdecimal() and len(number) < 9 else (2, 0, name)

    return sorted(names, key=place)


def _ordered(facts: Facts, record: Comparison) -> dict[str, dict[str, Score]]:
    """Scores by adapter and part, both in a reader's order."""
    return {
        name: dict(sorted(record.scores[name].items(), key=lambda item: (item[0] != OVERALL, item[0])))
        for name in _in_order(facts, list(record.scores))
    }


def comparison_section(facts: Facts, drawn: bool) -> Section:
    """Adapters on examples that nobody trained on or chose weights with."""
    record = facts.comparison
    parts: list[Part] = []
    if record is not None and OVERALL in next(iter(record.scores.values()), {}):
        parts += _comparison_parts(facts, record, "compare", drawn)
    else:
        why = "There is no reports/compare.json: 'fedmed compare' measures adapters on held-out examples."
        parts.append(Text(why, "missing"))
    for site, own in facts.site_comparisons.items():
        if OVERALL in next(iter(own.scores.values()), {}):
            title = f"Measured inside hospital {site}, on its own test examples"
            parts.append(Group(title, _comparison_parts(facts, own, f"compare-{site}", drawn)))
    return Section("comparison", "Comparison on held-out examples", parts)


def _comparison_parts(facts: Facts, record: Comparison, name: str, drawn: bool) -> list[Part]:
    scores = _ordered(facts, record)
    first = next(iter(scores.values()))[OVERALL]
    parts: list[Part] = []
    if record.plan != facts.plan.digest:
        parts.append(Text("This comparison was made under another plan than the one of this workspace.", "fault"))
    if stale := _stale(facts, record):
        parts.append(Text(stale, "fault"))
    if sentence := wording.verdict(record):
        parts.append(Text(sentence, "verdict"))
    parts.append(
        Text(
            f"{wording.count(first.num_examples, 'example')} of {record.examples} "
            f"({wording.count(first.num_tokens, 'answer token')}), the base loaded once. Losses are in nats per answer "
            f"token; differences are paired by example, below 0 is better; the 95 % intervals resample "
            f"{wording.count(first.num_groups, 'group')} {record.num_resamples:,} times."
        )
    )
    parts += [Text(warning, "note")] if (warning := wording.few_groups(first.num_groups)) else []
    if record.num_skipped or record.num_truncated:
        parts.append(
            Text(
                f"{record.num_skipped:,} prompts without room for an answer were left out; {record.num_truncated:,} "
                "answers were cut.",
                "note",
            )
        )
    parts.append(_forest(scores, name, drawn))
    parts.append(_overall(scores))
    sites = [part for part in next(iter(scores.values())) if part != OVERALL]
    if len(sites) > 1:
        parts.append(_by_part(scores, sites))
    if record.worst_sites:
        said = "; ".join(f"{adapter}: site {site}" for adapter, site in record.worst_sites.items())
        parts.append(Text(f"The site where each adapter gains least on the base: {said}."))
    if record.recovered is not None:
        share = record.recovered
        parts.append(
            Text(
                f"The global adapter reaches {100 * share.mean:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}] "
                "of the gain of one adapter trained on all sites' examples together."
            )
        )
    if facts.pooled is not None and facts.pooled.adapter in record.adapters.values():
        parts.append(
            Text(
                f"Pooled is one adapter trained on all sites' {wording.count(facts.pooled.num_examples, 'example')} "
                f"together, {facts.pooled.num_trained_tokens:,} answer tokens in all (the federation: "
                f"{facts.pooled.num_federated_tokens:,}): an upper bound that no federation of real hospitals has."
            )
        )
    if record.on_other_sites:
        rows = [[name, wording.interval(one)] for name, one in record.on_other_sites.items()]
        title = "Global adapter minus one site's, on all other sites' examples (below 0: federating helped)"
        parts.append(Grid(title, ["adapter of one site", "difference in nats, 95 %"], rows))
    for column, values in record.columns.items():
        parts.append(_column(facts, column, values))
    if record.choices is not None:
        parts.append(Group("Multiple choice", _choice_parts(facts, record.choices)))
    if record.generated is not None:
        parts.append(Group("Generated answers", _generated_parts(facts, record.generated)))
    return parts


def _stale(facts: Facts, record: Comparison) -> str:
    """A sentence where what was compared as "global" is not the newest global adapter; else empty."""
    last = next((one for one in reversed(facts.rounds) if one.aggregate), None)
    compared = record.adapters.get("global")
    if last is None or last.aggregate is None or compared is None or compared == last.aggregate.adapter:
        return ""
    return (
        f"What was compared as global ({short(compared)}) is not the global adapter of round {last.number} "
        f"({short(last.aggregate.adapter)}): run 'fedmed compare' again."
    )


def _forest(scores: Mapping[str, Mapping[str, Score]], name: str, drawn: bool) -> Part:
    """Every adapter's difference to the base, overall and on each site's share."""
    rows: list[plots.Row] = []
    for adapter, by_part in scores.items():
        for part, score in by_part.items():
            if score.against_base is not None:
                label = adapter if part == OVERALL else f"{adapter} on {part}"
                rows.append(plots.Row(label, score.against_base, part == OVERALL))
    shown = rows if len(rows) <= MAX_ROWS_IN_A_FOREST else [row for row in rows if row.strong][:MAX_ROWS_IN_A_FOREST]
    table = Grid(
        "Difference to the base model (nats per answer token)",
        ["adapter and share", "mean", "95 % from", "to"],
        [
            [row.name, *(wording.signed(x) for x in (row.interval.mean, row.interval.low, row.interval.high))]
            for row in rows
        ],
    )
    if not rows:
        return Text("Only the base model was measured.", "missing")
    described = "; ".join(f"{row.name} {wording.interval(row.interval, 3)}" for row in shown if row.strong)
    left_out = f" {len(rows) - len(shown)} rows are in the table only." if len(shown) < len(rows) else ""
    description = f"Forest plot of differences to the base model with 95 % intervals; left of 0 is better. {described}."
    drawing = plots.forest(f"forest-{name}", shown, "nats against the base (left is better)") if drawn else None
    title = "Loss against the base model, 95 % intervals"
    return Figure(f"forest-{name}", title, description + left_out, drawing, table)


def _overall(scores: Mapping[str, Mapping[str, Score]]) -> Grid:
    with_tally = any(score[OVERALL].tally for score in scores.values())
    with_global = any(score[OVERALL].against_global for score in scores.values())
    columns = ["adapter", "loss", "perplexity", "against base, 95 %"]
    columns += ["against global, 95 %"] * with_global + ["better / same / worse"] * with_tally
    rows = []
    for name, by_part in scores.items():
        score = by_part[OVERALL]
        row = [name, wording.loss(score), f"{score.perplexity:.2f}", wording.interval(score.against_base)]
        row += [wording.interval(score.against_global)] * with_global
        tally = score.tally
        row += [f"{tally.wins:,} / {tally.ties:,} / {tally.losses:,}" if tally else ""] * with_tally
        rows.append(row)
    return Grid("Overall", columns, rows)


def _by_part(scores: Mapping[str, Mapping[str, Score]], sites: Sequence[str]) -> Grid:
    first = next(iter(scores.values()))
    heads = [f"{site} ({first[site].num_examples:,})" for site in sites]
    rows = [
        [name, *(wording.loss(by_part[site]) if site in by_part else "" for site in sites)]
        for name, by_part in scores.items()
    ]
    return Grid("Loss on each site's share (number of examples)", ["adapter", *heads], rows)


def _column(facts: Facts, column: str, values: Mapping[str, Mapping[str, Score]]) -> Grid:
    adapters = _in_order(facts, list(next(iter(values.values()), {})))
    rows = []
    for value, by_adapter in values.items():
        number = next(iter(by_adapter.values())).num_examples if by_adapter else 0
        cells = [wording.loss(by_adapter[name]) if name in by_adapter else "" for name in adapters]
        rows.append([value, f"{number:,}", *cells])
    return Grid(f"Loss by {column}", [column, "examples", *adapters], rows, folded=True)


def _choice_parts(facts: Facts, choices: Choices) -> list[Part]:
    about = (
        f"{wording.count(choices.num_questions, 'question')} of {choices.examples}; guessing is right in "
        f"{wording.percent(choices.chance, 1)}. By text takes the option of the highest log-probability, per character "
        "divides that by its length, by letter takes the most probable letter of the listed options; when asked, the "
        "model writes a letter, and an answer without one counts as wrong. Differences are those per character."
    )
    if choices.num_skipped:
        about += f" {wording.count(choices.num_skipped, 'question')} did not fit and were left out."
    rows = []
    for name in _in_order(facts, list(choices.adapters)):
        score = choices.adapters[name]
        row = [name, wording.rate(score.accuracy), wording.rate(score.accuracy_norm)]
        row += [_points(score.accuracy_norm.against_base), wording.rate(score.by_letter), wording.rate(score.asked)]
        rows.append([*row, f"{score.num_unparseable:,} of {choices.num_asked:,}" if score.asked else ""])
    columns = ["adapter", "by text", "per character", "against base", "by letter", "asked", "without a letter"]
    title = "Multiple choice: accuracy with 95 % intervals; differences in percentage points"
    return [Text(about), Grid(title, columns, rows)]


def _generated_parts(facts: Facts, generated: Generated) -> list[Part]:
    about = (
        f"Answers to {wording.count(generated.num_questions, 'question')} "
        f"({wording.count(generated.num_groups, 'group')}), at most {generated.max_new_tokens:,} tokens each. Overlap "
        "with one reference answer says little about whether an answer is right."
    )
    rows = [
        [
            name,
            wording.rate(score.rouge_l),
            _points(score.rouge_l.against_base),
            wording.rate(score.token_f1),
            _points(score.token_f1.against_base),
            f"{score.num_empty:,}",
            f"{score.num_unfinished:,}",
        ]
        for name in _in_order(facts, list(generated.adapters))
        for score in [generated.adapters[name]]
    ]
    columns = ["adapter", "ROUGE-L", "against base", "token F1", "against base", "empty", "cut"]
    title = "Overlap with the reference answers, 95 % intervals; differences in percentage points"
    return [Text(about, "note"), Grid(title, columns, rows)]


def _points(value: Interval | None) -> str:
    if value is None:
        return ""
    return wording.interval(Interval(100 * value.mean, 100 * value.low, 100 * value.high), 1)


# --- site × adapter ---------------------------------------------------------------------------------


def matrix_section(facts: Facts) -> Section:
    """Each adapter on each site's examples: from the hospitals' own measurements, else from the shared test set."""
    title = "Every adapter at every site"
    source, scores, worst = _matrix(facts)
    if not scores:
        why = "There is no reports/matrix.json, no comparison of a hospital, and none that is divided by site."
        return Section("matrix", title, [Text(why, "missing")])
    adapters = _in_order(facts, list(dict.fromkeys(name for by_adapter in scores.values() for name in by_adapter)))
    gains = [abs(one.against_base.mean) for row in scores.values() for one in row.values() if one.against_base]
    largest = max(gains, default=0.0)
    rows: list[list[str | Cell]] = []
    for site, by_adapter in scores.items():
        measured = [score.loss for score in by_adapter.values()]
        row: list[str | Cell] = [site]
        row += [_shaded(by_adapter.get(name), largest, min(measured)) for name in adapters]
        number = next(iter(by_adapter.values()))
        rows.append([*row, f"{number.num_examples:,} in {number.num_groups:,} groups"])
    if facts.matrix is not None and source == "matrix":
        means = facts.matrix.means
        rows.append(["mean of sites", *(f"{means[name]:.4f}" if name in means else "" for name in adapters), ""])
    about = {
        "matrix": "Each hospital measured every adapter on its own test examples (reports/matrix.json).",
        "sites": "These hospitals measured on their own test examples (reports/compare-SITE.json).",
        "parts": "From the shared test examples, divided by the site each was taken from (reports/compare.json).",
    }[source]
    legend = "Loss, and below it the difference to the base. Where the 95 % interval of that excludes "
    legend += "0 the cell is shaded: blue is better than the base, orange worse. The lowest loss of a site is bold."
    caption = "Loss of each adapter on each site's examples (nats per answer token)"
    parts: list[Part] = [Text(about), Grid(caption, ["site", *adapters, "examples"], rows), Text(legend)]
    if facts.matrix is not None and facts.matrix.plan != facts.plan.digest:
        parts.insert(0, Text("This matrix was made under another plan than the one of this workspace.", "fault"))
    if worst:
        said = "; ".join(f"{adapter}: site {site}" for adapter, site in worst.items())
        parts.append(Text(f"The site where each adapter gains least on the base: {said}."))
    return Section("matrix", title, parts)


def _matrix(facts: Facts) -> tuple[str, dict[str, Mapping[str, Score]], Mapping[str, str]]:
    """Where the matrix comes from, the scores by site and adapter, and the worst site of each adapter."""
    if facts.matrix is not None:
        return "matrix", {site: one.scores for site, one in facts.matrix.sites.items()}, facts.matrix.worst_sites
    own = {
        site: {name: by_part[OVERALL] for name, by_part in record.scores.items() if OVERALL in by_part}
        for site, record in facts.site_comparisons.items()
    }
    if any(own.values()):
        return "sites", {site: by_adapter for site, by_adapter in own.items() if by_adapter}, {}
    if facts.comparison is None:
        return "parts", {}, {}
    scores = facts.comparison.scores
    sites = [part for part in dict.fromkeys(p for one in scores.values() for p in one) if part != OVERALL]
    return "parts", {s: {name: one[s] for name, one in scores.items() if s in one} for s in sites}, {}


def _shaded(score: Score | None, largest: float, lowest: float) -> Cell:
    """A cell whose shade grows with the difference to the base, where the interval excludes 0."""
    if score is None:
        return Cell()
    kinds = ["lowest"] if score.loss == lowest else []
    lines: tuple[str, ...] = ()
    if score.against_base is not None:
        found = score.against_base
        shade = max(1, round(SHADES * abs(found.mean) / largest)) if not found.low <= 0 <= found.high else 0
        kinds += [f"{'better' if found.mean < 0 else 'worse'}-{shade}"] if shade else []
        lines = (wording.signed(found.mean),)
    return Cell(f"{score.loss:.4f}", " ".join(kinds), lines)


# --- answers ----------------------------------------------------------------------------------------


def answers_section(facts: Facts, wanted: bool) -> Section:
    """Generated answers beside each other."""
    title = "Answers side by side"
    if not wanted:
        return Section("answers", title, [Text("Left out of this report on request (--no-answers).", "missing")])
    if not facts.questions:
        why = "There is no reports/answers.md with answers: 'fedmed compare' writes it."
        return Section("answers", title, [Text(why, "missing")])
    warning = (
        "Text that the models generated to bundled or given questions, from reports/answers.md. It can be wrong and "
        "harmful; nobody has checked it, and it says nothing about how good an adapter is."
    )
    shown = tuple((one.question, tuple(one.answers.items())) for one in facts.questions)
    return Section("answers", title, [Text(warning, "note"), Answers(shown)])
