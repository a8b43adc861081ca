"""A shared folder by which hospitals and the coordinator exchange bundles: what lies there, and putting one there.

Whatever copies the folder may do so at any speed: what was not copied whole does not pass the gate.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedmed_cli.adapters.bundle import BUNDLE_SUFFIX, pack
from fedmed_cli.adapters.folder import AdapterFolder
from fedmed_cli.adapters.gate_steps import MAX_ENTRIES
from fedmed_cli.errors import InputError
from fedmed_cli.events import Say, say_first
from fedmed_cli.records.codec import read_file
from fedmed_cli.records.measures import COORDINATOR
from fedmed_cli.trust.audit_log import AuditLog
from fedmed_cli.workspace.durable import write_in_place

GLOBAL = "global"
_NUMBERED = re.compile(r"round-[0-9]{3,6}-")

Stamp = tuple[object, ...]


def bundle_name(round_number: int, party: str) -> str:
    """What a site's contribution to a round is called in a shared folder; the global adapter's is `GLOBAL`."""
    return f"round-{round_number:03d}-{party}{BUNDLE_SUFFIX}"


@dataclass(frozen=True)
class Entry:
    """A folder or bundle in a shared folder, and whose it is by its name. `stamp` changes when its bytes do."""

    path: Path
    party: str
    stamp: Stamp


@dataclass
class Mail:
    """The folders and bundles of `wanted` parties in a shared folder; other names than those of `known` are told.

    What was settled is read again when it has changed.
    """

    folder: Path
    wanted: Sequence[str]
    known: Sequence[str]
    say: Say
    _settled: dict[Path, Stamp] = field(default_factory=dict)
    _failed: dict[Path, Stamp] = field(default_factory=dict)
    _refused: set[Path] = field(default_factory=set)

    def unread(self) -> Iterator[Entry]:
        """What has to be read, in the order of names."""
        try:
            paths = sorted(path for path in self.folder.iterdir() if not path.name.startswith("."))
        except OSError as error:
            self.say(f"{self.folder}: cannot be read ({error.strerror}); waiting for it")
            return
        parties = {path: self._party(path.name.removesuffix(BUNDLE_SUFFIX)) for path in paths}
        strange = [path for path, party in parties.items() if party not in self.known]
        reason = "skipped, its name is neither a site's nor a round's"
        say_first(self.say, [f"{path}: {reason}" for path in strange], f"such names in {self.folder}")
        for path, party in parties.items():
            if party in self.wanted and (stamp := _stamp(path)) != self._settled.get(path):
                yield Entry(path, party, stamp)

    def _party(self, name: str) -> str:
        numbered = _NUMBERED.match(name)
        return name if numbered is None or name in self.known else name[numbered.end() :]

    def settle(self, entry: Entry) -> None:
        """Need not read this again."""
        self._settled[entry.path] = entry.stamp
        self._refused.discard(entry.path)

    def fails(self, entry: Entry) -> bool:
        """Note that an entry did not pass, and say whether it is refused: it has not changed since it did not before.

        Until then it may be on its way.
        """
        if self._failed.get(entry.path) != entry.stamp:
            self._failed[entry.path] = entry.stamp
            return False
        self.settle(entry)
        self._refused.add(entry.path)
        return True

    def reconsider(self) -> None:
        """Read what was refused once more, whether it has changed or not."""
        for path in self._refused:
            del self._settled[path]
        self._refused.clear()


def _stamp(path: Path) -> Stamp:
    files: list[Path] = []
    try:
        if path.is_dir() and not path.is_symlink():
            with os.scandir(path) as entries:  # no more of them than the gate looks at
                files = sorted(Path(entry.path) for entry in itertools.islice(entries, MAX_ENTRIES + 1))
        return tuple((one.name, s.st_ino, s.st_size, s.st_mtime_ns) for one in (path, *files) for s in [one.lstat()])
    except OSError:
        return ()


def send(mailbox: Path, folder: AdapterFolder, log: AuditLog, say: Say) -> bool:
    """Have an adapter's bundle in the shared folder, and say whether it is there.

    Nothing but the bundle is written, under its own name from the first byte: readers check what they read. One that
    was sent and is gone was taken away by somebody, and is not sent again.
    """
    record = folder.record
    assert record is not None and folder.sender is not None  # noqa: PT018
    party = GLOBAL if folder.sender == COORDINATOR else folder.sender
    target, data = mailbox / bundle_name(record.round, party), pack(folder.files)
    is_sent = log.has("sent", record.round, folder.sender, folder.record_digest)
    try:
        if is_sent and not os.path.lexists(target):
            say(f"{target}: was sent and is gone: somebody took it, or the share was not mounted then; not sent again")
        elif not _holds(target, data):
            write_in_place(target, data)
            say(f"wrote {target}")
    except OSError as error:
        say(f"{target}: cannot be written ({error.strerror}); trying again")
        return False
    log.note_folder("sent", folder)
    return True


def _holds(path: Path, data: bytes) -> bool:
    try:
        return read_file(path, len(data), links=False) == data
    except InputError:
        return False
