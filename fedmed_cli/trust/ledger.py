"""A hospital's privacy ledger: every training that touched its records, over all rounds and federations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedmed_cli.errors import ConflictError
from fedmed_cli.events import Say
from fedmed_cli.records.privacy import LedgerEntry, UnitOfPrivacy
from fedmed_cli.trust.chain import Chain
from fedmed_cli.trust.keys import config_folder

LEDGER_NAME = "privacy.jsonl"
SKETCH_SIZE = 256
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

    @property
    def _chain(self) -> Chain[LedgerEntry]:
        return Chain(self.path, self.seal, LedgerEntry, ConflictError, self.say)

    def read(self) -> list[LedgerEntry]:
        """All entries. InputError where a line is damaged, ConflictError where lines are missing or were changed."""
        return self._chain.read()

    def append(self, make: Callable[[str], LedgerEntry]) -> None:
        """Add the entry that `make(digest of the last line)` gives, durably, and remember that it is there."""
        self._chain.append(make)
