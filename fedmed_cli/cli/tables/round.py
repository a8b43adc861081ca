"""What `train-local` and `round` show of training, beside the report's tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedmed_cli.cli.tables.pictures import loss_curves
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.privacy import NO_GUARANTEE
from fedmed_cli.reporting import numbers
from fedmed_cli.reporting.parts import Part, Text
from fedmed_cli.reporting.tables.privacy import promises_table
from fedmed_cli.reporting.tables.round import round_parts, validation_table

if TYPE_CHECKING:
    from fedmed_cli.federation.simulation import RoundSummary


def contribution_parts(record: Contribution) -> list[Part]:
    """One site's training: its loss over steps and on validation examples, and the bytes that leave the hospital."""
    parts = loss_curves({record.site: record})
    if record.validation_after is not None:
        parts += [validation_table([record]), *numbers.few_groups(record.validation_after.num_groups)]
    return [*parts, Text(f"{record.privacy}." if record.privacy else NO_GUARANTEE), bytes_text(record)]


def bytes_text(record: Contribution) -> Text:
    return Text(f"What leaves the hospital: {numbers.saved_bytes(record.adapter_bytes, record.base_bytes)}.")


def summary_parts(summary: RoundSummary) -> list[Part]:
    """A round on one machine: each site's training, the global adapter before and after, and the decisions."""
    measured = "The coordinator has no examples, so the global adapter was not measured."
    if summary.before and summary.after and summary.change:
        measured = (
            f"Global adapter on {numbers.count(summary.after.num_examples, 'other coordinator example')}: loss "
            f"{summary.before.mean:.4f} before, {summary.after.mean:.4f} after, change "
            f"{numbers.interval(summary.change)} (95 %)."
        )
    records = summary.contributions
    return [
        validation_table(records.values()),
        *loss_curves(records),
        *promises_table(records, summary.aggregate.round),
        *round_parts(summary.aggregate),
        Text(measured),
        bytes_text(next(iter(records.values()))),
    ]
