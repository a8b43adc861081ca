"""The report on results: the comparison with its intervals, the matrix of sites and adapters, the answers."""

from __future__ import annotations

from fedmed_cli.records.checks import GLOBAL
from fedmed_cli.records.comparison import Comparison, Matrix
from fedmed_cli.records.digests import short
from fedmed_cli.records.measures import OVERALL
from fedmed_cli.reporting import numbers
from fedmed_cli.reporting.parts import Answers, Group, Part, Section, Text
from fedmed_cli.reporting.tables.comparison import comparison_parts, matrix_parts, site_matrix_parts, verdict
from fedmed_cli.reporting.workspace_records import WorkspaceRecords

SHADES = Text(
    "Tables of losses: where the interval of the difference from the base excludes 0 the cell is shaded, blue for "
    "better than the base, orange for worse. The lowest loss of a row is bold."
)


def comparison_section(records: WorkspaceRecords) -> Section:
    """Adapters on examples that nobody trained on or chose weights with."""
    parts: list[Part] = []
    if records.comparison is None:
        why = "There is no reports/compare.json yet: 'fedmed compare' measures adapters on held-out examples."
        parts.append(Text(why, "missing"))
    else:
        parts += _one_comparison_parts(records, records.comparison, "compare")
    for site, comparison in records.site_comparisons.items():
        title = f"Measured inside hospital {site}, on its own test examples"
        parts.append(Group(title, _one_comparison_parts(records, comparison, f"compare-{site}")))
    if len(parts) > 1:
        parts.append(SHADES)
    return Section("comparison", "Comparison on held-out examples", parts)


def _stale_parts(records: WorkspaceRecords, measured: Comparison | Matrix) -> list[Part]:
    """What tells that something was measured before the workspace became what it is."""
    parts: list[Part] = []
    if measured.plan != records.plan.digest:
        parts.append(Text("This was measured under another plan than the one of this workspace.", "fault"))
    newest = next((one for one in reversed(records.rounds) if one.aggregate), None)
    compared = measured.adapters.get(GLOBAL)
    if newest and newest.aggregate and compared is not None and compared != newest.aggregate.adapter:
        made = f"the global adapter of round {newest.number} ({short(newest.aggregate.adapter)})"
        text = f"What was measured as global ({short(compared)}) is not {made}: run 'fedmed compare' again."
        parts.append(Text(text, "fault"))
    return parts


def _one_comparison_parts(records: WorkspaceRecords, comparison: Comparison, name: str) -> list[Part]:
    parts = _stale_parts(records, comparison)
    if sentence := verdict(comparison):
        parts.append(Text(sentence, "verdict"))
    parts += comparison_parts(comparison, records.plan, name)
    for bound, pooled in records.pooled.items():
        if comparison.adapters.get(bound) == pooled.adapter:
            size = pooled.per_device_train_batch_size * pooled.gradient_accumulation_steps
            parts.append(
                Text(
                    f"{bound} is one adapter trained on all sites' {numbers.count(pooled.num_examples, 'example')} "
                    f"together: {pooled.max_steps:,} steps of {size}, {pooled.num_trained_tokens:,} answer tokens in "
                    f"all (the federation: {pooled.num_federated_tokens:,}). It is an upper bound that no federation "
                    "of real hospitals can measure."
                )
            )
    return parts


def matrix_section(records: WorkspaceRecords) -> Section:
    """Each adapter on each hospital's own examples, merged or as the hospitals' files are here."""
    title, matrix = "Every adapter at every site", records.matrix
    if matrix is not None:
        parts = _stale_parts(records, matrix)
        return Section("matrix", title, [*parts, *matrix_parts(matrix, records.plan), SHADES])
    stale = {site: _stale_parts(records, one) for site, one in records.site_comparisons.items()}
    by_site = {
        site: {name: parts[OVERALL] for name, parts in one.scores.items() if OVERALL in parts}
        for site, one in records.site_comparisons.items()
        if not stale[site]
    }
    by_site = {site: scores for site, scores in by_site.items() if scores}
    left_out = ", ".join(site for site, parts in stale.items() if parts)
    notes: list[Part] = []
    if left_out:
        notes.append(Text(f"Left out, since they measured another global adapter or plan: {left_out}.", "fault"))
    if not by_site:
        why = "There is no reports/matrix.json and no comparison of a hospital that belongs to the newest round."
        return Section("matrix", title, [*notes, Text(why, "missing")])
    about = Text("These hospitals measured on their own test examples (reports/compare-SITE.json).")
    return Section("matrix", title, [*notes, about, *site_matrix_parts(by_site, records.plan), SHADES])


def answers_section(records: WorkspaceRecords, wanted: bool) -> Section:
    """Generated answers beside each other."""
    title = "Answers side by side"
    if not wanted:
        return Section("answers", title, [Text("Left out of this report on request (--no-answers).", "missing")])
    if not records.answers:
        why = "There is no reports/answers.md with answers: 'fedmed compare' writes it."
        return Section("answers", title, [Text(why, "missing")])
    warning = (
        "Text that the models generated to bundled or given questions, from reports/answers.md. It can be wrong and "
        "harmful; nobody has checked it, and it says nothing about how good an adapter is."
    )
    return Section("answers", title, [Text(warning, "note"), Answers(records.answers)])
