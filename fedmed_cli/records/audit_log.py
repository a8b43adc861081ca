"""`.fedmed/audit.jsonl`: what an unattended command took, refused and sent. Numbers and digests only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fedmed_cli.records.checks import MAX_ROUND, check_digest, check_key_fingerprint, check_range, check_site_name
from fedmed_cli.records.codec import Record
from fedmed_cli.records.measures import COORDINATOR

AuditEvent = Literal["opened", "taken", "refused", "late", "sent"]


@dataclass(frozen=True)
class AuditEntry(Record):
    """A line of `audit.jsonl`: one event of a round.

    `party` is who sent it, or who should have by the name of what came. `digest` is the SHA-256 of the adapter's
    record, which names every other file; of a bundle that was refused that of the file; None for a folder or a file
    that was refused unread, and for "opened". `key` is the fingerprint of the key that signed it, `exit_code` the kind
    of a refusal. `previous` is the SHA-256 of the line before, 64 zeros in the first.
    """

    FORMAT: ClassVar[str] = "audit-log"

    event: AuditEvent
    round: int
    plan: str
    party: str
    digest: str | None
    key: str | None
    exit_code: int | None
    created: str
    previous: str

    def __post_init__(self) -> None:
        if self.party != COORDINATOR:
            check_site_name(self.party)
        check_range(1, MAX_ROUND, round=self.round)
        for name in ("plan", "previous"):
            check_digest(name, getattr(self, name))
        if self.digest is not None:
            check_digest("digest", self.digest)
        if self.key is not None:
            check_key_fingerprint("key", self.key)
        if (self.exit_code is None) == (self.event == "refused"):
            raise ValueError("exit_code is what a refusal has, and nothing else")
