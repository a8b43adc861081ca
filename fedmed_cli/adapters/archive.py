"""Which adapter of a workspace is meant."""

from __future__ import annotations

from dataclasses import dataclass

from fedmed_cli.adapters import gate
from fedmed_cli.adapters.adapter import Adapter, initial_factors, plan_adapter
from fedmed_cli.errors import InputError
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import Workspace


@dataclass(frozen=True)
class SiteAdapter:
    """A site's last adapter, and the round that it was made in; None where it is still in the mailbox."""

    adapter: Adapter
    round_number: int | None


def site_adapter(workspace: Workspace, plan: Plan, site: str) -> SiteAdapter | None:
    """The adapter of the newest round that a site took part in, else the one in the mailbox, if any."""
    for number in range(workspace.newest_round(), 0, -1):
        path = workspace.round(number) / site
        if path.is_dir():
            return SiteAdapter(gate.read_folder(path, plan).adapter, number)
    path = workspace.contribution(site)
    return SiteAdapter(gate.read_folder(path, plan).adapter, None) if path.is_dir() else None


def starting_adapter(workspace: Workspace, plan: Plan, round_number: int) -> Adapter:
    """The adapter that a round starts from: the round before's global one, or the plan's initial one."""
    if round_number == 1:
        return plan_adapter(plan, initial_factors(plan))
    path = workspace.global_adapter(round_number - 1)
    folder = gate.read_global(path, plan)
    assert folder.aggregate is not None
    if folder.aggregate.round != round_number - 1:
        raise InputError(f"{path}: expected round {round_number - 1}, found round {folder.aggregate.round}")
    return folder.adapter
