"""How commands show their results as tables and lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedmed_cli.cli.screen import Table, number_of_bytes
from fedmed_cli.cli.tables import sparklines
from fedmed_cli.intervals import FEW_GROUPS
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import short
from fedmed_cli.records.measures import Interval, Loss
from fedmed_cli.records.scores import Scores
from fedmed_cli.workspace import Workspace

if TYPE_CHECKING:
    from fedmed_cli.data.split import SplitResult
    from fedmed_cli.federation.coordinator import RoundResult
    from fedmed_cli.federation.simulation import RoundSummary


BAR_WIDTH = 28
_BAR_MARKS = "█▓▒░▚▞▙▟"


def split_table(workspace: Workspace, result: SplitResult) -> list[Table | str]:
    record = result.record
    totals: Counter[str] = Counter()
    for counts in record.sites.values():
        totals.update(counts.labels)
    marked = sorted(totals, key=lambda label: (-totals[label], label))[: len(_BAR_MARKS) - 1]
    marks = dict(zip(marked, _BAR_MARKS, strict=False))
    largest = max(counts.total for counts in record.sites.values())
    rows = []
    for name, counts in record.sites.items():
        common = sorted(counts.labels.items(), key=lambda item: (-item[1], item[0]))
        made_of = ", ".join(f"{label} {100 * count / counts.total:.0f} %" for label, count in common[:4])
        numbers = (counts.total, counts.train, counts.validation, counts.coordinator, counts.test)
        more = f", {len(common) - 4} more" if len(common) > 4 else ""
        bar = _bar(counts.labels, marks, BAR_WIDTH * counts.total / largest)
        rows.append([name, *(f"{n:,}" for n in numbers), f"{counts.jensen_shannon:.2f}", bar, made_of + more])
    how = record.method + (f" (alpha {record.alpha:g})" if record.alpha is not None else "")
    if record.column:
        how += f" {record.column}"
    if record.topics:
        how += f" over {record.topics} topics"
    columns = ("site", "examples", "train", "validation", "coordinator", "test", "JS", "size and labels", "made of")
    kept = f"{record.num_groups:,} groups"
    if record.group_by:
        kept += f" by {record.group_by}"
    legend = "   ".join(f"{mark} {label[:30]}" for label, mark in marks.items())
    lines: list[Table | str] = [
        Table(f"{record.num_examples:,} examples, {how}", columns, rows, frozenset({0, 7, 8})),
        legend + (f"   {_BAR_MARKS[-1]} all others" if len(totals) > len(marks) else ""),
        f"JS: Jensen-Shannon distance to the pool, 0 (alike) to 1. {kept}, each in one set only: checked on the "
        f"written files (0 texts and 0 groups in two sets)."
        + (f" {record.num_moved} examples moved with their group." if record.num_moved else ""),
    ]
    near = record.near_duplicates
    if near is None:
        lines.append(
            "near-duplicates were not searched for (--near-duplicates off): sets may hold nearly the same text"
        )
    elif near.num_rows or near.num_torn:
        lines.append(
            f"{near.num_rows} near-duplicates (similarity {near.similarity:g} or more) stay with what they are like; "
            f"the check of the written files found {near.num_torn} in two sets"
        )
    if record.requested_sizes:
        got = [counts.total for counts in record.sites.values()]
        if list(record.requested_sizes) != got:
            lines.append(f"asked for {record.requested_sizes}, got {tuple(got)}: groups stay whole")
    verb = "wrote" if result.wrote_plan else "kept"
    lines.append(f"{verb} {workspace.plan_path} (plan {short(result.plan.digest)}); next: fedmed round")
    return lines


def _bar(labels: Mapping[str, int], marks: Mapping[str, str], width: float) -> str:
    """A bar as long as the site is large, divided by label as far as whole characters go."""
    total = sum(labels.values())
    parts = [(mark, labels.get(label, 0)) for label, mark in marks.items()]
    parts.append((_BAR_MARKS[-1], total - sum(count for _, count in parts)))
    bar, seen = "", 0
    for mark, count in parts:
        seen += count
        bar += mark * (round(width * seen / total) - len(bar))
    return bar


def loss_text(loss: Loss | None) -> str:
    return f"{loss.mean:.4f} ± {1.96 * loss.standard_error:.4f}" if loss else "not measured"


def interval_text(interval: Interval | None) -> str:
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]" if interval else ""


def contribution_lines(record: Contribution) -> list[Table | str]:
    before, after = record.validation_before, record.validation_after
    lines = loss_curves({record.site: record})
    if before and after:
        lines.append(
            f"validation loss {loss_text(before)} before, {loss_text(after)} after "
            f"({after.num_examples} examples, {after.num_groups} groups; nats per answer token, 95 %)"
        )
        if after.num_groups < FEW_GROUPS:
            lines.append(f"only {after.num_groups} groups: the ± is rough")
    lines.append(
        f"what leaves the hospital: {number_of_bytes(record.adapter_bytes)} of adapter instead of "
        f"{number_of_bytes(record.base_bytes)} of model ({100 * record.reduction:.2f} % less)"
    )
    return lines


def aggregate_table(record: Aggregate) -> list[Table | str]:
    """What was decided about each site and why, what to do about it, and how exact the result is."""
    measured = record.examination is not None
    rows = []
    for name, site in record.sites.items():
        row = [name, site.verdict, f"{site.weight:.3f}", f"{site.prior:.3f}"]
        row += [f"{site.evidence.update_norm:.3f}"]
        row += [f"{site.evidence.gain.mean:+.4f}" if site.evidence.gain else ""] if measured else []
        rows.append([*row, "; ".join(site.reasons)])
    width = len(rows[0])
    for names, verdict, why in (
        (record.missing, "missing", "sent nothing"),
        (record.excluded, "excluded", "--exclude"),
    ):
        rows += [[name, verdict, *[""] * (width - 3), why] for name in names]
    columns = ["site", "verdict", "weight", "by claims", "norm", *(["gain"] if measured else []), "why"]
    how = f"{record.method}, weights {record.weights}"
    how += f", {record.robust}" if record.robust != "none" else ""
    how += f", server step {record.server_lr:g}" if record.server_lr != 1 else ""
    lines: list[Table | str] = [Table(f"Round {record.round}: {how}", columns, rows, frozenset({0, 1, width - 1}))]
    if record.weights == "self-reported":
        lines.append("warning: self-reported weights can be won by lying about the loss; they are for comparison only")
    lines += _examination_lines(record)
    error = record.truncation
    worst = max(error.modules, key=lambda module: error.modules[module])
    lines.append(
        f"difference to the exact weighted mean: {100 * error.overall:.2f} % (worst module {worst}: "
        f"{100 * error.modules[worst]:.2f} %)"
    )
    return lines


def _examination_lines(record: Aggregate) -> list[str]:
    lines = []
    rejected = [name for name, site in record.sites.items() if site.verdict == "rejected"]
    if rejected:
        lines.append(
            f"rejected: {', '.join(rejected)}. Ask that site to check its data, labels and base model; its update was "
            "not used, and its folder stays in the round's archive"
        )
    if record.examination is not None:
        seen = record.examination
        lines.append(
            f"decided on {seen.num_examples} of the coordinator's examples ({seen.num_groups} groups): loss "
            f"{seen.parent.mean:.4f} before, {seen.result.mean:.4f} after. These numbers were used to choose "
            "the weights; do not report them as results. They reveal harmful updates; they do not rule out a backdoor"
        )
        if seen.num_groups < FEW_GROUPS:
            lines.append(f"only {seen.num_groups} groups: the decisions are rough ({FEW_GROUPS} or more are wanted)")
        if seen.server_lr_losses:
            tried = ", ".join(f"{step}: {loss:.4f}" for step, loss in seen.server_lr_losses.items())
            lines.append(
                f"server's step: {record.server_lr:g} times the mean of the updates (loss at {tried}); a longer step "
                "is taken where it helps beyond chance and hurts no site"
            )
    return lines


def end_of_aggregate(result: RoundResult) -> list[str]:
    """Where the result lies and what to do with it."""
    if result.path is None:
        return ["dry run: nothing was written"]
    return [f"wrote {result.path} ({number_of_bytes(result.num_bytes)}): send this folder to all sites"]


def scores_table(record: Scores) -> Table:
    rows = [[digest[:12], f"{one.gain:+.4f}", f"{one.standard_error:.4f}"] for digest, one in record.gains.items()]
    title = f"Site {record.site} scores round {record.round} on {record.num_examples} validation examples"
    return Table(title, ("adapter", "gain in nats", "standard error"), rows)


def loss_curves(records: Mapping[str, Contribution]) -> list[Table | str]:
    """Each site's training loss over its steps as a small curve, all on one scale; nothing where no step has one."""
    losses = {name: sparklines.shares(record.losses) for name, record in records.items() if record.losses}
    if not losses:
        return []
    low, high = (edge(edge(values) for values in losses.values()) for edge in (min, max))
    rows = [
        [name, f"{values[0]:.3f}", sparklines.curve(values, low, high), f"{values[-1]:.3f}"]
        for name, values in losses.items()
    ]
    steps = max(len(record.losses) for record in records.values())
    each = f", a block is up to {-(-steps // sparklines.CURVE_WIDTH)} steps" if steps > sparklines.CURVE_WIDTH else ""
    title = f"Training loss, {low:.2f} to {high:.2f} nats{each}"
    return [Table(title, ("site", "first", "loss", "last"), rows, frozenset({0, 2}))]


def round_table(summary: RoundSummary) -> Table:
    rows = []
    for name, record in summary.contributions.items():
        decision = summary.aggregate.sites[name]
        rows.append(
            [
                name,
                f"{record.num_examples:,}",
                str(record.max_steps),
                loss_text(record.validation_before),
                loss_text(record.validation_after),
                f"{decision.evidence.update_norm:.3f}",
                f"{decision.weight:.3f}",
                decision.verdict,
            ]
        )
    change = summary.change
    caption = "no coordinator examples: the global adapter was not measured"
    if summary.before and summary.after and change:
        caption = (
            f"global adapter on {summary.after.num_examples} other coordinator examples: {summary.before.mean:.4f} -> "
            f"{summary.after.mean:.4f}, change {interval_text(change)} (95 %)"
        )
    columns = ("site", "examples", "steps", "loss before", "loss after", "norm", "weight", "verdict")
    return Table(f"Round {summary.aggregate.round}", columns, rows, frozenset({0, 7}), caption)
