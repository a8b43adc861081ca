"""Rounds without a person at each step: a coordinator and a hospital wait for their input and act when it is whole.

One look at the shared folder is one call of `look`; between two of them nothing is held and nothing is promised, so a
process may be killed at any moment and started again. What it did is in the workspace and in its audit log.
"""

from __future__ import annotations

import datetime
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from fedmed_cli.adapters import archive, gate
from fedmed_cli.adapters.folder import CONTRIBUTION_NAME, ContributionFolder
from fedmed_cli.adapters.gate_steps import Reading
from fedmed_cli.adapters.signers import SignaturePolicy, check_signer, name_party
from fedmed_cli.errors import BusyError, ConflictError, FedmedError, InputError, UsageError
from fedmed_cli.events import Say
from fedmed_cli.federation.audit_gate import check_audit
from fedmed_cli.federation.mailbox import GLOBAL, Entry, Mail, send
from fedmed_cli.federation.received_global import accept_global, file_global
from fedmed_cli.records.codec import read_file
from fedmed_cli.records.digests import sha256_bytes, sha256_file
from fedmed_cli.records.measures import COORDINATOR
from fedmed_cli.records.plan import Plan
from fedmed_cli.text import MOST_NAMED
from fedmed_cli.trust.audit_log import AuditLog
from fedmed_cli.workspace import Workspace
from fedmed_cli.workspace.durable import make_folders, write_folder

T = TypeVar("T")


def wait(party: Coordinator | Hospital, seconds: float) -> None:
    """Have a party look every so many seconds until all is done."""
    while not party.look():
        time.sleep(seconds)


class _Once:
    """Says each sentence once, however often it is found again."""

    def __init__(self, say: Say) -> None:
        self.say, self.said = say, set[str]()

    def __call__(self, message: str) -> None:
        if message not in self.said:
            self.said.add(message)
            self.say(message)


@dataclass
class _Refusals:
    """Says and writes down what was refused: the first few of each party in a round, and of more how many they are."""

    log: AuditLog
    say: Say
    _counts: Counter[tuple[int, str]] = field(default_factory=Counter)

    def add(self, plan: Plan, number: int, entry: Entry, error: FedmedError) -> None:
        party = COORDINATOR if entry.party == GLOBAL else entry.party
        self._counts[number, party] += 1
        if self._counts[number, party] > MOST_NAMED:
            return
        digest = _digest_bundle(entry.path, Reading(entry.path, plan).max_bundle_bytes)
        self.log.note("refused", plan.digest, number, party, digest, None, error.exit_code)
        self.say(f"refused: {error.message}")

    def sum_up(self) -> None:
        for (number, party), count in self._counts.items():
            if (more := count - MOST_NAMED) > 0:
                self.say(
                    f"round {number}: and {more:,} more files under the name of {name_party(party)} were refused, "
                    "which the audit log does not name"
                )


