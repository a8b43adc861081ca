"""A global adapter that came from the coordinator: checked before a site trains on it."""

from __future__ import annotations

from pathlib import Path

from fedmed_cli.adapters import gate
from fedmed_cli.adapters.archive import archived_global
from fedmed_cli.adapters.folder import GlobalFolder
from fedmed_cli.adapters.signers import SignaturePolicy
from fedmed_cli.errors import ConflictError
from fedmed_cli.events import Say
from fedmed_cli.records.digests import short
from fedmed_cli.records.measures import COORDINATOR
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import Workspace


def accept_global(
    workspace: Workspace, plan: Plan, path: Path, require_signatures: bool = False, say: Say = lambda message: None
) -> tuple[GlobalFolder, bool]:
    """Check a global adapter that came from the coordinator, and whether it is new here.

    It must be of the newest round known here or a later one; a different adapter for a known round is refused. Where
    the plan pins no key for the coordinator, anyone could have made it, so it may be one round later and not more.
    """
    folder = gate.read_global(path, plan, SignaturePolicy(require_signatures, say))
    number, newest = folder.record.round, workspace.newest_round()
    if number < newest:
        raise ConflictError(
            f"{path}: is of round {number}, but round {newest} is filed here",
            hint=f"if {workspace.relative(workspace.round(newest))} is not the coordinator's, move it elsewhere; "
            "pinned keys keep strangers from filing rounds",
        )
    if workspace.global_adapter(number).exists():
        known = archived_global(workspace, plan, number).adapter.digest
        if known != folder.adapter.digest:
            raise ConflictError(
                f"{path}: round {number} is already filed here with adapter {short(known)}, "
                f"found {short(folder.adapter.digest)}",
                hint="ask the coordinator which of the two holds",
            )
        return folder, False
    if number > newest + 1 and COORDINATOR not in plan.sites.keys:
        place = workspace.relative(workspace.global_adapter(number))
        raise ConflictError(
            f"{path}: is of round {number}, but the next round here is {newest + 1}, and nothing proves who made it",
            hint=f"if the coordinator says that it is right, copy it to {place} and omit --global; "
            "where the plan pins the coordinator's key ('fedmed keys sign'), rounds may be missed",
        )
    return folder, True


def file_global(workspace: Workspace, folder: GlobalFolder) -> None:
    """File a global adapter that was accepted as its round's."""
    files = {f"global/{name}": content for name, content in folder.files.items()}
    workspace.replace_folder(workspace.round(folder.record.round), dict(files))
