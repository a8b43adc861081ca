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
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import Workspace


def accept_global(
    workspace: Workspace, plan: Plan, path: Path, require_signatures: bool = False, say: Say = lambda message: None
) -> tuple[GlobalFolder, bool]:
    """Check a global adapter that came from the coordinator, and whether it is new here.

    It must be of the newest round known here or a later one; a different adapter for a known round is refused.
    """
    folder = gate.read_global(path, plan, SignaturePolicy(require_signatures, say))
    number = folder.record.round
    if workspace.global_adapter(number).exists():
        known = archived_global(workspace, plan, number).adapter.digest
        if known != folder.adapter.digest:
            raise ConflictError(
                f"{path}: round {number} is already filed here with adapter {short(known)}, "
                f"found {short(folder.adapter.digest)}",
                hint="ask the coordinator which of the two holds",
            )
        return folder, False
    if number < workspace.newest_round():
        newest = workspace.newest_round()
        raise ConflictError(
            f"{path}: is of round {number}, but round {newest} is filed here",
            hint=f"if {workspace.relative(workspace.round(newest))} is not the coordinator's, move it elsewhere; "
            "pinned keys keep strangers from filing rounds",
        )
    return folder, True


def file_global(workspace: Workspace, folder: GlobalFolder) -> None:
    """File a global adapter that was accepted as its round's."""
    files = {f"global/{name}": content for name, content in folder.files.items()}
    workspace.replace_folder(workspace.round(folder.record.round), dict(files))
