"""Which adapter of a workspace is meant."""

from __future__ import annotations

from pathlib import Path

from fedmed_cli.adapters import gate
from fedmed_cli.adapters.adapter import Adapter, initial_factors, plan_adapter
from fedmed_cli.adapters.bundle import BUNDLE_SUFFIX
from fedmed_cli.adapters.folder import (
    CONTRIBUTION_NAME,
    AdapterFolder,
    ContributionFolder,
    GlobalFolder,
    PersonalFolder,
)
from fedmed_cli.adapters.signers import check_signer
from fedmed_cli.errors import InputError, TrustError
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.checks import PERSONAL
from fedmed_cli.records.digests import short
from fedmed_cli.records.measures import COORDINATOR
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import Workspace


def site_contribution(workspace: Workspace, plan: Plan, site: str) -> ContributionFolder | None:
    """A site's contribution to the newest round that it took part in, else the one in `adapters/`, if any."""
    for number in reversed(workspace.list_rounds()):
        if (workspace.round(number) / site).is_dir():
            return archived_contribution(workspace, plan, number, site)
    folder = workspace.contribution(site)
    for path in (folder, folder.with_name(site + BUNDLE_SUFFIX)):
        if path.exists():
            return gate.read_contribution(path, plan, site=site)
    return None


def personal_adapter(workspace: Workspace, plan: Plan, site: str) -> PersonalFolder | None:
    """The private adapter of a site that is in this workspace; None where there is none. TrustError for another's."""
    path = workspace.personal(site)
    if site not in plan.sites.names or not path.is_dir():
        return None
    folder = gate.read_from_anyone(path, plan)  # fedmed's own, which nobody sends
    if not isinstance(folder, PersonalFolder) or folder.record.site != site:
        raise TrustError(f"{path}: is not a private adapter of site {site}")
    return folder


def find_folder(workspace: Workspace, plan: Plan, name: str) -> AdapterFolder:
    """The folder of "global" (the newest), of a site's last or private adapter, or at a path, read through the gate.

    InputError where there is none.
    """
    newest = workspace.newest_round()
    if name == "global":
        if not newest:
            raise InputError("there is no global adapter yet", hint="run 'fedmed round' or 'fedmed aggregate' first")
        return archived_global(workspace, plan, newest)
    if name in plan.sites.names:
        contribution = site_contribution(workspace, plan, name)
        if contribution is None:
            raise InputError(f"site {name} has no adapter yet", hint=f"run 'fedmed train-local --site {name}'")
        return contribution
    site = name.removeprefix(PERSONAL)
    personal = personal_adapter(workspace, plan, site) if site != name else None
    return personal or gate.read_folder(Path(name), plan)


def starting_adapter(workspace: Workspace, plan: Plan, round_number: int) -> Adapter:
    """The adapter that a round starts from: the previous round's global one, or the plan's initial one."""
    if round_number == 1:
        return plan_adapter(plan, initial_factors(plan))
    return archived_global(workspace, plan, round_number - 1).adapter


def archived_global(workspace: Workspace, plan: Plan, round_number: int) -> GlobalFolder:
    """A round's global adapter, read through the gate."""
    path = workspace.global_adapter(round_number)
    folder = gate.read_global(path, plan)
    if folder.record.round != round_number:
        raise InputError(f"{path}: expected round {round_number}, found round {folder.record.round}")
    return folder


def archived_contribution(workspace: Workspace, plan: Plan, round_number: int, site: str) -> ContributionFolder:
    """A site's contribution to a round in the archive, read through the gate.

    Where the site's pinned key did not sign it, as before that key was pinned, the round's record vouches for it if
    the coordinator's pinned key signed that.
    """
    folder = gate.read_contribution(workspace.round(round_number) / site, plan, site=site, policy=None)
    keys = plan.sites.keys
    if COORDINATOR in keys and (folder.signer is None or folder.signer != keys.get(site)):
        check_as_filed(folder, archived_global(workspace, plan, round_number).record)
    else:
        check_signer(folder, plan, gate.PINNED)
    return folder


def check_as_filed(folder: ContributionFolder, record: Aggregate) -> None:
    """TrustError unless a contribution is the one that its round's record names, signed as it was then."""
    site, path = folder.record.site, folder.path
    if site not in record.sites:
        raise TrustError(f"{path}: the record of round {record.round} does not name it")
    decision = record.sites[site]
    for what, stated, digest in (
        ("adapter", decision.adapter, folder.adapter.digest),
        (CONTRIBUTION_NAME, decision.contribution, folder.record_digest),
    ):
        if stated != digest:
            raise TrustError(
                f"{path}: the record of round {record.round} names {what} {short(stated)}…, found {short(digest)}…"
            )
    if site in record.signers:
        from fedmed_cli.records.signatures import fingerprint

        signer = fingerprint(folder.signer) if folder.signer else "no signature"
        if signer != record.signers[site]:
            raise TrustError(f"{path}: was signed with {record.signers[site]} when it was aggregated, found {signer}")
