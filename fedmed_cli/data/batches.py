"""Examples as Arrow columns: made of what the parsers read, and written as JSON lines.

A table of texts becomes a batch column by column; whatever else there is goes row by row, which gives the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as pc
from numpy.typing import NDArray

from fedmed_cli.data.bad_rows import BadRow, BadRows
from fedmed_cli.data.columns import Layout, is_broken, turns_left_out
from fedmed_cli.data.formats import MAX_COLUMNS, MAX_TABLE_BYTES, Chunk, Row, TableChunk, table_rows
from fedmed_cli.errors import InputError

_encode_string = json.encoder.encode_basestring  # in C; what json.dumps(text, ensure_ascii=False) calls

Texts = Any  # pyarrow.ChunkedArray of strings


@dataclass(frozen=True)
class Batch:
    """Examples as Arrow columns of one length; Python lists are made when asked for.

    `row_numbers` count the rows of the data from 1. `given_ids` and the columns of `others` may hold nulls.
    """

    row_numbers: Sequence[int]
    given_ids: Texts
    question_texts: Texts
    answer_texts: Texts
    others: Mapping[str, Texts]

    def __len__(self) -> int:
        return len(self.row_numbers)

    @cached_property
    def questions(self) -> list[str]:
        return list(self.question_texts.to_pylist())

    @cached_property
    def answers(self) -> list[str]:
        return list(self.answer_texts.to_pylist())

    @cached_property
    def ids(self) -> list[str]:
        """The data's own ids; in place of a missing one a digest of the row's number and texts."""
        given = self.given_ids.to_pylist()
        if all(given):
            return list(given)
        rows = zip(given, self.row_numbers, self.questions, self.answers, strict=True)
        return [identifier or _make_id(number, question, answer) for identifier, number, question, answer in rows]

    def column(self, name: str) -> Texts:
        """One of `others`; nulls where the batch does not have it."""
        return self.others[name] if name in self.others else as_texts([None] * len(self))

    def take(self, rows: NDArray[np.integer]) -> Batch:
        """The examples at these positions, in this order."""
        at = pyarrow.array(rows)
        return Batch(
            [self.row_numbers[row] for row in rows.tolist()],
            self.given_ids.take(at),
            self.question_texts.take(at),
            self.answer_texts.take(at),
            {name: texts.take(at) for name, texts in self.others.items()},
        )


def as_texts(values: Sequence[str | None]) -> Texts:
    """A list as an Arrow column."""
    return pyarrow.chunked_array([pyarrow.array(values, pyarrow.string())])


def _make_id(number: int, question: str, answer: str) -> str:
    text = f"[{number},{_encode_string(question)},{_encode_string(answer)}]"  # their canonical JSON
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def json_lines(batch: Batch) -> list[str]:
    """The batch's examples as JSON lines with sorted keys, as json.dumps(…, ensure_ascii=False) writes them."""
    columns: dict[str, Sequence[str | None]] = {name: texts.to_pylist() for name, texts in batch.others.items()}
    columns |= {"id": batch.ids, "question": batch.questions, "answer": batch.answers}
    names = sorted(columns)
    rows = zip(*(columns[name] for name in names), strict=True)
    if not any(texts.null_count for texts in batch.others.values()):
        # Every row has the same names: filling in a form is three times as fast as dumping dictionaries.
        form = "{" + ", ".join(_encode_string(name).replace("%", "%%") + ": %s" for name in names) + "}\n"
        return [form % tuple(map(_encode_string, row)) for row in rows]
    lines = []
    for values in rows:
        row = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        lines.append(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
    return lines


def make_batch(chunk: Chunk, layout: Layout | None, file: int, name: str, bad: BadRows) -> Batch:
    """The examples of a chunk of file number `file`, called `name`; `bad` gets the rows that are none.

    `layout` may be None only where all rows are bad.
    """
    if isinstance(chunk, TableChunk):
        assert layout is not None
        _check_size(chunk.table, name)
        batch = _make_table_batch(chunk.table, layout, bad.num_rows + 1)
        if batch is not None:
            bad.num_rows += len(batch)
            return batch
        chunk = table_rows(chunk, name)
    return _make_rows_batch(chunk, layout, file, name, bad)


# --- column by column -------------------------------------------------------------------------------


def _make_table_batch(table: Any, layout: Layout, first: int) -> Batch | None:
    """The batch of a table in which all columns are texts and all rows are valid, else None."""
    columns = _read_text_columns(table)
    if columns is None or not layout.plain or not {layout.question, layout.answer} <= columns.keys():
        return None
    question, answer = columns.pop(layout.question), columns.pop(layout.answer)
    if question.null_count or answer.null_count:
        return None
    if not (_is_stripped(question) and _is_stripped(answer)):
        questions, answers = [[text.strip() for text in texts.to_pylist()] for texts in (question, answer)]
        if not (all(questions) and all(answers)):
            return None
        question, answer = as_texts(questions), as_texts(answers)
    row_numbers = range(first, first + table.num_rows)
    given_ids = columns.pop("id", as_texts([None] * table.num_rows))
    return Batch(row_numbers, given_ids, question, answer, columns)


def _check_size(table: Any, name: str) -> None:
    """InputError where a table's texts are too large once each code is replaced by its text."""
    size = 0
    for column in table.columns:
        if not (pyarrow.types.is_dictionary(column.type) and pyarrow.types.is_string(column.type.value_type)):
            continue
        for chunk in column.chunks:
            lengths = pc.binary_length(chunk.dictionary.cast(pyarrow.binary())).cast(pyarrow.int64())
            size += pc.sum(lengths.take(chunk.indices)).as_py() or 0
    if size > MAX_TABLE_BYTES:
        raise InputError(
            f"{name}: {table.num_rows:,} rows hold {size:,} bytes of text, at most {MAX_TABLE_BYTES:,} fit"
        )


def check_columns(columns: Collection[str], name: str) -> None:
    """InputError where the rows name too many columns."""
    if len(columns) > MAX_COLUMNS:
        raise InputError(
            f"{name}: the rows name more than {MAX_COLUMNS:,} columns",
            hint="keep one set of names for all rows; values that differ from row to row belong into one column",
        )


def _read_text_columns(table: Any) -> dict[str, Texts] | None:
    """The columns by name, codes replaced by their texts; None where one is not of texts, or is not UTF-8."""
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        is_coded = pyarrow.types.is_dictionary(column.type)
        kind = column.type.value_type if is_coded else column.type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            return None
        columns[name] = column.cast(kind) if is_coded else column
    try:
        for column in columns.values():
            column.validate(full=True)
    except pyarrow.ArrowInvalid:
        return None
    return columns


def _is_stripped(texts: Texts) -> bool:
    """Whether no text is empty or starts or ends with white space."""
    for start, stop in ((0, 1), (-1, None)):
        ends = pc.unique(pc.binary_slice(texts.cast(pyarrow.binary()), start, stop)).to_pylist()
        if not all(end.isascii() for end in ends):  # a byte is not a character then
            ends = [end.encode() for end in pc.unique(pc.utf8_slice_codeunits(texts, start, stop)).to_pylist()]
        if any(not end.decode().strip() for end in ends):
            return False
    return True


# --- row by row -------------------------------------------------------------------------------------


def _make_rows_batch(rows: Iterable[Row], layout: Layout | None, file: int, name: str, bad: BadRows) -> Batch:
    numbers: list[int] = []
    ids: list[str | None] = []
    questions: list[str] = []
    answers: list[str] = []
    others: dict[str, list[str | None]] = {}
    for row in rows:
        bad.num_rows += 1
        try:
            if isinstance(row.value, BadRow):
                raise row.value
            assert layout is not None
            try:
                question, answer = layout.read(row.value)
                columns = _read_other_columns(row.value, layout)
            except BadRow as fault:
                raise BadRow(fault.kind, f"{name}: row {row.line}: {fault.message}") from None
        except BadRow as fault:
            bad.add(fault.kind, file, row.line, fault.message)
            continue
        bad.turns_left_out += turns_left_out(layout, row.value)
        for column in columns:
            if column not in others:
                others[column] = [None] * len(numbers)
        check_columns(others, name)
        for column, values in others.items():
            values.append(columns.get(column))
        numbers.append(bad.num_rows)
        ids.append(_read_id(row.value))
        questions.append(question)
        answers.append(answer)
    columns_of_texts = {column: as_texts(values) for column, values in others.items()}
    return Batch(numbers, as_texts(ids), as_texts(questions), as_texts(answers), columns_of_texts)


def _read_other_columns(row: Mapping[str, Any], layout: Layout) -> dict[str, str]:
    """The columns that hold no part of the example, as texts. Raises BadRow."""
    columns = {}
    for column, value in row.items():
        if value is not None and column not in layout.used and column != "id":
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            if is_broken(text) or is_broken(str(column)):
                raise BadRow("encoding", "a column holds a broken character")
            columns[str(column)] = text
    return columns


def _read_id(row: Mapping[str, Any]) -> str | None:
    identifier = row.get("id")
    return str(identifier) if isinstance(identifier, str | int) and identifier != "" else None
