"""`fedmed inspect-adapter`: what an adapter is, without loading a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedmed_cli.cli import options as o

if TYPE_CHECKING:
    from fedmed_cli.adapters.inspect import AdapterFacts
    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.records.plan import Plan
    from fedmed_cli.reporting.parts import Part


def inspect_adapter(
    path: Annotated[Path, typer.Argument(help="An adapter's folder.")],
    other: Annotated[Path | None, typer.Argument(help="A second adapter, to compare with.")] = None,
    modules: Annotated[bool, typer.Option("--modules", help="Show every module.")] = False,
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Show an adapter's rank, size, norms, spectrum, digest, record, signature and lineage. Never loads torch.

    For an adapter that does not pass the gate it shows every fault, and nothing else.

    Example: fedmed inspect-adapter adapters/B
    """
    from fedmed_cli.adapters.low_rank import relate

    screen, place = common.open()
    plan = place.read_plan() if place.plan_path.exists() else None
    if plan is None:
        screen.say("no plan here: the adapter is checked only against itself")
    facts = _inspect(path, plan, screen)
    value: dict[str, Any] = {"adapter": facts.to_dict()}
    from fedmed_cli.cli.tables.adapter import facts_group, modules_table, relation_group

    parts: list[Part] = [facts_group(facts, plan), modules_table(facts, everything=modules)]
    if other is not None:
        second = _inspect(other, plan, screen)
        relation = relate(facts.adapter, second.adapter)
        names = ("cosine", "difference_norm", "relative_difference")
        value |= {"other": second.to_dict(), "relation": {name: getattr(relation, name) for name in names}}
        parts += [facts_group(second, plan), relation_group(relation)]
    screen.result(value, *parts)


def _inspect(path: Path, plan: Plan | None, screen: Screen) -> AdapterFacts:
    """The facts of an adapter; where the gate refuses it, all its faults are said and the first is raised."""
    from fedmed_cli.adapters.gate import find_faults
    from fedmed_cli.adapters.inspect import inspect
    from fedmed_cli.errors import FedmedError

    try:
        return inspect(path, plan)
    except FedmedError:
        for number, fault in enumerate(find_faults(path, plan), 1):
            screen.say(f"fault {number}: {fault.message}")
        raise
