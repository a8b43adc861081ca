"""Proving from a workspace's files alone what each global adapter was made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedmed_cli.adapters import gate
from fedmed_cli.adapters.adapter import Adapter, initial_factors, plan_adapter
from fedmed_cli.adapters.bundle import is_bundle
from fedmed_cli.adapters.gate import AGGREGATE_NAME, CONTRIBUTION_NAME, AdapterFolder
from fedmed_cli.adapters.low_rank import difference_norms
from fedmed_cli.aggregation.methods import COMBINE
from fedmed_cli.errors import CombineError, FedmedError, InputError, TrustError
from fedmed_cli.events import Say
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.codec import read_file
from fedmed_cli.records.digests import sha256_bytes, short
from fedmed_cli.records.measures import COORDINATOR
from fedmed_cli.records.metrics import read_metrics
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.scores import Scores
from fedmed_cli.records.split import DivisionRecord, SplitRecord
from fedmed_cli.trust.keys import check_signer, party
from fedmed_cli.workspace import Workspace

RECOMPUTED_WITHIN = 1e-6


@dataclass(frozen=True)
class Checked:
    """One adapter that was checked: whose it is, who signed it, and how its bytes compare when made again.

    `signature` is "site B" or "coordinator" for a pinned key, "covered" where a signed later record names its
    digest, "unknown key" or "none". `difference` is relative, over all products s·B·A; 0 for the same bytes.
    """

    path: str
    round: int | None
    party: str | None
    adapter: str
    signature: str
    difference: float | None = None


@dataclass
class Verification:
    """What `verify` found. A note is not a fault: it says what could not be proved, and why."""

    checked: list[Checked] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[FedmedError] = field(default_factory=list)

    def attempt(self, check: Callable[[], None]) -> None:
        """Run a check; keep its fault and go on."""
        try:
            check()
        except FedmedError as error:
            self.faults.append(error)

    def raise_faults(self) -> None:
        """Raise the first fault of trust, else the first of any kind."""
        if self.faults:
            first = next((fault for fault in self.faults if isinstance(fault, TrustError)), self.faults[0])
            if len(self.faults) > 1:
                first.message += f" ({len(self.faults)} faults in all)"
                first.args = (first.message,)
            raise first

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {"checked": [asdict(one) for one in self.checked], "notes": self.notes}


def recompute(
    plan: Plan, parent: Adapter, before: Adapter | None, record: Aggregate, contributions: Mapping[str, Adapter]
) -> Adapter:
    """Combine the contributions again with the weights, clip factors, server step and method that the record states.

    `before` is the global adapter before `parent`, for server momentum; a rejected site has weight 0.
    """
    sites = sorted(record.sites)
    coefficients = [record.server_lr * record.sites[site].weight * record.sites[site].clip_factor for site in sites]
    momentum = (record.server_momentum, before) if before is not None and record.server_momentum else None
    return COMBINE[record.method](plan, parent, [contributions[site] for site in sites], coefficients, momentum)[0]


def relative_difference(one: Adapter, two: Adapter) -> float:
    """‖s₁B₁A₁ − s₂B₂A₂‖ / ‖s₁B₁A₁‖ over all modules; CombineError where they adapt other modules."""
    difference, norm = difference_norms(one, two)
    if norm == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / norm


# --- one folder -------------------------------------------------------------------------------------


def verify_folder(path: Path, workspace: Workspace, plan: Plan | None, require: bool) -> Verification:
    """Check one adapter folder or bundle: the gate, its signature, and the adapter it started from."""
    result = Verification()

    def check() -> None:
        folder = gate.read_folder(path, plan)
        record = folder.contribution or folder.aggregate
        if plan is None:
            if require:
                raise TrustError(f"{path}: there is no plan here, so no key is trusted")
            result.notes.append("there is no plan here: the folder was checked against itself alone")
        elif record is None:
            raise InputError(f"{path}: holds no record, so nothing says where it comes from")
        else:
            check_signer(folder, plan, require, result.notes.append)
            start = _digest_before(workspace, plan, record.round)
            if start is None:
                result.notes.append(f"round {record.round - 1} is not here, so where it started from is unproved")
            elif record.parent != start:
                raise _other_parent(path, record.parent, start, record.round)
        signature = "none" if folder.signer is None else _trusted(folder, plan) or "unknown key"
        number = record.round if record else None
        whose = party(folder) if record else None
        result.checked.append(Checked(str(path), number, whose, folder.adapter.digest, signature))

    result.attempt(check)
    return result


def _trusted(folder: AdapterFolder, plan: Plan | None) -> str | None:
    """Whose pinned key signed a folder; None where no pinned key did."""
    if plan is None or folder.signer is None:
        return None
    name = party(folder)
    if plan.sites.keys.get(name) != folder.signer:
        return None
    return name if name == COORDINATOR else f"site {name}"


def _other_parent(path: Path, found: str, expected: str, number: int) -> TrustError:
    return TrustError(
        f"{path}: started from adapter {short(found)}…, but round {number} starts from {short(expected)}…"
    )


def _digest_before(workspace: Workspace, plan: Plan, number: int) -> str | None:
    """The digest of the adapter that a round starts from; None where the round before is not here."""
    if number == 1:
        return plan_adapter(plan, initial_factors(plan)).digest
    before = workspace.global_adapter(number - 1)
    return gate.read_global(before, plan).adapter.digest if before.is_dir() else None


# --- the whole workspace ----------------------------------------------------------------------------


def verify_workspace(workspace: Workspace, plan: Plan, again: bool, require: bool, say: Say) -> Verification:
    """Check every round from the newest to the first, the mailbox, and the records beside them.

    With `again` each round is aggregated anew. `say` is told of each round as it is checked.
    """
    result = Verification()
    rounds = _Rounds(workspace, plan, again, require, result)
    for number in range(workspace.newest_round(), 0, -1):
        say(f"round {number}")
        rounds.check(number)
    for entry in sorted(workspace.rounds.iterdir()) if workspace.rounds.is_dir() else ():
        if not (entry.name.isdigit() and (entry / "global").is_dir()) and not entry.name.startswith("."):
            result.notes.append(f"{workspace.relative(entry)}: is not a round, and was not checked")
    _check_mailbox(workspace, plan, require, result)
    for path, read in _other_records(workspace):
        result.attempt(lambda path=path, read=read: read(path))  # type: ignore[misc]
    for orphan in sorted(path for place in (workspace.root,) for path in place.glob("**/.*.tmp")):
        result.notes.append(f"{workspace.relative(orphan)}: left by an interrupted command; the next one clears it up")
    if not result.checked and not result.faults:
        result.notes.append("there is no adapter here yet")
    return result


def _other_records(workspace: Workspace) -> list[tuple[Path, Callable[[Path], object]]]:
    found: list[tuple[Path, Callable[[Path], object]]] = []
    for path in sorted(workspace.data.glob("*/division.json")):
        found.append((path, DivisionRecord.read))
    for path in sorted(workspace.scores.glob("*.json")):
        found.append((path, Scores.read))
    for path, read in ((workspace.data / "split.json", SplitRecord.read), (workspace.root / "metrics.jsonl", _metrics)):
        if path.exists():
            found.append((path, read))
    return found


def _metrics(path: Path) -> None:
    read_metrics(path)


class _Rounds:
    """Walks from the newest round to the first, for a signed record vouches for the records before it."""

    def __init__(self, workspace: Workspace, plan: Plan, again: bool, require: bool, result: Verification) -> None:
        self.workspace, self.plan, self.again, self.require, self.result = workspace, plan, again, require, result
        self.covered: str | None = None  # SHA-256 of the aggregate.json that a trusted later record names
        self.read: dict[int, AdapterFolder | None] = {}

    def folder(self, number: int) -> AdapterFolder | None:
        """A round's global folder through the gate, read once; its fault is kept."""
        if number not in self.read:
            self.read[number] = None

            def read() -> None:
                path = self.workspace.global_adapter(number)
                folder = gate.read_global(path, self.plan)
                assert folder.aggregate is not None
                if folder.aggregate.round != number:
                    raise TrustError(f"{path}: expected the record of round {number}, found {folder.aggregate.round}")
                self.read[number] = folder

            self.result.attempt(read)
        return self.read[number]

    def check(self, number: int) -> None:
        """Check one round: signature or cover, lineage, contributions, and with `again` the arithmetic."""
        path = self.workspace.global_adapter(number)
        if not path.is_dir():
            self.result.notes.append(f"round {number} is not here, so the lineage ends at round {number + 1}")
            self.covered = None
            return
        folder = self.folder(number)
        if folder is None:
            self.covered = None
            return
        assert folder.aggregate is not None
        record = folder.aggregate
        signature = self._signature(folder, number)
        trusted = signature in (COORDINATOR, "covered")
        self.covered = record.parent_record if trusted else None
        self.result.attempt(lambda: self._lineage(path, record, number))
        contributions = self._contributions(record, number, trusted)
        difference = self._again(folder, record, number, contributions) if self.again else None
        name = self.workspace.relative(path)
        self.result.checked.append(Checked(name, number, COORDINATOR, folder.adapter.digest, signature, difference))

    def _signature(self, folder: AdapterFolder, number: int) -> str:
        name = _trusted(folder, self.plan)
        if name is not None:
            return name
        if self.covered is not None and sha256_bytes(folder.files[AGGREGATE_NAME]) == self.covered:
            return "covered"
        self.result.attempt(lambda: self._check_signer(folder))
        return "none" if folder.signer is None else "unknown key"

    def _check_signer(self, folder: AdapterFolder) -> None:
        check_signer(folder, self.plan, self.require, self.result.notes.append)

    def _lineage(self, path: Path, record: Aggregate, number: int) -> None:
        before = self.workspace.global_adapter(number - 1) if number > 1 else None
        if before is not None and not before.is_dir():
            return  # said where that round is looked for
        parent = None if before is None else self.folder(number - 1)
        if before is not None and parent is None:
            return  # its fault is known
        start = parent.adapter.digest if parent else _digest_before(self.workspace, self.plan, 1)
        assert start is not None
        if record.parent != start:
            raise _other_parent(path, record.parent, start, number)
        chained = sha256_bytes(parent.files[AGGREGATE_NAME]) if parent else None
        if record.parent_record is None and chained is not None:
            self.result.notes.append(f"round {number}: its record does not name the record of the round before")
        elif record.parent_record != chained:
            raise TrustError(
                f"{path}: {AGGREGATE_NAME} names the record {short(record.parent_record or 'none')} of the round "
                f"before, found {short(chained or 'none')}",
                hint="one of the two rounds was made again or changed",
            )

    def _contributions(self, record: Aggregate, number: int, trusted: bool) -> dict[str, Adapter]:
        """The contributions that the archive holds, by site; their faults are kept."""
        home = self.workspace.round(number)
        present = {entry.name for entry in home.iterdir() if entry.name != "global" and not entry.name.startswith(".")}
        for name in sorted(present - set(record.sites)):
            fault = TrustError(f"{self.workspace.relative(home / name)}: the record of round {number} does not name it")
            self.result.faults.append(fault)
        if not present & set(record.sites):
            self.result.notes.append(f"round {number}: its contributions are not here (the coordinator keeps them)")
            return {}
        found: dict[str, Adapter] = {}
        for site, decision in sorted(record.sites.items()):
            path = home / site

            def check(
                site: str = site, path: Path = path, wanted: tuple[str, str] = (decision.adapter, decision.contribution)
            ) -> None:
                if site not in present:
                    raise TrustError(f"{path}: is missing, but the record of round {number} names it")
                folder = gate.read_contribution(path, self.plan, number, record.parent)
                if folder.contribution is None or folder.contribution.site != site:
                    raise TrustError(f"{path}: expected a contribution of site {site}")
                for what, stated, digest in (
                    ("adapter", wanted[0], folder.adapter.digest),
                    (CONTRIBUTION_NAME, wanted[1], sha256_bytes(folder.files[CONTRIBUTION_NAME])),
                ):
                    if stated != digest:
                        raise TrustError(
                            f"{path}: the record of round {number} names {what} {short(stated)}…, "
                            f"found {short(digest)}…"
                        )
                signature = self._contribution_signature(folder, record.signers.get(site), trusted)
                name = self.workspace.relative(path)
                self.result.checked.append(Checked(name, number, site, folder.adapter.digest, signature))
                found[site] = folder.adapter

            self.result.attempt(check)
        return found

    def _contribution_signature(self, folder: AdapterFolder, stated: str | None, trusted: bool) -> str:
        """How a contribution in the archive is vouched for. TrustError where its record's signature is gone."""
        if stated is not None:
            from fedmed_cli.adapters.signatures import fingerprint

            if folder.signer is None or fingerprint(folder.signer) != stated:
                found = fingerprint(folder.signer) if folder.signer else "no signature"
                raise TrustError(f"{folder.path}: was signed with {stated} when it was aggregated, found {found}")
        name = _trusted(folder, self.plan)
        if name is not None:
            return name
        if trusted:
            return "covered"
        check_signer(folder, self.plan, self.require, self.result.notes.append)
        return "none" if folder.signer is None else "unknown key"

    def _start(self, number: int) -> Adapter | None:
        """The adapter that a round started from; None where it is not here or did not pass the gate."""
        if number == 1:
            return plan_adapter(self.plan, initial_factors(self.plan))
        folder = self.folder(number - 1) if self.workspace.global_adapter(number - 1).is_dir() else None
        return folder.adapter if folder else None

    def _again(
        self, folder: AdapterFolder, record: Aggregate, number: int, contributions: dict[str, Adapter]
    ) -> float | None:
        starts = [self._start(number), self._start(number - 1) if number > 1 else None]
        lacking = not set(record.sites) <= set(contributions) or starts[0] is None
        if lacking or (record.server_momentum and number > 1 and starts[1] is None):
            self.result.notes.append(f"round {number}: cannot be recomputed: some of its inputs are missing")
            return None
        assert starts[0] is not None
        result = recompute(self.plan, starts[0], starts[1], record, contributions)
        if result.digest == folder.adapter.digest:
            return 0.0
        difference = relative_difference(folder.adapter, result)
        if not difference <= RECOMPUTED_WITHIN:
            self.result.faults.append(
                TrustError(
                    f"{folder.path}: computed again from the recorded weights it differs by {difference:.1e}, "
                    f"expected at most {RECOMPUTED_WITHIN:g}",
                    hint="its record or its weights were changed, and the digests made to fit",
                )
            )
        return difference


