"""The coordinator's examples: one half decides about weights, the other half is what a round reports on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedmed_cli.digests import sha256_json
from fedmed_cli.workspace import Workspace

if TYPE_CHECKING:
    from fedmed_cli.examples import Example

EXAMPLES_NAME = "coordinator.jsonl"
DEFAULT_SAMPLES = 100


def has_examples(workspace: Workspace) -> bool:
    return (workspace.data / EXAMPLES_NAME).exists()


def halves(workspace: Workspace, group_by: str | None) -> tuple[list[Example], list[Example]]:
    """(deciding, reporting): the coordinator's examples by a hash of their group, so that both stay disjoint.

    A number that chose the weights is never the number reported.
    """
    from fedmed_cli.examples import read_jsonl

    rows = read_jsonl(workspace.data / EXAMPLES_NAME)
    return _side(rows, group_by, 0), _side(rows, group_by, 1)


def _side(rows: Sequence[Example], group_by: str | None, side: int) -> list[Example]:
    return [row for row in rows if int(sha256_json(["half", row.group(group_by)])[:8], 16) % 2 == side]
