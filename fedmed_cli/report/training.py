"""The report on data and training: what each site has, and what its losses were."""

from __future__ import annotations

import math
from collections import Counter

from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.measures import COORDINATOR
from fedmed_cli.records.split import BadRowCounts, NearDuplicates
from fedmed_cli.report import plots, wording
from fedmed_cli.report.page import Beside, Figure, Grid, Part, Section, Text
from fedmed_cli.report.workspace_facts import Facts, RoundFacts

MAX_LABELS = 7
BINS_A_ROUND = 25
MAX_BARS = 30


def data_section(facts: Facts, drawn: bool) -> Section:
    """How many examples each site has in each set, and what they are made of."""
    parts: list[Part] = []
    if facts.split is not None:
        parts += _split_parts(facts, drawn)
    if facts.divisions:
        rows = [
            [
                name,
                *(f"{n:,}" for n in (one.train + one.validation + one.test, one.train, one.validation, one.test)),
                f"{one.num_groups:,}",
                one.group_by or "each example is its own",
                _near(one.near_duplicates),
                _phi(one.phi, one.phi_found),
            ]
            for name, one in facts.divisions.items()
        ]
        columns = ["site", "examples", "train", "validation", "test", "groups", "group", "near-duplicates", "PHI scan"]
        parts.append(Grid("Hospitals' own files, divided by a keyed hash", columns, rows, frozenset({6, 7, 8})))
        parts += _bad({name: one.bad_rows for name, one in facts.divisions.items()})
    if not parts:
        parts.append(Text("There is no data/split.json and no data/SITE/division.json in this workspace.", "missing"))
        trained = {**{site: c for one in facts.rounds for site, c in one.contributions.items()}, **facts.waiting}
        if trained:
            rows = [[name, f"{c.num_examples:,}", f"{c.num_tokens:,}"] for name, c in sorted(trained.items())]
            title = "What the contributions claim of their training data"
            parts.append(Grid(title, ["site", "training examples", "answer tokens"], rows))
    return Section("data", "Data", parts)


def _split_parts(facts: Facts, drawn: bool) -> list[Part]:
    record = facts.split
    assert record is not None
    how = record.method + (f" (alpha {record.alpha:g})" if record.alpha is not None else "")
    how += f" on {record.column}" if record.column else ""
    how += f" over {record.topics} topics" if record.topics else ""
    kept = f"{wording.count(record.num_groups, 'group')}" + (f" by {record.group_by}" if record.group_by else "")
    checks = record.checks
    parts: list[Part] = [
        Text(
            f"{wording.count(record.num_examples, 'example')} of one {record.source} were divided for a trial on one "
            f"machine: {how}, seed {record.seed}. {kept}, each in one set only; the check of the written files found "
            f"{checks.get('texts_in_two_sets', 'no count of')} texts and "
            f"{checks.get('groups_in_two_sets', 'no count of')} groups in two sets. "
            f"{wording.sentence(_near(record.near_duplicates))}. "
            f"{wording.sentence(_phi(record.phi, record.phi_found))}."
        )
    ]
    totals: Counter[str] = Counter()
    for counts in record.sites.values():
        totals.update(counts.labels)
    common = sorted(totals, key=lambda label: (-totals[label], label))[:MAX_LABELS]
    rest = "all others"
    made: dict[str, dict[str, float]] = {}
    for name, counts in record.sites.items():
        made[name] = {label: counts.labels.get(label, 0) for label in common}
        made[name][rest] = sum(counts.labels.values()) - sum(made[name].values())
    labels = [*common, *([rest] if any(one[rest] for one in made.values()) else [])]
    rows = [
        [
            name,
            *(f"{n:,}" for n in (counts.total, counts.train, counts.validation, counts.coordinator, counts.test)),
            f"{counts.jensen_shannon:.2f}",
        ]
        for name, counts in record.sites.items()
    ]
    columns = ["site", "examples", "train", "validation", "coordinator", "test", "JS distance"]
    parts.append(Grid("Examples of each site by set", columns, rows))
    parts.append(Text("JS is the Jensen-Shannon distance of a site's labels to the pool: 0 is alike, 1 is disjoint."))
    if labels and labels != [rest]:
        table = Grid(
            f"Labels ({record.label_column or 'of the examples'}) of each site",
            ["site", *labels],
            [[name, *(f"{int(one[label]):,}" for label in labels)] for name, one in made.items()],
        )
        largest = max(made, key=lambda name: sum(made[name].values()))
        described = "; ".join(
            f"site {name}: "
            + wording.joined(
                [f"{label} {wording.percent(one[label] / max(1, sum(one.values())), 0)}" for label in common[:3]]
            )
            for name, one in list(made.items())[: plots.MAX_SERIES]
        )
        description = f"Horizontal bars, one a site, divided by label. Site {largest} is the largest. {described}."
        if len(made) <= MAX_BARS:
            drawing = plots.stacked("labels", made, labels, "examples") if drawn else None
            parts.append(Figure("labels", "What each site's examples are made of", description, drawing, table))
        else:
            parts += [table, Text(f"{len(made)} sites are too many for a plot.", "note")]
    if record.num_left_out or record.num_turns_left_out:
        parts.append(Text(f"Left out: {record.num_left_out:,} rows and {record.num_turns_left_out:,} turns.", "note"))
    parts += _bad({"the source": record.bad_rows})
    return parts