@dataclass
class Coordinator:
    """A coordinator that waits for contributions in `adapters/` and in `mailbox`, until round `until` is there.

    A round is made when all sites have sent, or, `deadline` seconds after it was opened, when `min_sites` have.
    `aggregate` makes a round of the folders that it is given.
    """

    workspace: Workspace
    mailbox: Path | None
    until: int
    min_sites: int
    deadline: float | None
    aggregate: Callable[[Sequence[Path]], object]
    require_signatures: bool = False
    say: Say = lambda message: None

    def __post_init__(self) -> None:
        self._plan = self.workspace.read_plan()
        names, least = self._plan.sites.names, self._plan.sites.min_sites
        if not least <= self.min_sites <= len(names):
            raise UsageError(
                f"--min-sites: expected {least} to {len(names)}, as the plan has it, found {self.min_sites}"
            )
        self.say = self.say if isinstance(self.say, _Once) else _Once(self.say)
        self._log = AuditLog(self.workspace, self.say)
        self._refusals = _Refusals(self._log, self.say)
        places = [self.workspace.adapters, *([self.mailbox] if self.mailbox else [])]
        self._mail = [Mail(place, names, (*names, GLOBAL), self.say) for place in places]
        self._number = self._sent = 0
        self._taken: dict[str, str] = {}  # site to the digest of its contribution's record
        self._is_reconsidered = False

    def look(self) -> bool:
        """Take what is whole; make the round where it is complete. True once round `until` is there, and sent."""
        try:
            with self.workspace.lock():
                is_complete = self._read_mail()
            if is_complete:
                self._make()
            with self.workspace.lock():
                return self._send() and self.workspace.newest_round() >= self.until
        except BusyError as busy:
            self.say(f"{busy.message}; waiting for it")
            return False

    def _read_mail(self) -> bool:
        """Take, file or refuse what has come; whether it is enough for the round."""
        self._plan, number = self.workspace.read_plan(), self.workspace.newest_round() + 1
        if number > self.until:
            return False
        if number != self._number:
            self._open(number)
        names = self._plan.sites.names
        for mail in self._mail:
            mail.wanted, mail.known = names, (*names, GLOBAL)  # a site may have joined
            for entry in mail.unread():
                self._read(mail, entry)
        self._refusals.sum_up()
        return self._is_complete()

    def _open(self, number: int) -> None:
        self._start = archive.starting_adapter(self.workspace, self._plan, number).digest
        self._opened = self._log.opened(self._plan.digest, number)
        self._number, self._taken, self._is_reconsidered = number, {}, False
        make_folders(self.workspace.adapters)
        for mail in self._mail:
            mail.reconsider()
        self.say(f"round {number}: waiting for {', '.join(self._plan.sites.names)}")

    def _read(self, mail: Mail, entry: Entry) -> None:
        policy = SignaturePolicy(self.require_signatures, self.say)
        read = partial(gate.read_contribution, entry.path, self._plan, site=entry.party, policy=policy)
        try:
            self._take(entry.path, _without_os_errors(entry.path, read))
        except FedmedError as error:
            if mail.fails(entry) or self._is_reconsidered:  # after the deadline nobody waits for the rest of a copy
                self._refusals.add(self._plan, self._number, entry, error)
            return
        mail.settle(entry)

    def _take(self, path: Path, folder: ContributionFolder) -> None:
        """Have a contribution that passed the gate in `adapters/`, or in `late/` where its round is done."""
        site, number = folder.record.site, self._number
        if folder.record.round < number:
            self._file_late(path, folder)
            return
        gate.check_lineage(path, folder.record, number, self._start)
        home, known = self.workspace.contribution(site), self._taken.get(site)
        if path != home and known not in (None, folder.record_digest):
            raise ConflictError(
                f"{path}: site {site} sent another contribution to round {number} before, which is kept"
            )
        if known is None and path != home:
            self.workspace.replace_folder(home, dict(folder.files))
        self._taken[site] = folder.record_digest
        self._log.note_folder("taken", folder)
        self.say(f"round {number}: took the contribution of site {site}")

    def _file_late(self, path: Path, folder: ContributionFolder) -> None:
        number, site = folder.record.round, folder.record.site
        filed = self.workspace.round(number) / site / CONTRIBUTION_NAME
        if filed.is_file() and sha256_file(filed) == folder.record_digest:
            return  # what the round was made of
        target = self.workspace.late / f"{number:03d}" / site
        if not target.exists():
            write_folder(target, dict(folder.files))
        self._log.note_folder("late", folder)
        if sha256_file(target / CONTRIBUTION_NAME) != folder.record_digest:
            place = self.workspace.relative(target)
            self.say(f"{path}: is late and not kept: {place} has another contribution of site {site} to round {number}")
            return
        self.say(f"{path}: is late: round {number} was made without it; kept in {self.workspace.relative(target)}")

    def _is_complete(self) -> bool:
        awaited = [site for site in self._plan.sites.names if site not in self._taken]
        if not awaited:
            return True
        now = datetime.datetime.now(datetime.UTC)
        if self.deadline is None or (now - self._opened).total_seconds() < self.deadline:
            return False
        if not self._is_reconsidered:  # a copy may have been completed without a trace in its size and time
            self._is_reconsidered = True
            for mail in self._mail:
                mail.reconsider()
            return False
        if len(self._taken) < self.min_sites:
            self.say(
                f"round {self._number}: its deadline has passed with {len(self._taken)} of the {self.min_sites} "
                f"contributions that it needs; still waiting for {', '.join(awaited)}"
            )
            return False
        return True

    def _make(self) -> None:
        """Make the round; where a contribution was changed since it was taken, read all of them again."""
        paths = [self.workspace.contribution(site) for site in sorted(self._taken)]
        try:
            self.aggregate(paths)
        except FedmedError:
            if not any(gate.find_faults(path, self._plan) for path in paths):
                raise
            self.__post_init__()

    def _send(self) -> bool:
        """Have the newest global adapter in the mailbox; whether it is there."""
        newest = self.workspace.newest_round()
        if self.mailbox is None or newest in (0, self._sent):
            return True
        folder = archive.archived_global(self.workspace, self._plan, newest)
        if send(self.mailbox, folder, self._log, self.say):
            self._sent = newest
        return self._sent == newest


