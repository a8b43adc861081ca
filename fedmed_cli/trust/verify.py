"""Proving only from a workspace's files what each global adapter was made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fedmed_cli.adapters import gate
from fedmed_cli.adapters.adapter import Adapter, initial_factors, plan_adapter
from fedmed_cli.adapters.archive import check_as_filed
from fedmed_cli.adapters.bundle import is_bundle
from fedmed_cli.adapters.folder import (
    AGGREGATE_NAME,
    CONTRIBUTION_NAME,
    AdapterFolder,
    AdapterRecord,
    ContributionFolder,
    GlobalFolder,
)
from fedmed_cli.adapters.low_rank import relate
from fedmed_cli.adapters.signers import SignaturePolicy, check_signer, name_party
from fedmed_cli.aggregation.methods import COMBINE
from fedmed_cli.errors import FedmedError, InputError, TrustError
from fedmed_cli.events import Say, say_first
from fedmed_cli.records.aggregate import Aggregate, Truncation
from fedmed_cli.records.codec import read_file
from fedmed_cli.records.comparison import Comparison
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import short
from fedmed_cli.records.measures import COORDINATOR
from fedmed_cli.records.metrics import read_metrics
from fedmed_cli.records.personal import Personal
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.scores import Scores
from fedmed_cli.records.split import DivisionRecord, SplitRecord
from fedmed_cli.trust.audit_log import AuditLog
from fedmed_cli.trust.evidence import CLAIMS, check_evidence
from fedmed_cli.trust.keys import read_site_record
from fedmed_cli.workspace import Workspace

RECOMPUTED_WITHIN = 1e-6
COVERED, UNKNOWN_KEY, UNSIGNED = "covered", "unknown key", "none"

T = TypeVar("T")


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
    """What `verify` found. A note is not a fault: it says what could not be proved, and why.

    `claims` are the fields of recomputed records that nobody but the coordinator can know.
    """

    checked: list[Checked] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    claims: tuple[str, ...] = ()
    faults: list[FedmedError] = field(default_factory=list)

    def attempt(self, check: Callable[[], T]) -> T | None:
        """Run a check; where it fails, keep its fault and return None."""
        try:
            return check()
        except FedmedError as error:
            self.faults.append(error)
            return None

    def raise_faults(self) -> None:
        """Raise the first fault of trust, else the first of any kind."""
        if self.faults:
            first = next((fault for fault in self.faults if isinstance(fault, TrustError)), self.faults[0])
            count = f" ({len(self.faults)} faults in all)" if len(self.faults) > 1 else ""
            raise type(first)(first.message + count, first.hint)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {"checked": [asdict(one) for one in self.checked], "notes": self.notes, "claims": list(self.claims)}


def recompute(
    plan: Plan, parent: Adapter, before: Adapter | None, record: Aggregate, contributions: Mapping[str, Adapter]
) -> tuple[Adapter, Truncation]:
    """Combine the contributions again with the weights, clip factors, server step and method that the record states.

    `before` is the global adapter before `parent`, for server momentum; a rejected site has weight 0. Returned are the
    adapter and what its rank cut away.
    """
    sites = sorted(record.sites)
    coefficients = [record.server_lr * record.sites[site].weight * record.sites[site].clip_factor for site in sites]
    momentum = (record.server_momentum, before) if before is not None and record.server_momentum else None
    return COMBINE[record.method](plan, parent, [contributions[site] for site in sites], coefficients, momentum)


def verify_folder(path: Path, workspace: Workspace, plan: Plan | None, require: bool) -> Verification:
    """Check one adapter folder or bundle: the gate, its signature, and the adapter it started from."""
    result = Verification()
    if plan is not None:
        result.attempt(partial(_Checks(workspace, plan, require, result).check_folder, path))
    elif require:
        result.faults.append(TrustError(f"{path}: there is no plan here, so no key is trusted"))
    elif folder := result.attempt(partial(gate.read_from_anyone, path)):
        result.notes.append("there is no plan here: the folder was checked only against itself")
        signature = UNSIGNED if folder.signer is None else UNKNOWN_KEY
        number = folder.record.round if folder.record else None
        result.checked.append(Checked(str(path), number, folder.sender, folder.adapter.digest, signature))
    return result


def verify_workspace(workspace: Workspace, plan: Plan, again: bool, require: bool, say: Say) -> Verification:
    """Check every round from the newest to the first, the mailbox, and the records beside them.

    With `again` each round is recomputed. `say` is told of each round as it is checked.
    """
    result = Verification()
    checks = _Checks(workspace, plan, require, result)
    covered, later = None, None
    for number in reversed(workspace.list_rounds()):
        if later is not None and number < later - 1:
            checks.note_gap(number + 1, later)
            covered = None
        say(f"round {number}")
        covered, later = checks.check_round(number, covered, again), number
    if later is not None and later > 1:
        checks.note_gap(1, later)
    for entry in sorted(workspace.rounds.iterdir()) if workspace.rounds.is_dir() else ():
        if not (entry.name.isdigit() and (entry / "global").is_dir()) and not entry.name.startswith("."):
            result.notes.append(f"{workspace.relative(entry)}: is not a round, and was not checked")
    mail = sorted(workspace.adapters.iterdir()) if workspace.adapters.is_dir() else []
    plain = dict.fromkeys(path for path in mail if path.is_file() and not is_bundle(path))
    names = [f"{workspace.relative(path)}: is a plain file, and was not checked" for path in plain]
    say_first(result.notes.append, names, "such files")
    for path in mail:
        if path not in plain and not path.name.startswith("."):
            result.attempt(partial(checks.check_mail, path))
    for path, read in _list_other_records(workspace):
        result.attempt(partial(read, path))
    result.attempt(AuditLog(workspace, result.notes.append).read)
    for path in sorted(workspace.scores.glob("*.json")):
        result.attempt(partial(read_site_record, Scores, path, plan, checks.policy))
    for path in sorted(workspace.reports.glob("compare-*.json")):
        result.attempt(partial(read_site_record, Comparison, path, plan, checks.policy))
    for orphan, _ in workspace.list_left_overs():
        result.notes.append(f"{workspace.relative(orphan)}: left by an interrupted command; the next one clears it up")
    if not result.checked and not result.faults:
        result.notes.append("there is no adapter here yet")
    return result


def _list_other_records(workspace: Workspace) -> list[tuple[Path, Callable[[Path], object]]]:
    records: list[tuple[Path, Callable[[Path], object]]] = []
    for place, pattern, read in (
        (workspace.data, "*/division.json", DivisionRecord.read),
        (workspace.data, "split.json", SplitRecord.read),
        (workspace.root, "metrics.jsonl", read_metrics),
    ):
        records += [(path, read) for path in sorted(place.glob(pattern))]
    return records


class _Checks:
    """The checks of one workspace. Each raises its fault, or has `result` keep it where others can still be made."""

    def __init__(self, workspace: Workspace, plan: Plan, require: bool, result: Verification) -> None:
        self.workspace, self.plan, self.result = workspace, plan, result
        self.policy = SignaturePolicy(require, result.notes.append)
        self.globals: dict[int, GlobalFolder | None] = {}

    def check_folder(self, path: Path) -> AdapterFolder:
        """A folder anywhere: what the gate asks, who signed it, and what it started from."""
        folder = gate.read_from_anyone(path, self.plan)
        name, record = self.workspace.relative(path), folder.record
        if record is None:
            raise InputError(f"{path}: holds no record, so nothing says where it comes from")
        signature = self.vouch(folder, is_covered=False)
        number = record.round + 1 if isinstance(record, Personal) else record.round  # the round whose start it is from
        start = self.start(number)
        if start is None:
            self.result.notes.append(f"{name}: round {number - 1} is not here, so where it started is unproved")
        else:
            _check_parent(path, record, number, start.digest)
        self.add(folder, signature)
        return folder

    def check_mail(self, path: Path) -> None:
        """A contribution in adapters/."""
        folder = self.check_folder(path)
        record = folder.record
        if not isinstance(record, Contribution):
            raise InputError(f"{path}: has no {CONTRIBUTION_NAME}")
        filed = self.workspace.round(record.round) / record.site / CONTRIBUTION_NAME
        if filed.is_file() and read_file(filed) != folder.files[CONTRIBUTION_NAME]:
            name = self.workspace.relative(path)
            self.result.notes.append(f"{name}: is not what round {record.round} was made of")

    def check_round(self, number: int, covered: str | None, again: bool) -> str | None:
        """A round: who signed it, its lineage, its contributions, and with `again` the arithmetic.

        `covered` is the digest of its record as a trusted record of the next round names it; returned is the same
        for the previous round.
        """
        folder = self.read_global(number)
        if folder is None:
            return None
        signature = self.result.attempt(partial(self.vouch, folder, covered == folder.record_digest)) or UNSIGNED
        is_trusted = signature in (COORDINATOR, COVERED)
        self.result.attempt(partial(self.check_lineage, folder))
        contributions = self.check_contributions(folder, is_trusted)
        difference = self.recompute(folder, contributions) if again else None
        self.add(folder, signature, difference)
        return folder.record.parent_record if is_trusted else None

    def note_gap(self, first: int, later: int) -> None:
        """Note that the rounds from `first` on are not here until `later`, of which nothing covers what was before."""
        what = f"round {first} is" if first == later - 1 else f"rounds {first} to {later - 1} are"
        self.result.notes.append(f"{what} not here, so the lineage ends at round {later}")

    def read_global(self, number: int) -> GlobalFolder | None:
        """A round's global folder through the gate, read once; None where it has a fault, which is noted."""
        if number not in self.globals:

            def read() -> GlobalFolder:
                path = self.workspace.global_adapter(number)
                folder = gate.read_global(path, self.plan, policy=None)  # a later record may vouch for it
                if folder.record.round != number:
                    raise TrustError(f"{path}: expected the record of round {number}, found {folder.record.round}")
                return folder

            self.globals[number] = self.result.attempt(read)
        return self.globals[number]

    def start(self, number: int) -> Adapter | None:
        """The adapter that a round started from; None where it is not here or did not pass the gate."""
        if number == 1:
            return plan_adapter(self.plan, initial_factors(self.plan))
        is_here = self.workspace.global_adapter(number - 1).is_dir()
        folder = self.read_global(number - 1) if is_here else None
        return folder.adapter if folder else None

    def vouch(self, folder: AdapterFolder, is_covered: bool) -> str:
        """Who vouches for a folder, as `Checked` has it; TrustError where the plan or the policy asks for more."""
        sender, signer = folder.sender, folder.signer
        if sender is not None and signer is not None and self.plan.sites.keys.get(sender) == signer:
            return sender if sender == COORDINATOR else name_party(sender)
        if is_covered:
            return COVERED
        check_signer(folder, self.plan, self.policy)
        return UNSIGNED if signer is None else UNKNOWN_KEY

    def add(self, folder: AdapterFolder, signature: str, difference: float | None = None) -> None:
        """Note a folder that was checked."""
        name, number = self.workspace.relative(folder.path), folder.record.round if folder.record else None
        checked = Checked(name, number, folder.sender, folder.adapter.digest, signature, difference)
        self.result.checked.append(checked)

    def check_lineage(self, folder: GlobalFolder) -> None:
        """The adapter that a round started from, and the record of the previous round, are those that it names."""
        record, number = folder.record, folder.record.round
        start = self.start(number)
        if start is None:
            return  # the previous round is checked on its own
        _check_parent(folder.path, record, record.round, start.digest)
        previous = self.read_global(number - 1) if number > 1 else None
        chained = previous.record_digest if previous else None
        if record.parent_record is None and chained is not None:
            self.result.notes.append(f"round {number}: its record does not name the record of the previous round")
        elif record.parent_record != chained:
            raise TrustError(
                f"{folder.path}: {AGGREGATE_NAME} names the record {short(record.parent_record or 'none')} of the "
                f"previous round, found {short(chained or 'none')}",
                hint="one of the two rounds was made again or changed",
            )

    def check_contributions(self, folder: GlobalFolder, is_trusted: bool) -> dict[str, ContributionFolder]:
        """The contributions to a round that the archive holds, by site, where they have no fault."""
        record, number = folder.record, folder.record.round
        home = self.workspace.round(number)
        present = {entry.name for entry in home.iterdir() if entry.name != "global" and not entry.name.startswith(".")}
        for name in sorted(present - set(record.sites)):
            fault = TrustError(f"{self.workspace.relative(home / name)}: the record of round {number} does not name it")
            self.result.faults.append(fault)
        if not present & set(record.sites):
            self.result.notes.append(f"round {number}: its contributions are not here (the coordinator keeps them)")
            return {}
        sound = {}
        for site in sorted(record.sites):
            contribution = self.result.attempt(partial(self.check_contribution, home / site, record, site, is_trusted))
            if contribution is not None:
                sound[site] = contribution
        return sound

    def check_contribution(self, path: Path, record: Aggregate, site: str, is_trusted: bool) -> ContributionFolder:
        """A contribution in the archive is the one that its round's record names; a trusted record vouches for it."""
        if not path.exists():
            raise TrustError(f"{path}: is missing, but the record of round {record.round} names it")
        folder = gate.read_contribution(path, self.plan, (record.round, record.parent), site=site, policy=None)
        check_as_filed(folder, record)
        self.add(folder, self.vouch(folder, is_trusted))
        return folder

    def recompute(self, folder: GlobalFolder, contributions: Mapping[str, ContributionFolder]) -> float | None:
        """How far a round's adapter is from what its contributions give again; None, noted, where some are missing."""
        record, number = folder.record, folder.record.round
        start = self.start(number)
        has_step = bool(record.server_momentum) and number > 1
        before = self.start(number - 1) if has_step else None
        if set(record.sites) - set(contributions) or start is None or (has_step and before is None):
            self.result.notes.append(f"round {number}: cannot be recomputed: some of its inputs are missing")
            return None
        adapters = {site: one.adapter for site, one in contributions.items()}
        result, truncation = recompute(self.plan, start, before, record, adapters)
        is_same = result.digest == folder.adapter.digest
        difference = 0.0 if is_same else relate(folder.adapter, result).relative_difference
        if not difference <= RECOMPUTED_WITHIN:
            fault = TrustError(
                f"{folder.path}: recomputed from the recorded weights, it differs by {difference:.1e}, "
                f"expected at most {RECOMPUTED_WITHIN:g}",
                hint="its record or its weights were changed, and the digests made to fit",
            )
            self.result.faults.append(fault)
        self.result.attempt(partial(check_evidence, folder.path, record, start, contributions, truncation))
        self.result.claims = CLAIMS
        return difference


def _check_parent(path: Path, record: AdapterRecord, number: int, expected: str) -> None:
    """TrustError unless the adapter was made from the one that round `number` starts from, `expected`."""
    if record.parent != expected:
        raise TrustError(
            f"{path}: started from adapter {short(record.parent)}…, but round {number} starts from {short(expected)}…"
        )