def _near(found: NearDuplicates | None) -> str:
    if found is None:
        return "near-duplicates were not searched for"
    return (
        f"{wording.count(found.num_rows, 'near-duplicate')} (similarity {found.similarity:g} or more) stay with what "
        f"they are like, {found.num_torn:,} were found in two sets"
    )


def _phi(mode: str, found: dict[str, int]) -> str:
    if mode == "off":
        return "no scan for identifiers of patients"
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in found.items() if number)
    return f"scan for identifiers of patients ({mode}): {kinds or 'none found'}"


def _bad(by_source: dict[str, dict[str, BadRowCounts]]) -> list[Part]:
    said = [
        f"{wording.count(one.count, 'row')} ({kind.replace('_', ' ')})"
        for found in by_source.values()
        for kind, one in found.items()
    ]
    return [Text(f"Rows that are not valid examples, skipped: {', '.join(said)}.", "note")] if said else []


# --- losses -----------------------------------------------------------------------------------------


def training_section(facts: Facts, drawn: bool) -> Section:
    """Loss over steps, and before and after each round on each site's validation examples."""
    everyone = [*facts.rounds, *_as_round(facts)]
    if not any(one.contributions for one in everyone):
        why = "the contributions of the rounds are not here" if facts.rounds else "nothing has been trained yet"
        parts: list[Part] = [Text(f"There is no loss to show: {why}.", "missing")]
        return Section("training", "Training", parts + _coordinator_part(facts))
    parts = [Beside([_step_figure(everyone, drawn), _validation_figure(everyone, drawn)])]
    parts += _coordinator_part(facts)
    cut = sum(c.num_truncated for one in everyone for c in one.contributions.values())
    skipped = sum(c.num_skipped for one in everyone for c in one.contributions.values())
    if cut or skipped:
        parts.append(
            Text(
                f"Over all sites and rounds {cut:,} answers were cut at {facts.plan.training.max_length:,} tokens and "
                f"{skipped:,} examples skipped because the question alone fills that length.",
                "note",
            )
        )
    kept = [
        f"{site} in round {one.number} the one of step {c.kept_step:,} of {len(c.losses):,}"
        for one in everyone
        for site, c in sorted(one.contributions.items())
        if c.kept_step is not None
    ]
    if kept:
        parts.append(Text(f"Not the last step's adapter was kept, but the best on other examples: {'; '.join(kept)}."))
    if facts.versions:
        parts.append(Text(f"Trained with {', '.join(facts.versions)}, as the records say."))
    return Section("training", "Training", parts)


def _as_round(facts: Facts) -> list[RoundFacts]:
    """Contributions that wait in the mailbox, as the rounds that they are for."""
    numbers = sorted({record.round for record in facts.waiting.values()})
    return [
        RoundFacts(number, None, {site: c for site, c in facts.waiting.items() if c.round == number}, {})
        for number in numbers
    ]


def _bins(record: Contribution, width: int) -> list[float]:
    losses = record.losses
    return [math.fsum(part) / len(part) for i in range(0, len(losses), width) if (part := losses[i : i + width])]


