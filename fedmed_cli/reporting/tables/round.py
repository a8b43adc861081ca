"""Tables of a round: what sites measured of their training, and what the coordinator decided, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedmed_cli.records.aggregate import Aggregate, CoordinatorEvaluation, SiteDecision
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import short
from fedmed_cli.records.scores import Scores
from fedmed_cli.reporting import numbers
from fedmed_cli.reporting.parts import Cell, Pairs, Part, Table, Text


def round_parts(record: Aggregate) -> list[Part]:
    """What was decided about each site and why, what to do about it, and how exact the result is."""
    how = f"Combined with method {record.method} and weights {record.weights}"
    how += f", robust mean {record.robust} against {record.num_malicious}" if record.robust != "none" else ""
    how += f", norm clip {record.clip:g}" if record.clip is not None else ""
    how += f", server step {record.server_lr:g}" if record.server_lr != 1 else ""
    how += f", server momentum {record.server_momentum:g}" if record.server_momentum else ""
    rows = [_decision_row(name, one) for name, one in record.sites.items()]
    reasons: list[tuple[str, str | Cell]] = [(name, Cell(lines=one.reasons)) for name, one in record.sites.items()]
    for names, verdict, why in (
        (record.missing, "missing", "sent nothing"),
        (record.excluded, "excluded", "left out with --exclude"),
    ):
        rows += [[name, Cell(verdict, "gone"), "", "", "", ""] for name in names]
        reasons += [(name, why) for name in names]
    columns = ["site", "verdict", "weight", "claimed", "update norm", "measured gain"]
    parts: list[Part] = [
        Text(f"{how}. Difference from the exact weighted mean: {_truncation_text(record)}."),
        Table(f"Decisions of round {record.round}", columns, rows, frozenset({1})),
        Text("Reasons given in the record:"),
        Pairs(reasons),
    ]
    if rejected := [name for name, one in record.sites.items() if one.verdict == "rejected"]:
        advice = (
            "Ask that site to check its data, labels and base model; its update was not used, and its folder stays "
        )
        parts.append(Text(f"Rejected: {', '.join(rejected)}. {advice}in the round's archive.", "note"))
    if record.examination is not None:
        parts += _examination_parts(record.examination, record.server_lr)
    if record.weights == "self-reported":
        parts.append(Text("Self-reported weights can be won by lying about the loss; they are for comparison.", "note"))
    return parts


def _decision_row(name: str, one: SiteDecision) -> list[str | Cell]:
    clipped = f" (to {one.clip_factor:.2f})" if one.clip_factor < 1 else ""
    gain = numbers.interval(one.evidence.gain) or "not measured"
    verdict = Cell(one.verdict + clipped, one.verdict)
    return [name, verdict, f"{one.weight:.3f}", f"{one.prior:.3f}", f"{one.evidence.update_norm:.3f}", gain]


def _truncation_text(record: Aggregate) -> str:
    error = record.truncation
    worst = max(error.modules, key=lambda module: error.modules[module], default=None)
    at = f" (worst module {worst}: {numbers.percent(error.modules[worst])})" if worst is not None else ""
    return numbers.percent(error.overall) + at


def _examination_parts(seen: CoordinatorEvaluation, server_lr: float) -> list[Part]:
    parts: list[Part] = [
        Text(
            f"Decided on {numbers.count(seen.num_examples, 'coordinator example')} "
            f"({numbers.count(seen.num_groups, 'group')}): loss {seen.parent.mean:.4f} before, {seen.result.mean:.4f} "
            "after. These numbers were used to choose the weights; do not report them as results. They reveal harmful "
            "updates; they do not rule out a backdoor.",
            "note",
        ),
        *numbers.few_groups(seen.num_groups),
    ]
    if seen.server_lr_losses:
        tried = ", ".join(f"{step}: {loss:.4f}" for step, loss in seen.server_lr_losses.items())
        why = "A larger step must help beyond chance and, where examples name their sites, not be seen to hurt one."
        parts.append(Text(f"Server step: {server_lr:g} times the mean update (loss at {tried}). {why}"))
    return parts


def validation_table(records: Iterable[Contribution]) -> Table:
    """What sites measured of their training on their own validation examples."""
    rows = []
    for record in records:
        before, after = record.validation_before, record.validation_after
        change = numbers.signed(after.mean - before.mean) if before and after else ""
        examples = numbers.examples_in_groups(after.num_examples, after.num_groups) if after else ""
        losses = [numbers.loss(before), numbers.loss(after)]
        rows.append([f"{record.round}", record.site, *losses, change, examples])
    title = "Loss on each site's validation examples (nats, ± half a 95 % interval)"
    return Table(title, ["round", "site", "before", "after", "change", "examples"], rows, frozenset({1}))


def scores_table(records: Iterable[Scores], owners: Mapping[str, str] | None = None) -> Table:
    """What hospitals measured of contributions, by the site of each adapter where `owners` (by digest) has it."""
    rows = [
        [
            record.site,
            f"{record.round}",
            (owners or {}).get(adapter, short(adapter)),
            numbers.signed(one.gain),
            f"{one.standard_error:.4f}",
            f"{record.num_examples:,}",
        ]
        for record in records
        for adapter, one in record.gains.items()
    ]
    columns = ["scored by", "round", "adapter of", "gain in nats", "standard error", "validation examples"]
    return Table("Hospitals' scores of contributions", columns, rows, frozenset({2}), folded=True)
