"""The gate that every adapter passes before fedmed uses it.

Each file is read once into memory, hashed, and that same buffer is parsed: nothing can change between the
check and the use. Nothing is ever unpickled, and a foreign file is never memory-mapped. What is checked, and in which
order, is in `gate_steps`; then the key that signed the folder is held against those that the plan pins.
"""

from __future__ import annotations

from pathlib import Path

from fedmed_cli.adapters.folder import (
    AGGREGATE_NAME,
    CONTRIBUTION_NAME,
    AdapterFolder,
    ContributionFolder,
    GlobalFolder,
    PersonalFolder,
)
from fedmed_cli.adapters.gate_steps import STEPS, Reading
from fedmed_cli.adapters.signers import SignaturePolicy, check_signer
from fedmed_cli.errors import CombineError, FedmedError, InputError, TrustError
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import short
from fedmed_cli.records.personal import Personal
from fedmed_cli.records.plan import Plan

PINNED = SignaturePolicy()


def read_from_anyone(path: Path, plan: Plan | None = None) -> AdapterFolder:
    """Read an adapter folder, or a bundle of one, through the gate, without asking who signed it.

    With `plan` it must be exactly the adapter that the plan implies. A signature must hold for the key that it names,
    but any key will do. Raises InputError (exit code 3) for what is missing or corrupt, CombineError (4) for an
    adapter of another kind, rank, base or plan, TrustError (7) where a digest or a signature does not hold.
    """
    reading = Reading(path, plan)
    for step in STEPS:
        step(reading)
    adapter, record = reading.adapter, next(iter(reading.records.values()), None)
    assert adapter is not None  # the steps refuse a folder without one
    if isinstance(record, Contribution):
        return ContributionFolder(path, adapter, reading.files, reading.signer, record)
    if isinstance(record, Aggregate):
        return GlobalFolder(path, adapter, reading.files, reading.signer, record)
    if isinstance(record, Personal):
        return PersonalFolder(path, adapter, reading.files, reading.signer, record)
    return AdapterFolder(path, adapter, reading.files, reading.signer, None)


def find_faults(path: Path, plan: Plan | None = None) -> list[FedmedError]:
    """All that the gate has against a folder or bundle, in the order of its steps; empty where it passes."""
    reading, faults = Reading(path, plan), []
    for step in STEPS:
        try:
            step(reading)
        except FedmedError as error:
            faults.append(error)
    return faults


def read_folder(path: Path, plan: Plan) -> AdapterFolder:
    """Read an adapter folder or bundle of the plan, with or without a record, and check who signed it.

    Raises as `read_from_anyone` does, and TrustError as `check_signer` does.
    """
    folder = read_from_anyone(path, plan)
    check_signer(folder, plan, PINNED)
    return folder


def read_contribution(
    path: Path,
    plan: Plan,
    start: tuple[int, str] | None = None,
    *,
    site: str | None = None,
    policy: SignaturePolicy | None = PINNED,
) -> ContributionFolder:
    """Read a site's contribution through the gate, and check who signed it, unless the caller does that (None).

    Where `start` is given, the contribution must be to that round and trained from the adapter of that digest; where
    `site` is given, it must be that site's.
    """
    folder = read_from_anyone(path, plan)
    check_may_leave(folder)
    if isinstance(folder, GlobalFolder):
        raise CombineError(f"{path}: is a global adapter, not a site's contribution")
    if not isinstance(folder, ContributionFolder):
        raise InputError(
            f"{path}: has no {CONTRIBUTION_NAME}", hint="send the whole folder that 'fedmed train-local' wrote"
        )
    if site is not None and folder.record.site != site:
        raise TrustError(f"{path}: expected a contribution of site {site}, found one of site {folder.record.site}")
    if start is not None:
        check_lineage(path, folder.record, *start)
    if policy is not None:
        check_signer(folder, plan, policy)
    return folder


def read_global(path: Path, plan: Plan, policy: SignaturePolicy | None = PINNED) -> GlobalFolder:
    """Read a round's global adapter through the gate, and check who signed it, unless the caller does that (None)."""
    folder = read_from_anyone(path, plan)
    check_may_leave(folder)
    if isinstance(folder, ContributionFolder):
        raise CombineError(f"{path}: is a site's contribution, not a global adapter")
    if not isinstance(folder, GlobalFolder):
        raise InputError(f"{path}: has no {AGGREGATE_NAME}", hint="name a rounds/NNN/global folder of the coordinator")
    if policy is not None:
        check_signer(folder, plan, policy)
    return folder


def check_may_leave(folder: AdapterFolder) -> None:
    """TrustError for a hospital's private adapter."""
    if isinstance(folder, PersonalFolder):
        raise TrustError(
            f"{folder.path}: is a private adapter of site {folder.record.site}, which does not leave the hospital",
            hint="what may leave is the contribution that 'fedmed train-local' writes to adapters/",
        )


def check_lineage(path: Path, record: Contribution, round_number: int, parent: str) -> None:
    """TrustError unless a contribution is of the given round and started from the adapter of digest `parent`."""
    if record.round != round_number:
        done = f"; round {record.round} is already aggregated" if record.round < round_number else ""
        raise TrustError(
            f"{path}: expected a contribution to round {round_number}, found one to round {record.round}{done}",
            hint=f"train again for round {round_number}" if done else "aggregate the rounds before it first",
        )
    if record.parent != parent:
        raise TrustError(
            f"{path}: expected an adapter trained from {short(parent)}… (the global adapter before round "
            f"{round_number}), found {short(record.parent)}…",
            hint="send this site the newest global adapter and train again",
        )
