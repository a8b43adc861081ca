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

CONTRIBUTION_NAME = "contribution.json"
AGGREGATE_NAME = "aggregate.json"
RECORDS: dict[str, type[Contribution] | type[Aggregate]] = {
    CONTRIBUTION_NAME: Contribution,
    AGGREGATE_NAME: Aggregate,
}
SIGNATURES = tuple(f"{name}.sig" for name in RECORDS)
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
    record: Contribution | Aggregate | None

    @property
    def record_name(self) -> str:
        """The name of the record's file."""
        return AGGREGATE_NAME if isinstance(self.record, Aggregate) else CONTRIBUTION_NAME

    @cached_property
    def record_digest(self) -> str:
        """SHA-256 of the record's file."""
        return sha256_bytes(self.files[self.record_name])

    @property
    def sender(self) -> str | None:
        """Who should have signed it: a site, or the coordinator; None where there is no record."""
        if isinstance(self.record, Contribution):
            return self.record.site
        return None if self.record is None else COORDINATOR

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
