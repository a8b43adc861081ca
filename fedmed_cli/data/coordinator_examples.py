"""The coordinator's examples: one half decides about weights, the other half is what a round reports on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fedmed_cli.records.digests import sha256_json
from fedmed_cli.workspace import Workspace

if TYPE_CHECKING:
    from fedmed_cli.data.examples import Example

EXAMPLES_NAME = "coordinator.jsonl"
DEFAULT_SAMPLES = 100


def half(workspace: Workspace, use: Literal["decide", "report"]) -> list[Example]:
    """The coordinator's examples to decide with, or those to report on: by a hash of their group, so disjoint.

    A number that chose the weights is never the number reported. Empty where the coordinator has none.
    """
    path = workspace.data / EXAMPLES_NAME
    if not path.exists():
        return []
    from fedmed_cli.data.examples import read_jsonl

    group_by, side = workspace.group_column(), 0 if use == "decide" else 1
    rows = read_jsonl(path)
    return [row for row in rows if int(sha256_json(["half", row.group(group_by)])[:8], 16) % 2 == side]


def is_reported(workspace: Workspace, round_number: int, adapter: str) -> bool:
    """Whether a round's global adapter, of this digest, was measured on the reporting half, or that half is empty."""
    from fedmed_cli.records.metrics import find_measurement, read_metrics

    events, _ = read_metrics(workspace.root / "metrics.jsonl")
    return find_measurement(events, round_number, adapter) is not None or not half(workspace, "report")
