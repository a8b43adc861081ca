"""The audit log of a workspace: what unattended commands took, refused and sent."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from fedmed_cli.adapters.folder import AdapterFolder
from fedmed_cli.errors import TrustError
from fedmed_cli.events import Say
from fedmed_cli.records.audit_log import AuditEntry, AuditEvent
from fedmed_cli.records.measures import COORDINATOR
from fedmed_cli.trust.chain import Chain
from fedmed_cli.workspace import Workspace, utc_now

AUDIT_NAME = "audit.jsonl"


@dataclass
class AuditLog:
    """`.fedmed/audit.jsonl` of a workspace. Whoever writes it holds the workspace's lock.

    What was read is not read again before the file changes: the work for each further event stays the same.
    """

    workspace: Workspace
    say: Say = field(default=lambda message: None, repr=False, compare=False)
    _known: set[tuple[str, int, str, str | None]] = field(default_factory=set, repr=False, compare=False)
    _stamp: tuple[int, ...] = ()

    @property
    def _chain(self) -> Chain[AuditEntry]:
        private = self.workspace.private
        return Chain(private / AUDIT_NAME, private / "audit-seal.json", AuditEntry, TrustError, self.say)

    def read(self) -> list[AuditEntry]:
        """All entries. InputError where a line is damaged, TrustError where lines are missing or were changed."""
        return self._chain.read()

    def has(self, event: AuditEvent, round_number: int, party: str, digest: str | None) -> bool:
        """Whether an event of a round is there."""
        if (stamp := self._read_stamp()) != self._stamp:
            self._known = {(one.event, one.round, one.party, one.digest) for one in self.read()}
            self._stamp = stamp
        return (event, round_number, party, digest) in self._known

    def _read_stamp(self) -> tuple[int, ...]:
        """What differs once the log was written again; the same where there is none."""
        stamps = [path.stat() for path in (self._chain.path, self._chain.seal) if path.exists()]
        return tuple(number for one in stamps for number in (one.st_ino, one.st_size, one.st_mtime_ns))

    def note(
        self,
        event: AuditEvent,
        plan: str,
        round_number: int,
        party: str,
        digest: str | None = None,
        signer: str | None = None,
        exit_code: int | None = None,
    ) -> None:
        """Add an event, unless it is there: after a kill a command does again what it had not written down.

        Refusals of what has no digest cannot be told apart, so each is added.
        """
        if self.has(event, round_number, party, digest) and (digest is not None or event != "refused"):
            return
        key = None
        if signer is not None:
            from fedmed_cli.records.signatures import fingerprint

            key = fingerprint(signer)
        self.workspace.make_private()
        self._chain.append(
            lambda previous: AuditEntry(event, round_number, plan, party, digest, key, exit_code, utc_now(), previous)
        )
        self._known.add((event, round_number, party, digest))
        self._stamp = self._read_stamp()

    def note_folder(self, event: AuditEvent, folder: AdapterFolder) -> None:
        """Add an event of a contribution or a global adapter."""
        record = folder.record
        assert record is not None and folder.sender is not None  # noqa: PT018
        self.note(event, record.plan, record.round, folder.sender, folder.record_digest, folder.signer)

    def opened(self, plan: str, round_number: int) -> datetime.datetime:
        """When contributions to a round were first waited for: now, where they were not yet."""
        self.note("opened", plan, round_number, COORDINATOR)
        created = next(one.created for one in self.read() if (one.event, one.round) == ("opened", round_number))
        return datetime.datetime.strptime(created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