@dataclass
class Hospital:
    """A hospital that waits for the global adapters in `mailbox`, trains and sends, until round `until`.

    `train` writes its contribution to the next round. It is done when the global adapter of round `until` is filed.
    """

    workspace: Workspace
    mailbox: Path
    site: str
    until: int
    train: Callable[[], object]
    require_signatures: bool = False
    say: Say = lambda message: None

    def __post_init__(self) -> None:
        self._plan = self.workspace.read_plan()
        self.say = _Once(self.say)
        self._log = AuditLog(self.workspace, self.say)
        self._refusals = _Refusals(self._log, self.say)
        self._mail = Mail(self.mailbox, [GLOBAL], (*self._plan.sites.names, GLOBAL), self.say)

    def look(self) -> bool:
        """File the newest global adapter; train and send what the next round lacks. True when all is done."""
        try:
            with self.workspace.lock():
                self._read_mail()
                number = self.workspace.newest_round() + 1
                if number > self.until:
                    return True
                if folder := self._find_contribution(number):
                    send(self.mailbox, folder, self._log, self.say)
                    return False
        except BusyError as busy:
            self.say(f"{busy.message}; waiting for it")
            return False
        self.train()
        return self.look()

    def accept(self, path: Path) -> None:
        """File a global adapter, unless a later one is known here. Raises as the gate does, and as `accept_global`."""
        with self.workspace.lock():
            self._accept(path)

    def contribute(self, number: int) -> ContributionFolder:
        """This site's contribution to the next round, trained where it was not yet; that it leaves is written down."""
        for _ in range(2):
            with self.workspace.lock():
                if folder := self._find_contribution(number):
                    self._log.note_folder("sent", folder)
                    return folder
            self.train()
        raise ConflictError(f"site {self.site}: another command replaced its contribution to round {number}")

    def _read_mail(self) -> None:
        self._plan = self.workspace.read_plan()
        self._mail.known = (*self._plan.sites.names, GLOBAL)
        failed: set[Path] = set()
        while self._read_unread(failed):
            self._mail.reconsider()  # what was refused may have waited for the round that is filed now
        self._refusals.sum_up()

    def _read_unread(self, failed: set[Path]) -> bool:
        """Whether a global adapter was filed of what has come and not `failed` before."""
        is_any_new = False
        entries = [entry for entry in self._mail.unread() if entry.path not in failed]
        if COORDINATOR in self._plan.sites.keys:
            entries.reverse()  # the newest first, for signed rounds may be missed
        for entry in entries:
            try:
                is_any_new |= self._accept(entry.path)
            except FedmedError as error:
                failed.add(entry.path)
                if self._mail.fails(entry):
                    self._refusals.add(self._plan, self.workspace.newest_round() + 1, entry, error)
            else:
                self._mail.settle(entry)
        return is_any_new

    def _accept(self, path: Path) -> bool:
        """Whether the global adapter is new, and filed."""
        known = _without_os_errors(path, partial(gate.read_global, path, self._plan, policy=None))
        if known.record.round < self.workspace.newest_round():
            return False
        folder, is_new = accept_global(self.workspace, self._plan, path, self.require_signatures, self.say)
        if is_new:
            file_global(self.workspace, folder)
            self.say(f"took the global adapter of round {folder.record.round}")
            if self.site not in folder.record.sites:
                self.say(f"round {folder.record.round} was made without a contribution of this site")
        self._log.note_folder("taken", folder)
        return is_new

    def _find_contribution(self, number: int) -> ContributionFolder | None:
        """This site's contribution to a round, where it was trained already.

        TrustError where it may not leave: unsigned where the plan pins a key, or without the audit that it asks for.
        """
        start = archive.starting_adapter(self.workspace, self._plan, number)
        path = self.workspace.contribution(self.site)
        try:
            folder = gate.read_contribution(path, self._plan, (number, start.digest), site=self.site, policy=None)
        except FedmedError:
            return None  # none yet, that of another round, or a damaged one, which training sets aside
        check_signer(folder, self._plan, SignaturePolicy(say=self.say))
        check_audit(self.workspace, self._plan, folder)
        return folder


def check_mailbox(workspace: Workspace, mailbox: Path) -> None:
    """InputError unless the shared folder is there; UsageError where it is in the workspace, or the workspace in it."""
    if not mailbox.is_dir():
        raise InputError(f"{mailbox}: no such folder", hint="name the folder that hospitals and coordinator share")
    if mailbox.resolve().is_relative_to(workspace.root.resolve()):
        raise UsageError(f"--mailbox: {mailbox} is inside the workspace, which is not for others to read")
    if workspace.root.resolve().is_relative_to(mailbox.resolve()):
        raise UsageError(f"--mailbox: the workspace is inside {mailbox}, and is not for others to read")


def _without_os_errors(path: Path, read: Callable[[], T]) -> T:
    """What `read` gives; InputError where the file system fails, as when a share is gone."""
    try:
        return read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _digest_bundle(path: Path, max_bytes: int) -> str | None:
    """SHA-256 of a bundle; None for a folder, and for what the gate does not read, such as a file that is too large."""
    try:
        return sha256_bytes(read_file(path, max_bytes, links=False))
    except InputError:
        return None
