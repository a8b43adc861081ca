"""A hospital's privacy ledger: every training that touched its records, over all rounds and federations."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedmed_cli.errors import ConflictError, InputError
from fedmed_cli.events import Say
from fedmed_cli.records.codec import parse_json, read_file
from fedmed_cli.records.digests import sha256_bytes
from fedmed_cli.records.privacy import LedgerEntry, UnitOfPrivacy
from fedmed_cli.trust.keys import config_folder
from fedmed_cli.workspace.durable import private_files, sync_folder, write_all, write_file

LEDGER_NAME = "privacy.jsonl"
SKETCH_SIZE = 256
MAX_LEDGER_BYTES = 1_000_000_000
START = "0" * 64
MOST_MORE = 100  # trainings to look ahead


@dataclass(frozen=True)
class Spent:
    """What was spent on one set of training examples, with all other trainings that share records with it.

    `epsilon` None: one of them promised nothing. `left` and `more`, the number of further trainings like the newest
    one, are None where there is no budget or nothing is promised; `more` stops at MOST_MORE.
    """

    site: str
    data: str
    unit: UnitOfPrivacy
    num_units: int
    trainings: int
    without_guarantee: int
    newest: str
    delta: float
    epsilon: float | None
    left: float | None
    more: int | None


def default_ledger_path() -> Path:
    """Where a hospital's ledger lies unless another file is named."""
    return config_folder() / LEDGER_NAME


def sketch(keys: Sequence[int]) -> tuple[str, ...]:
    """The least of the examples' 64-bit keys: two sets that share many examples share some of these."""
    return tuple(f"{key:016x}" for key in sorted(set(keys))[:SKETCH_SIZE])


def share_records(one: LedgerEntry, data: str, other: Sequence[str]) -> bool:
    """Whether a training was on the same records, or on some of them as far as the sketches tell."""
    return one.data == data or not set(one.sketch).isdisjoint(other)


@dataclass(frozen=True)
class Ledger:
    """`path` is the ledger, beside the hospital's keys; `seal` a file of the workspace that remembers its last line.

    A ledger that lost lines since, or in which a line was changed, is refused: an older copy would forget what was
    spent. Between reading and appending the caller holds `lock`.
    """

    path: Path
    seal: Path
    say: Say = field(default=lambda message: None, repr=False, compare=False)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from reading what is about to change."""
        from filelock import FileLock, Timeout

        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with FileLock(self.path.with_name(f"{self.path.name}.lock"), timeout=60):
                yield
        except Timeout:
            raise ConflictError(f"{self.path}: another fedmed has been writing it for a minute") from None

    def read(self) -> list[LedgerEntry]:
        """All entries. InputError where a line is damaged, ConflictError where lines are missing or were changed."""
        data = read_file(self.path, MAX_LEDGER_BYTES) if self.path.exists() else b""
        lines = data.split(b"\n")
        if lines.pop():
            self.say(f"{self.path}: its last line was never finished and does not count: nothing had left yet")
        entries, digests = [], [START]
        for number, line in enumerate(lines, 1):
            name = f"{self.path}:{number}"
            entry = LedgerEntry.from_dict(parse_json(line, name), name)
            if entry.previous != digests[-1]:
                raise ConflictError(
                    f"{name}: does not follow the line before: lines were changed or taken out",
                    hint="restore the newest backup; a ledger is never edited",
                )
            entries.append(entry)
            digests.append(sha256_bytes(line))
        self._check_seal(digests)
        return entries

    def append(self, make: Callable[[str], LedgerEntry]) -> None:
        """Add the entry that `make(digest of the last line)` gives, durably, and remember that it is there."""
        data = read_file(self.path, MAX_LEDGER_BYTES) if self.path.exists() else b""
        lines = data.split(b"\n")[:-1]
        line = json.dumps(make(sha256_bytes(lines[-1]) if lines else START).to_dict(), sort_keys=True).encode()
        with private_files():
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o600)
            try:
                os.ftruncate(handle, sum(len(line) + 1 for line in lines))  # without a torn last line
                write_all(handle, line + b"\n")
                os.fsync(handle)
            finally:
                os.close(handle)
            sync_folder(self.path.parent)
            write_file(self.seal, json.dumps({"entries": len(lines) + 1, "last": sha256_bytes(line)}).encode())

    def _check_seal(self, digests: Sequence[str]) -> None:
        if not self.seal.exists():
            return
        seal = parse_json(read_file(self.seal), str(self.seal))
        try:
            number, last = int(seal["entries"]), str(seal["last"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{self.seal}: is damaged; it remembers the last line of {self.path}") from None
        if len(digests) <= number or digests[number] != last:
            raise ConflictError(
                f"{self.path}: had {number} entries when this workspace last wrote it, and is an older or another one "
                "now: what was spent since would be forgotten",
                hint="restore the newest copy of the ledger",
            )