def _check_mailbox(workspace: Workspace, plan: Plan, require: bool, result: Verification) -> None:
    """Check what lies in adapters/: each must start from the round before its own."""
    for path in sorted(workspace.adapters.iterdir()) if workspace.adapters.is_dir() else ():
        if path.name.startswith("."):
            continue
        if path.is_file() and not is_bundle(path):
            result.notes.append(f"{workspace.relative(path)}: is a plain file, and was not checked")
            continue

        def check(path: Path = path) -> None:
            folder = gate.read_folder(path, plan)
            record = folder.contribution
            if record is None:
                raise InputError(f"{path}: has no {CONTRIBUTION_NAME}")
            if record.site not in plan.sites.names:
                raise CombineError(f"{path}: site {record.site} is not in the plan")
            filed = workspace.round(record.round) / record.site / CONTRIBUTION_NAME
            if filed.is_file() and read_file(filed) != folder.files[CONTRIBUTION_NAME]:
                result.notes.append(f"{workspace.relative(path)}: is not what round {record.round} was made of")
            start = _digest_before(workspace, plan, record.round)
            if start is None:
                result.notes.append(f"{workspace.relative(path)}: round {record.round - 1} is not here")
            elif record.parent != start:
                raise _other_parent(path, record.parent, start, record.round)
            check_signer(folder, plan, require, result.notes.append)
            signature = "none" if folder.signer is None else _trusted(folder, plan) or "unknown key"
            name = workspace.relative(path)
            result.checked.append(Checked(name, record.round, record.site, folder.adapter.digest, signature))

        result.attempt(check)
