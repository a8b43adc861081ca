"""`fedmed inspect-adapter`: what an adapter is, without loading a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmed_cli import options as o


def inspect_adapter(
    path: Annotated[Path, typer.Argument(help="An adapter's folder.")],
    other: Annotated[Path | None, typer.Argument(help="A second one, to compare with.")] = None,
    modules: Annotated[bool, typer.Option("--modules", help="Show every module.")] = False,
    workspace: o.WorkspaceOption = Path("."),
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Show an adapter's rank, size, norms, spectrum, digest, record and lineage. Never loads torch.

    Example: fedmed inspect-adapter adapters/B
    """
    from fedmed_cli.inspection import inspect, relate
    from fedmed_cli.screen import Screen
    from fedmed_cli.workspace import Workspace

    screen = Screen(as_json, quiet, verbose)
    place = Workspace(workspace, screen.say)
    plan = place.read_plan() if place.plan_path.exists() else None
    if plan is None:
        screen.say("no plan here: the adapter is checked against itself alone")
    facts = inspect(path, plan)
    value = {"adapter": facts.to_dict()}
    from fedmed_cli.commands.inspect_tables import facts_table, modules_table, relation_table

    shown = [facts_table(facts), modules_table(facts, everything=modules)]
    if other is not None:
        second = inspect(other, plan)
        relation = relate(facts, second)
        value |= {"other": second.to_dict(), "relation": relation}
        shown += [facts_table(second), relation_table(relation)]
    screen.result(value, *shown)
