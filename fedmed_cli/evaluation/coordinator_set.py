"""The coordinator's examples, ready to be measured."""

from __future__ import annotations

from typing import Literal

from fedmed_cli.data import coordinator_examples, examples
from fedmed_cli.errors import InputError
from fedmed_cli.evaluation import measuring
from fedmed_cli.events import Say
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import Workspace


def coordinator_set(
    workspace: Workspace,
    plan: Plan,
    lm: LanguageModel,
    use: Literal["decide", "report"],
    limit: int | None,
    say: Say,
) -> measuring.EvaluationSet | None:
    """The coordinator's examples to decide or to report with, ready to be measured; None, said, where it has none."""
    rows = coordinator_examples.half(workspace, use)
    if not rows:
        say(f"the coordinator has no examples to {use} with")
        return None
    limit, what = limit or coordinator_examples.DEFAULT_SAMPLES, f"examples of the coordinator to {use} with"
    items = measuring.choose(lm, plan, rows, limit, workspace.group_column(), what, say, examples.home_site)
    if use == "decide" and len(set(items.groups)) < 2:
        raise InputError(
            f"data/{coordinator_examples.EXAMPLES_NAME}: the examples to decide with are of one group, which gives no "
            "interval",
            hint="add examples of others, or take '--weights tokens --server-lr 1'",
        )
    return items
