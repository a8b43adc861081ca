"""Append-only files of one JSON record a line, each with the digest of the line before it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from fedmed_cli.errors import FedmedError, InputError
from fedmed_cli.events import Say
from fedmed_cli.records.audit_log import AuditEntry
from fedmed_cli.records.codec import parse_json, read_file
from fedmed_cli.records.digests import sha256_bytes
from fedmed_cli.records.privacy import LedgerEntry
from fedmed_cli.workspace.durable import private_files, sync_folder, write_all, write_file

MAX_CHAIN_BYTES = 100_000_000
LEAST_LINE_BYTES = 100
START = "0" * 64

E = TypeVar("E", LedgerEntry, AuditEntry)


@dataclass(frozen=True)
class Chain(Generic[E]):
    """`path` is the file, of mode 0600, and `seal` a file that remembers its last line.

    A file that lost lines since, or in which a line was changed, is refused with `fault`. Whoever appends holds a lock.
    """

    path: Path
    seal: Path
    kind: type[E]
    fault: type[FedmedError]
    say: Say

    def read(self) -> list[E]:
        """All entries. InputError where a line is damaged, `fault` where lines are missing or were changed."""
        lines = self._lines()
        if lines.pop():
            self.say(f"{self.path}: its last line was never finished and does not count")
        entries, digests = [], [START]
        for number, line in enumerate(lines, 1):
            name = f"{self.path}:{number}"
            entry = self.kind.from_dict(parse_json(line, name), name)
            if entry.previous != digests[-1]:
                raise self.fault(
                    f"{name}: does not follow the line before: lines were changed or taken out",
                    hint="restore the newest backup; this file is never edited",
                )
            entries.append(entry)
            digests.append(sha256_bytes(line))
        self._check_seal(digests)
        return entries

    def append(self, make: Callable[[str], E]) -> None:
        """Add the entry that `make(digest of the last line)` gives, durably, and remember that it is there."""
        lines = self._lines()[:-1]
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

    def _lines(self) -> list[bytes]:
        """The lines; the last one is empty where the file ends as it should. InputError where they are too short."""
        data = read_file(self.path, MAX_CHAIN_BYTES) if self.path.exists() else b""
        if data.count(b"\n") * LEAST_LINE_BYTES > len(data):
            raise InputError(f"{self.path}: is damaged: its lines are too short to be entries")
        return data.split(b"\n")

    def _check_seal(self, digests: Sequence[str]) -> None:
        if not self.seal.exists():
            return
        seal = parse_json(read_file(self.seal), str(self.seal))
        try:
            number, last = int(seal["entries"]), str(seal["last"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError(f"{self.seal}: is damaged; it remembers the last line of {self.path}") from None
        if len(digests) <= number or digests[number] != last:
            raise self.fault(
                f"{self.path}: had {number} entries when this workspace last wrote it, and is an older or another one "
                "now: what came after would be forgotten",
                hint="restore the newest copy of it",
            )
