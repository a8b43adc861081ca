"""Tables of a split: how many examples each site has in each set, and what they are made of."""

from __future__ import annotations

from collections import Counter

from fedmed_cli.records.split import NearDuplicates, SplitRecord
from fedmed_cli.reporting import numbers
from fedmed_cli.reporting.parts import Figure, Part, Stacked, Table, Text

MAX_LABELS = 7


def split_parts(record: SplitRecord) -> list[Part]:
    """How the examples were divided, what was checked, and what each site has."""
    how = record.method + (f" (alpha {record.alpha:g})" if record.alpha is not None else "")
    how += f" on {record.column}" if record.column else ""
    how += f" over {record.topics} topics" if record.topics else ""
    groups = numbers.count(record.num_groups, "group") + (f" by {record.group_by}" if record.group_by else "")
    checks = record.checks
    moved = f" {record.num_moved:,} examples moved with their group." if record.num_moved else ""
    parts: list[Part] = [
        Text(
            f"{numbers.count(record.num_examples, 'example')} ({record.source}) were divided for a trial on one "
            f"machine: {how}, seed {record.seed}. {groups}, each in one set only; the check of the written files found "
            f"{checks.get('texts_in_two_sets', 'no count of')} texts and "
            f"{checks.get('groups_in_two_sets', 'no count of')} groups in two sets.{moved} "
            f"{near_duplicates_text(record.near_duplicates)}{_check_text(record.near_duplicates)}. "
            f"{identifiers_text(record.phi, record.phi_found)}."
        )
    ]
    rows = [
        [
            name,
            *(f"{n:,}" for n in (counts.total, counts.train, counts.validation, counts.coordinator, counts.test)),
            f"{counts.jensen_shannon:.2f}",
        ]
        for name, counts in record.sites.items()
    ]
    columns = ["site", "examples", "train", "validation", "coordinator", "test", "JS distance"]
    parts.append(Table("Examples of each site by set", columns, rows))
    parts.append(
        Text("JS is the Jensen-Shannon distance between a site's labels and all sites': 0 means equal, 1 disjoint.")
    )
    parts += _labels_figure(record)
    sizes = tuple(counts.total for counts in record.sites.values())
    if record.requested_sizes and tuple(record.requested_sizes) != sizes:
        asked = ", ".join(map(str, record.requested_sizes))
        parts.append(
            Text(f"Sites of {asked} examples were requested; groups are never divided, so the sizes differ.", "note")
        )
    if record.num_left_out or record.num_turns_left_out:
        parts.append(Text(f"Left out: {record.num_left_out:,} rows and {record.num_turns_left_out:,} turns.", "note"))
    return parts


def _labels_figure(record: SplitRecord) -> list[Part]:
    """The commonest labels of all sites by site, all others together; nothing where there are no labels."""
    labels = {name: dict(counts.labels) for name, counts in record.sites.items()}
    totals: Counter[str] = Counter()
    for counts in labels.values():
        totals.update(counts)
    common = sorted(totals, key=lambda label: (-totals[label], label))[:MAX_LABELS]
    if not common:
        return []
    with_others = len(totals) > len(common)
    rows = [
        [
            name,
            *(f"{counts.get(label, 0):,}" for label in common),
            *([f"{sum(counts.values()) - sum(counts.get(label, 0) for label in common):,}"] if with_others else []),
        ]
        for name, counts in labels.items()
    ]
    columns = ["site", *common, *(["all others"] if with_others else [])]
    table = Table(f"Labels ({record.label_column or 'of the examples'}) of each site", columns, rows)
    return [Figure("labels", "What each site's examples are made of", Stacked(labels, common, "examples"), table)]


def near_duplicates_text(record: NearDuplicates | None) -> str:
    if record is None:
        return "Near-duplicates were not searched for: sets may hold nearly the same text"
    about = f"(similarity {record.similarity:g} or more)"
    if not record.num_rows:
        return f"No near-duplicates {about} were found"
    return f"{numbers.count(record.num_rows, 'near-duplicate')} {about} kept with what they resemble"


def _check_text(record: NearDuplicates | None) -> str:
    """What the check of the written files found, which `split` makes and a division of one file does not."""
    if record is None or not record.num_rows:
        return ""
    return f"; the check of the written files found {record.num_torn:,} in two sets"


def identifiers_text(mode: str, counts: dict[str, int]) -> str:
    if mode == "off":
        return "No scan for identifiers of patients"
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in counts.items() if number)
    return f"Scan for identifiers of patients ({mode}): {kinds or 'none found'}"
