"""An adapter's folder as it passed the gate, and the files that it may hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fedmed_cli.adapters.adapter import CONFIG_NAME, README_NAME, WEIGHTS_NAME, Adapter
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import sha256_bytes
from fedmed_cli.records.measures import COORDINATOR
from fedmed_cli.records.personal import Personal

CONTRIBUTION_NAME = "contribution.json"
AGGREGATE_NAME = "aggregate.json"
PERSONAL_NAME = "personal.json"
AdapterRecord = Contribution | Aggregate | Personal
RECORDS: dict[str, type[Contribution] | type[Aggregate] | type[Personal]] = {
    CONTRIBUTION_NAME: Contribution,
    AGGREGATE_NAME: Aggregate,
    PERSONAL_NAME: Personal,
}
SIGNATURES = (f"{CONTRIBUTION_NAME}.sig", f"{AGGREGATE_NAME}.sig")
SMALL_FILES = tuple(sorted((CONFIG_NAME, README_NAME, *RECORDS, *SIGNATURES)))
ALLOWED_NAMES = frozenset({WEIGHTS_NAME, *SMALL_FILES})


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter that passed the gate, with its record and the bytes of its files as they were read.

    `signer` is the public key whose signature over the record holds; None where there is no signature.
    """

    path: Path
    adapter: Adapter
    files: dict[str, bytes] = field(repr=False)
    signer: str | None
    record: AdapterRecord | None

    @property
    def record_name(self) -> str:
        """The name of the record's file."""
        return next(name for name, kind in RECORDS.items() if isinstance(self.record, kind))

    @cached_property
    def record_digest(self) -> str:
        """SHA-256 of the record's file."""
        return sha256_bytes(self.files[self.record_name])

    @property
    def sender(self) -> str | None:
        """Who should have signed it: a site, or the coordinator; None where nobody signs it."""
        if isinstance(self.record, Contribution):
            return self.record.site
        return COORDINATOR if isinstance(self.record, Aggregate) else None

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.files.values()))


@dataclass(frozen=True)
class ContributionFolder(AdapterFolder):
    """A site's contribution."""

    record: Contribution


@dataclass(frozen=True)
class GlobalFolder(AdapterFolder):
    """A round's global adapter."""

    record: Aggregate


@dataclass(frozen=True)
class PersonalFolder(AdapterFolder):
    """A hospital's private adapter, which does not leave it."""

    record: Personal