def _step_figure(everyone: list[RoundFacts], drawn: bool) -> list[Part]:
    sites = sorted({site for one in everyone for site in one.contributions})
    shown = sites[: plots.MAX_SERIES]
    points: dict[str, list[tuple[float, float]]] = {site: [] for site in shown}
    rows: list[list[str]] = []
    breaks: list[float] = []
    offset, widest = 0, 1
    for one in everyone:
        longest = max((len(c.losses) for c in one.contributions.values()), default=0)
        if not longest:
            continue
        breaks.append(offset + 0.5)
        width = -(-longest // BINS_A_ROUND)
        widest = max(widest, width)
        binned = {site: _bins(one.contributions[site], width) for site in sites if site in one.contributions}
        for number in range(-(-longest // width)):
            first, last = number * width + 1, min((number + 1) * width, longest)
            values = {site: means[number] for site, means in binned.items() if number < len(means)}
            rows.append(
                [
                    f"round {one.number}, step {first}" + (f" to {last}" if last > first else ""),
                    *(f"{values[site]:.4f}" if site in values else "" for site in sites),
                ]
            )
            for site in shown:
                if site in values:
                    points[site].append((offset + (first + last) / 2, values[site]))
        offset += longest
    lines = [plots.Curve(f"site {site}", tuple(points[site])) for site in shown if points[site]]
    if not lines:
        return [Text("The contributions hold no loss of a step.", "missing")]
    ends = "; ".join(
        f"{line.name} from {line.points[0][1]:.2f} to {line.points[-1][1]:.2f}" for line in lines if line.points
    )
    smoothed = f" Each point is the mean of up to {widest} steps." if widest > 1 else ""
    description = f"Training loss over the steps of {wording.count(len(breaks), 'round')}: {ends}.{smoothed}"
    table = Grid("Training loss by step (nats per answer token)", ["steps", *(f"site {s}" for s in sites)], rows)
    drawing = plots.curves("steps", lines, "step", "nats per answer token", breaks[1:]) if drawn else None
    parts: list[Part] = [Figure("steps", "Training loss over steps", description, drawing, table)]
    if smoothed or len(breaks) > 1:
        between = " Broken lines stand where a round ends." if len(breaks) > 1 else ""
        parts.append(Text((smoothed + between).strip()))
    if len(shown) < len(sites):
        parts.append(Text(f"The plot shows the first {len(shown)} of {len(sites)} sites; the table has all.", "note"))
    return parts


def _validation_figure(everyone: list[RoundFacts], drawn: bool) -> list[Part]:
    rows: list[list[str]] = []
    points: dict[str, list[tuple[float, float]]] = {}
    few = 0
    for one in everyone:
        for site, record in sorted(one.contributions.items()):
            before, after = record.validation_before, record.validation_after
            change = wording.signed(after.mean - before.mean) if before and after else ""
            made_of = f"{after.num_examples:,} in {after.num_groups:,} groups" if after else ""
            rows.append([f"{one.number}", site, wording.loss(before), wording.loss(after), change, made_of])
            if before and after:
                gap = [(math.nan, math.nan)] if points.get(site) else []
                points.setdefault(site, []).extend([*gap, (one.number - 1, before.mean), (one.number, after.mean)])
                few = min(few or after.num_groups, after.num_groups)
    line: list[tuple[float, float]] = []
    for one in everyone:
        if one.measured_before is not None and one.measured_after is not None:
            line.extend([(one.number - 1, one.measured_before)] if not line else [])
            line.append((one.number, one.measured_after))
    points = ({COORDINATOR: line} if line else {}) | points
    columns = ["round", "site", "before", "after", "change", "examples"]
    table = Grid(
        "Loss on each site's validation examples (nats, ± half a 95 % interval)", columns, rows, frozenset({1})
    )
    if not points:
        return [Text("No site measured a loss on validation examples.", "missing"), table]
    names = {COORDINATOR: "global, at coordinator"}
    lines = [
        plots.Curve(names.get(name, f"site {name}"), tuple(line))
        for name, line in list(points.items())[: plots.MAX_SERIES]
    ]
    falls = "; ".join(f"{line.name} {line.points[0][1]:.3f} to {line.points[-1][1]:.3f}" for line in lines)
    description = (
        f"Loss on held-back examples from the start to the newest round: {falls}. Each site's line falls while it "
        "trains its own adapter, and begins anew where the aggregation left it."
    )
    drawing = plots.curves("validation", lines, "round", "nats per answer token") if drawn else None
    parts: list[Part] = [
        Figure("validation", "Validation loss over rounds", description, drawing, table),
        Text(
            "A site's line goes from the adapter that the round started from to the site's own adapter after "
            "training. Validation examples are the site's own and are never trained on."
        ),
    ]
    parts += [Text(warning, "note")] if (warning := wording.few_groups(few)) else []
    return parts


def _coordinator_part(facts: Facts) -> list[Part]:
    rows = [
        [str(one.number), f"{one.measured_before:.4f}", f"{one.measured_after:.4f}", change, f"{one.measured_examples}"]
        for one in facts.rounds
        if one.measured_before is not None and one.measured_after is not None
        for change in [wording.signed(one.measured_after - one.measured_before)]
    ]
    if not rows:
        return []
    title = "The global adapter on coordinator's examples that decided nothing (from metrics.jsonl)"
    return [Grid(title, ["round", "before", "after", "change", "examples"], rows)]
