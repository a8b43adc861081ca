"""What the division needs to know of every example, as a few numbers a row: the first of two passes."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedmed_cli.data import identifiers
from fedmed_cli.data.near_duplicates import Sketches
from fedmed_cli.data.sources import Batch
from fedmed_cli.errors import InputError

# Up to here units are ordered by a SHA-256 of their texts, which takes longer than all else; above, by a mix of
# the texts' 64-bit keys. Both are the same on every machine.
MAX_SHA_ORDER = 100_000
_encode_string = json.encoder.encode_basestring  # in C
_WHITE = bytes(code for code in range(128) if chr(code).isspace())
_LOWER = bytes(code + 32 if 65 <= code <= 90 else code for code in range(256))  # str.casefold of ASCII

Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class Codes:
    """A column as numbers: row i has the value `names[codes[i]]`; a missing value is ""."""

    codes: NDArray[np.int32]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Index:
    """One entry a row. `group` is 0 where a row belongs to no group.

    text: equal for equal texts up to case and white space. order: decides who comes first.
    """

    text: Keys
    order: Keys
    group: Keys | None
    label: Codes | None
    value: Codes | None
    columns: frozenset[str]

    def __len__(self) -> int:
        return len(self.text)


class Hits:
    """Which identifiers the scan found: one entry for each row and kind."""

    def __init__(self) -> None:
        self._rows, self._kinds, self._counts = array("I"), array("B"), array("I")

    def add(self, row: int, found: Counter[str]) -> None:
        for kind, number in found.items():
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


_KINDS = tuple(identifiers.KINDS)


def text_key(question: str, answer: str) -> int:
    """64 bits that are equal for the same texts up to case and white space."""
    return xxhash.xxh3_64_intdigest(_plain(question) + b"\0" + _plain(answer))


def question_key(question: str) -> int:
    """64 bits of a question alone, up to case and white space."""
    return xxhash.xxh3_64_intdigest(_plain(question))


def _plain(text: str) -> bytes:
    if text.isascii():
        return text.encode().translate(_LOWER, _WHITE)
    return "".join(text.casefold().split()).encode()


def sha_order(question: str, answer: str, seed: int) -> int:
    """The first 64 bits of SHA-256 over the seed and the text's digest (up to case and white space)."""
    first, second = (_encode_string(" ".join(part.split()).casefold()) for part in (question, answer))
    digest = hashlib.sha256(f"[{first},{second}]".encode()).hexdigest()  # of their canonical JSON
    return int.from_bytes(hashlib.sha256(f"{seed}/{digest}".encode()).digest()[:8], "big")


def mixed_order(keys: Keys, seed: int) -> Keys:
    """The keys, stirred with the seed by SplitMix64 (Steele, Lea and Flood 2014): a permutation of 64 bits."""
    with np.errstate(over="ignore"):
        z = keys + np.uint64(seed % 2**64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: Keys = z ^ (z >> np.uint64(31))
    return mixed


def group_key(value: str | None) -> int:
    """64 bits for a group's value; 0 where there is none."""
    return (xxhash.xxh3_64_intdigest(value.encode()) or 1) if value else 0


def screened(batch: Batch, mode: identifiers.Mode, hits: Hits | None, start: int) -> Batch:
    """The batch as it is used: with `mode` redact its identifiers are replaced. `hits` gets what was found."""
    if mode == "off" or (mode != "redact" and hits is None):
        return batch
    questions, answers = list(batch.questions), list(batch.answers)
    changed = False
    for i, (question, answer) in enumerate(zip(batch.questions, batch.answers, strict=True)):
        found = identifiers.count(question) + identifiers.count(answer)
        if found:
            if hits is not None:
                hits.add(start + i, found)
            if mode == "redact":
                questions[i], answers[i] = identifiers.redact(question), identifiers.redact(answer)
                changed = True
    return Batch(batch.rows, batch.given_ids, questions, answers, batch.others) if changed else batch


def build(
    read: Callable[[], Iterable[Batch]],
    *,
    seed: int,
    group_by: str | None = None,
    label: str | None = None,
    column: str | None = None,
    topics: Callable[[Batch], Sequence[str]] | None = None,
    mode: identifiers.Mode = "off",
    hits: Hits | None = None,
    sketches: Sketches | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Index:
    """Read all batches once; up to MAX_SHA_ORDER rows once more, for their order.

    A row whose question no other row has is known by its question; where a question comes back, the batches are
    read again for the whole texts of those rows. `topics` gives labels where no column does. `progress` is told
    the rows so far.
    """
    text, group = array("Q"), array("Q")
    coded: dict[str, tuple[array[int], dict[str, int]]] = {
        name: (array("i"), {}) for name in ("label", "value") if {"label": label or topics, "value": column}[name]
    }
    seen: set[str] = set()
    for batch in read():
        batch = screened(batch, mode, hits, len(text))
        text.extend(map(question_key, batch.questions))
        missing: list[str | None] = [None] * len(batch)
        if group_by is not None:
            group.extend(map(group_key, batch.others.get(group_by, missing)))
        for name, (codes, names) in coded.items():
            source = label if name == "label" else column
            if source is not None and source in batch.columns:
                local, values = batch.coded(source)
            else:
                local, values = range(len(batch)), list(topics(batch)) if source is None and topics else missing
            numbers = np.array([names.setdefault(value or "", len(names)) for value in values], dtype=np.int32)
            codes.frombytes(numbers[np.asarray(local)].tobytes())
        if sketches is not None:
            sketches.add(batch.questions, batch.answers)
        seen.update(batch.columns)
        progress(len(text))
    for wanted in (group_by, label, column):
        if wanted is not None and wanted not in seen:
            found = ", ".join(sorted(part[:40] for part in seen)[:30]) or "no other column"
            raise InputError(f"the data have no column {wanted!r}, found {found}")
    keys = np.frombuffer(text, dtype=np.uint64)
    _take_whole_texts(keys, read, mode)
    return Index(
        text=keys,
        order=mixed_order(keys, seed) if len(text) > MAX_SHA_ORDER else _sha_orders(read, mode, seed),
        group=np.frombuffer(group, dtype=np.uint64) if group_by is not None else None,
        label=_codes(coded.get("label")),
        value=_codes(coded.get("value")),
        columns=frozenset(seen),
    )


def repeated_keys(keys: Keys) -> Keys:
    """The keys that stand there more than once, sorted."""
    ordered = np.sort(keys)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def _take_whole_texts(keys: Keys, read: Callable[[], Iterable[Batch]], mode: identifiers.Mode) -> None:
    """Replace the questions' keys that more than one row has by the keys of those rows' whole texts."""
    repeated = repeated_keys(keys)
    if not len(repeated):
        return
    start = 0
    for batch in read():
        rows = np.flatnonzero(np.isin(keys[start : start + len(batch)], repeated))
        if len(rows):
            batch = screened(batch, mode, None, 0)
            questions, answers = batch.questions, batch.answers
            keys[start + rows] = [text_key(questions[row], answers[row]) for row in rows.tolist()]
        start += len(batch)


def _sha_orders(read: Callable[[], Iterable[Batch]], mode: identifiers.Mode, seed: int) -> Keys:
    orders = array("Q")
    for batch in read():
        batch = screened(batch, mode, None, 0)
        orders.extend(sha_order(*pair, seed) for pair in zip(batch.questions, batch.answers, strict=True))
    return np.frombuffer(orders, dtype=np.uint64)


def _codes(coded: tuple[array[int], dict[str, int]] | None) -> Codes | None:
    return None if coded is None else Codes(np.frombuffer(coded[0], dtype=np.int32), tuple(coded[1]))
