"""Identifiers of patients in a stream of examples: counted, and replaced where that was asked for."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedmed_cli.data import identifiers
from fedmed_cli.data.batches import Batch, as_texts
from fedmed_cli.errors import InputError
from fedmed_cli.events import Say

_KINDS = tuple(identifiers.KINDS)


class IdentifierCounts:
    """Which identifiers the scan found: one entry for each row and kind."""

    def __init__(self) -> None:
        self._rows, self._kinds, self._counts = array("I"), array("B"), array("I")

    def add(self, row: int, by_kind: Counter[str]) -> None:
        for kind, number in by_kind.items():
            self._rows.append(row)
            self._kinds.append(_KINDS.index(kind))
            self._counts.append(number)

    def by_kind(self, chosen: NDArray[np.bool_] | None = None) -> dict[str, int]:
        """How many of each kind, in all rows or in the chosen ones."""
        rows, kinds = np.frombuffer(self._rows, dtype=np.uint32), np.frombuffer(self._kinds, dtype=np.uint8)
        counts = np.frombuffer(self._counts, dtype=np.uint32)
        if chosen is not None:
            kinds, counts = kinds[chosen[rows]], counts[chosen[rows]]
        totals = np.bincount(kinds, weights=counts, minlength=len(_KINDS))
        return {kind: int(total) for kind, total in sorted(zip(_KINDS, totals, strict=True)) if total}

    @property
    def num_rows(self) -> int:
        """How many rows hold an identifier."""
        return len(set(self._rows))


def screen(batches: Iterable[Batch], mode: identifiers.Mode, counts: IdentifierCounts | None = None) -> Iterator[Batch]:
    """The batches as they are used: with `mode` redact without identifiers. `counts` gets what was found."""
    start = 0
    for batch in batches:
        is_scanned = mode == "redact" or (mode != "off" and counts is not None)
        yield _screen_batch(batch, mode, counts, start) if is_scanned else batch
        start += len(batch)


def _screen_batch(batch: Batch, mode: identifiers.Mode, counts: IdentifierCounts | None, start: int) -> Batch:
    questions, answers = list(batch.questions), list(batch.answers)
    changed = False
    for i, (question, answer) in enumerate(zip(batch.questions, batch.answers, strict=True)):
        by_kind = identifiers.count(question) + identifiers.count(answer)
        if by_kind and counts is not None:
            counts.add(start + i, by_kind)
        if by_kind and mode == "redact":
            questions[i], answers[i] = identifiers.redact(question), identifiers.redact(answer)
            changed = True
    if not changed:
        return batch
    return replace(batch, question_texts=as_texts(questions), answer_texts=as_texts(answers))


def report(mode: identifiers.Mode, counts: IdentifierCounts, total: int, say: Say) -> None:
    """Say what the scan found; InputError where it must block."""
    by_kind, num_rows = counts.by_kind(), counts.num_rows
    what = ", ".join(f"{number} {kind}" for kind, number in by_kind.items())
    if by_kind and mode == "block":
        raise InputError(
            f"{num_rows} of {total} examples hold what may identify a patient ({what}); nothing was written",
            hint="correct the data, replace what was found with --phi redact, or accept it with --phi warn",
        )
    verb = "replaced" if mode == "redact" else "found"
    if by_kind:
        say(f"identifiers {verb} in {num_rows} of {total} examples: {what}; {identifiers.NOTICE}")
    elif mode in ("block", "redact"):
        say(f"no identifiers found in {total} examples; {identifiers.NOTICE}")
