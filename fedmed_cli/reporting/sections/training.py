"""The report on data and training: what each site has, and what its losses were."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fedmed_cli.records.split import BadRowCounts
from fedmed_cli.reporting import numbers
from fedmed_cli.reporting.parts import Beside, Curves, Figure, Part, Section, Table, Text
from fedmed_cli.reporting.plots import MAX_SERIES
from fedmed_cli.reporting.tables.privacy import promises_table
from fedmed_cli.reporting.tables.round import validation_table
from fedmed_cli.reporting.tables.split import identifiers_text, near_duplicates_text, split_parts
from fedmed_cli.reporting.workspace_records import RoundRecords, WorkspaceRecords

BINS_A_ROUND = 25
Points = list[tuple[float, float]]


def data_section(records: WorkspaceRecords) -> Section:
    """How many examples each site has in each set, and what they are made of."""
    parts: list[Part] = []
    if records.split is not None:
        parts += split_parts(records.split)
        parts += _bad_rows_text([records.split.bad_rows])
    if records.divisions:
        rows = [
            [
                name,
                *(f"{n:,}" for n in (one.train + one.validation + one.test, one.train, one.validation, one.test)),
                f"{one.num_groups:,}",
                one.group_by or "each example is its own",
                near_duplicates_text(one.near_duplicates),
                identifiers_text(one.phi, one.phi_found),
            ]
            for name, one in records.divisions.items()
        ]
        columns = ["site", "examples", "train", "validation", "test", "groups", "group", "near-duplicates", "PHI scan"]
        parts.append(Table("Hospitals' own files, divided by a keyed hash", columns, rows, frozenset({6, 7, 8})))
        parts += _bad_rows_text(one.bad_rows for one in records.divisions.values())
    if not parts:
        parts.append(Text("There is no data/split.json and no data/SITE/division.json in this workspace.", "missing"))
        claims = {site: c for one in records.rounds_and_waiting for site, c in one.contributions.items()}
        if claims:
            rows = [[name, f"{c.num_examples:,}", f"{c.num_tokens:,}"] for name, c in sorted(claims.items())]
            title = "What the contributions claim of their training data"
            parts.append(Table(title, ["site", "training examples", "answer tokens"], rows))
    return Section("data", "Data", parts)


def _bad_rows_text(sources: Iterable[dict[str, BadRowCounts]]) -> list[Part]:
    counts = [
        f"{numbers.count(one.count, 'row')} ({kind.replace('_', ' ')})"
        for source in sources
        for kind, one in source.items()
    ]
    return [Text(f"Rows that are not valid examples, skipped: {', '.join(counts)}.", "note")] if counts else []


def training_section(records: WorkspaceRecords) -> Section:
    """Loss over steps, and before and after each round on each site's validation examples."""
    rounds = records.rounds_and_waiting
    contributions = [(one.number, site, c) for one in rounds for site, c in sorted(one.contributions.items())]
    if not contributions:
        why = "the contributions of the rounds are not here" if records.rounds else "nothing has been trained yet"
        parts: list[Part] = [Text(f"There is no loss to show: {why}.", "missing")]
        return Section("training", "Training", parts + _coordinator_table(records))
    parts = [Beside([_step_parts(rounds), _validation_parts(rounds)]), *_coordinator_table(records)]
    for one in rounds:
        parts += promises_table(one.contributions, one.number)
    cut = sum(c.num_truncated for _, _, c in contributions)
    skipped = sum(c.num_skipped for _, _, c in contributions)
    if cut or skipped:
        parts.append(
            Text(
                f"Over all sites and rounds {cut:,} answers were cut at {records.plan.training.max_length:,} tokens "
                f"and {skipped:,} examples skipped because the question alone fills that length.",
                "note",
            )
        )
    stopped = [
        f"{site} in round {number} step {c.kept_step:,} of {len(c.losses):,}"
        for number, site, c in contributions
        if c.kept_step is not None
    ]
    if stopped:
        text = f"The best step on other examples was kept, not the last one: {'; '.join(stopped)}."
        parts.append(Text(text))
    if records.versions:
        parts.append(Text(f"Trained with {', '.join(records.versions)}, as the records say."))
    return Section("training", "Training", parts)


