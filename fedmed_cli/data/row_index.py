"""What a division needs to know of every example, as a few numbers a row: the first of two passes over the data."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as pc

from fedmed_cli.data import screening
from fedmed_cli.data.bad_rows import BadRows
from fedmed_cli.data.batches import Batch, Texts, as_texts
from fedmed_cli.data.disclosure import list_columns
from fedmed_cli.data.leakage_groups import Ints, Keys, merge_equal
from fedmed_cli.data.near_duplicates import MinHashIndex
from fedmed_cli.data.same_text import group_key, group_name, keyed_hash, question_key, text_key
from fedmed_cli.data.sources import Source
from fedmed_cli.data.split_options import IndexOptions
from fedmed_cli.errors import InputError
from fedmed_cli.events import Say

# Up to here groups are ordered by a SHA-256 of their texts, which takes longer than all else; above, by a mix of
# the texts' 64-bit keys. Both are the same on every machine.
MAX_SHA_ORDER = 100_000

Read = Callable[[], Iterator[Batch]]


@dataclass(frozen=True)
class Codes:
    """A column as numbers: row i has the value `names[codes[i]]`; a missing value is ""."""

    codes: Ints
    names: tuple[str, ...]


@dataclass(frozen=True)
class Index:
    """One entry a row: its leakage group, and what decides who comes first. `columns` are all names of the data."""

    group_of: Ints
    order: Keys
    label: Codes | None
    value: Codes | None
    columns: set[str]
    bad: BadRows
    identifiers: screening.IdentifierCounts
    num_near_duplicates: int

    def __len__(self) -> int:
        return len(self.group_of)


def build(
    source: Source,
    options: IndexOptions,
    seed: int,
    scratch: Path,
    say: Say,
    *,
    topics: Callable[[Batch], Sequence[str]] | None = None,
    order_by_group: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> Index:
    """Read all examples once, and some again for their whole texts or their order.

    `topics` gives labels in place of a column. The order is that of the texts, or with `order_by_group` at any size
    that of the groups' keyed hashes. `scratch` is a folder for the search for near-duplicates; `progress` gets the
    rows so far. Says what was skipped and which identifiers were found; InputError where too many rows are bad, a
    column is missing, or there are identifiers and `phi` is block.
    """
    bad, counts = BadRows(), screening.IdentifierCounts()
    questions, groups = array("Q"), array("Q")
    columns: set[str] = set()
    labels: list[Any] = []
    values: list[Any] = []
    with contextlib.ExitStack() as stack:
        minhash = None
        if options.near_duplicates is not None:
            minhash = stack.enter_context(contextlib.closing(MinHashIndex(scratch)))
        for batch in screening.screen(source.batches(bad), options.phi, counts):
            questions.extend(map(question_key, batch.questions))
            columns.update(batch.others)
            if options.group_by is not None:
                groups.extend(map(group_key, batch.column(options.group_by).to_pylist()))
            if options.column is not None:
                values += _encode(batch.column(options.column))
            if topics is not None:
                labels += _encode(as_texts(topics(batch)))
            elif options.label is not None:
                labels += _encode(batch.column(options.label))
            if minhash is not None:
                minhash.add(batch.questions, batch.answers)
            progress(len(questions))
        bad.check(options.max_bad)
        if not questions:
            raise InputError(f"{source.title}: holds no example")
        bad.report(say)
        _check_columns(options, columns)
        screening.report(options.phi, counts, len(questions), say)

        def read() -> Iterator[Batch]:
            return screening.screen(source.batches(), options.phi)

        keys = _compute_text_keys(np.frombuffer(questions, dtype=np.uint64), read)
        group_of = merge_equal(np.arange(len(keys), dtype=np.int32), keys)
        if options.group_by is not None:
            group_of = merge_equal(group_of, np.frombuffer(groups, dtype=np.uint64))
        num_near_duplicates = 0
        if minhash is not None and options.near_duplicates is not None:
            group_of, num_near_duplicates = minhash.unite(group_of, options.near_duplicates)
    if order_by_group or len(keys) <= MAX_SHA_ORDER:
        order = _hash_order(read, options.group_by if order_by_group else None, seed)
    else:
        order = mixed_order(keys, seed)
    return Index(group_of, order, _join(labels), _join(values), columns, bad, counts, num_near_duplicates)


def _encode(texts: Texts) -> list[Any]:
    """A batch's column as chunks of codes; a missing value is ""."""
    return list(pc.fill_null(texts.cast(pyarrow.string()), "").dictionary_encode().chunks)


def _join(chunks: list[Any]) -> Codes | None:
    """The codes of a whole column; None where there are no chunks."""
    if not chunks:
        return None
    column = pyarrow.chunked_array(chunks).unify_dictionaries().combine_chunks()
    return Codes(column.indices.to_numpy(), tuple(column.dictionary.to_pylist()))


def _check_columns(options: IndexOptions, columns: Iterable[str]) -> None:
    """InputError where no row has a column that was asked for."""
    for wanted in (options.group_by, options.label, options.column):
        if wanted is not None and wanted not in columns:
            raise InputError(f"the data have no column {wanted!r}, found {list_columns(columns)}")


def repeated_keys(keys: Keys) -> Keys:
    """The keys that occur more than once, sorted."""
    ordered = np.sort(keys)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def _compute_text_keys(questions: Keys, read: Read) -> Keys:
    """A key for each row's text: that of its question where no other row asks the same, else of question and answer."""
    repeated = repeated_keys(questions)
    if not len(repeated):
        return questions
    keys, start = questions.copy(), 0
    for batch in read():
        rows = np.flatnonzero(np.isin(questions[start : start + len(batch)], repeated))
        if len(rows):
            keys[start + rows] = [text_key(batch.questions[row], batch.answers[row]) for row in rows.tolist()]
        start += len(batch)
    return keys


def _hash_order(read: Read, column: str | None, seed: int) -> Keys:
    """The keyed hash of each row's text, or of its group by a column."""
    order = array("Q")
    for batch in read():
        values = batch.column(column).to_pylist() if column is not None else [None] * len(batch)
        for question, answer, value in zip(batch.questions, batch.answers, values, strict=True):
            order.append(keyed_hash(group_name(question, answer, column, value), seed))
    return np.frombuffer(order, dtype=np.uint64)


def mixed_order(keys: Keys, seed: int) -> Keys:
    """The keys, stirred with the seed by SplitMix64 (Steele, Lea and Flood 2014): a permutation of 64 bits."""
    with np.errstate(over="ignore"):
        z = keys + np.uint64(seed % 2**64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: Keys = z ^ (z >> np.uint64(31))
    return mixed