def means_of_bins(losses: Sequence[float], width: int) -> list[float]:
    """The mean of each `width` losses in a row; the last may be of fewer."""
    parts = (losses[start : start + width] for start in range(0, len(losses), width))
    return [math.fsum(part) / len(part) for part in parts]


def _step_parts(rounds: Sequence[RoundRecords]) -> list[Part]:
    """Training loss over the steps of all rounds, one after the other."""
    sites = sorted({site for one in rounds for site in one.contributions})
    lines: dict[str, Points] = {}
    rows: list[list[str]] = []
    starts: list[int] = []
    offset, widest = 0, 1
    for one in rounds:
        longest = max((len(c.losses) for c in one.contributions.values()), default=0)
        if not longest:
            continue
        starts.append(offset)
        width = -(-longest // BINS_A_ROUND)
        widest = max(widest, width)
        binned = {site: means_of_bins(c.losses, width) for site, c in sorted(one.contributions.items())}
        for number in range(-(-longest // width)):
            first, last = number * width + 1, min((number + 1) * width, longest)
            means = {site: values[number] for site, values in binned.items() if number < len(values)}
            steps = f"step {first}" + (f" to {last}" if last > first else "")
            losses = (f"{means[site]:.4f}" if site in means else "" for site in sites)
            rows.append([f"round {one.number}, {steps}", *losses])
            for site, mean in means.items():
                lines.setdefault(f"site {site}", []).append((offset + (first + last) / 2, mean))
        offset += longest
    if not lines:
        why = "The contributions hold no losses of steps; with differential privacy these stay at the hospital."
        return [Text(why, "missing")]
    table = Table("Training loss by step (nats per answer token)", ["steps", *(f"site {site}" for site in sites)], rows)
    plot = Curves(lines, "step", "nats per answer token", [start + 0.5 for start in starts[1:]])
    about = [f"Each point is the mean of up to {widest} steps."] if widest > 1 else []
    about += ["Dashed lines mark the end of a round."] if len(starts) > 1 else []
    return [
        Figure("steps", "Training loss over steps", plot, table),
        *([Text(" ".join(about))] if about else []),
        *_series_note(lines),
    ]


def _series_note(lines: dict[str, Points]) -> list[Part]:
    if len(lines) <= MAX_SERIES:
        return []
    return [Text(f"The plot shows the first {MAX_SERIES} of {len(lines)} lines; the table has all.", "note")]


def _validation_parts(rounds: Sequence[RoundRecords]) -> list[Part]:
    """Loss on validation examples over rounds; a site's line is interrupted where a new round's start is measured."""
    contributions = [c for one in rounds for _, c in sorted(one.contributions.items())]
    table = validation_table(contributions)
    lines: dict[str, Points] = {}
    for one in rounds:
        if one.measured_before is not None and one.measured_after is not None:
            line = lines.setdefault("global, at coordinator", [(one.number - 1, one.measured_before)])
            line.append((one.number, one.measured_after))
    for c in contributions:
        if c.validation_before and c.validation_after:
            line = lines.setdefault(f"site {c.site}", [])
            line += [(math.nan, math.nan)] if line else []
            line += [(c.round - 1, c.validation_before.mean), (c.round, c.validation_after.mean)]
    if not lines:
        return [Text("No site measured a loss on validation examples.", "missing"), table]
    groups = [c.validation_after.num_groups for c in contributions if c.validation_before and c.validation_after]
    about = (
        "A site's line goes from the adapter that the round started from to the site's own adapter after training. "
        "Validation examples are the site's own and are never trained on."
    )
    plot = Curves(lines, "round", "nats per answer token")
    return [
        Figure("validation", "Validation loss over rounds", plot, table),
        Text(about),
        *(numbers.few_groups(min(groups)) if groups else []),
        *_series_note(lines),
    ]


def _coordinator_table(records: WorkspaceRecords) -> list[Part]:
    """What rounds on one machine measured on the coordinator's examples that decided nothing."""
    rows = [
        [
            str(one.number),
            f"{one.measured_before:.4f}",
            f"{one.measured_after:.4f}",
            numbers.signed(one.measured_after - one.measured_before),
            f"{one.measured_examples}",
        ]
        for one in records.rounds
        if one.measured_before is not None and one.measured_after is not None
    ]
    if not rows:
        return []
    title = "The global adapter on coordinator examples that decided nothing (from metrics.jsonl)"
    return [Table(title, ["round", "before", "after", "change", "examples"], rows)]
