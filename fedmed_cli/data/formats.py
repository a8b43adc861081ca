"""Read a file of any common format as chunks: lists of rows, or Arrow tables where the format allows it."""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.json
import pyarrow.parquet

from fedmed_cli.data.bad_rows import BadRow
from fedmed_cli.data.columns import is_broken
from fedmed_cli.errors import InputError

BATCH_ROWS = 8192
BLOCK_BYTES = 8_000_000
COMPRESSIONS = (".gz", ".zst")
OBJECT_TYPES = (".jsonl", ".ndjson", ".json")  # where each row names its columns
# What a hospital's own data may take: above it a file is refused before it fills the memory.
MAX_ROWS = 20_000_000
MAX_COLUMNS = 1000
MAX_LINE_BYTES = 32_000_000
MAX_WHOLE_BYTES = 500_000_000  # of a file that cannot be read piece by piece, when it is unpacked
MAX_TABLE_BYTES = 1_000_000_000  # of the texts of BATCH_ROWS rows of a table


@dataclass(frozen=True)
class Row:
    """A row of a file with its place: `line` is a line of text, or a row's number where there are no lines."""

    line: int
    value: Mapping[str, Any] | BadRow


@dataclass(frozen=True)
class TableChunk:
    """Rows as an Arrow table, the first of which is at `line`."""

    line: int
    table: Any  # pyarrow.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, part: slice) -> TableChunk:
        start, stop, _ = part.indices(len(self))
        return TableChunk(self.line + start, self.table.slice(start, stop - start))


Chunk = list[Row] | TableChunk


def file_type(path: Path) -> str | None:
    """The ending of a file's name that tells its format, without that of a compression."""
    name = path.name.lower()
    for ending in COMPRESSIONS:
        name = name.removesuffix(ending)
    return next((ending for ending in PARSERS if name.endswith(ending)), None)


def open_file(path: Path) -> io.BufferedReader:
    """InputError where that cannot be."""
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def read_chunks(path: Path, name: str) -> Iterator[Chunk]:
    """The rows of a file, called `name` in messages. InputError names file and row, and never quotes a value."""
    kind = file_type(path)
    if kind is None:
        raise InputError(
            f"{name}: unknown file type, expected one of {', '.join(PARSERS)} (each also with .gz or .zst)",
            hint="rename the file to its type",
        )
    if path.stat().st_size == 0:
        raise InputError(f"{name}: is empty")
    ending = path.suffix.lower()
    with open_file(path) as raw, contextlib.ExitStack() as stack:
        file: Any = raw
        if ending == ".gz":
            file = stack.enter_context(gzip.open(raw))
        elif ending == ".zst":
            file = pyarrow.CompressedInputStream(raw, "zstd")
        try:
            yield from PARSERS[kind](file, name)
        except (OSError, EOFError, zlib.error) as error:
            if ending not in COMPRESSIONS or (isinstance(error, OSError) and error.errno):
                raise
            what = "gzip" if ending == ".gz" else "zstd"
            raise InputError(f"{name}: is not a whole {what} file") from None


# --- JSON -------------------------------------------------------------------------------------------


def _read_jsonl(file: Any, name: str) -> Iterator[Chunk]:
    """JSON lines, block by block. Only line feeds end a line: a JSON string may hold other line separators.

    Arrow parses a block of flat texts; any other block is read line by line, which gives the same rows.
    """
    line, offset, rest, is_blank = 1, 0, b"", True
    for block in itertools.chain(iter(lambda: file.read(BLOCK_BYTES), b""), [None]):
        data = rest if block is None else rest + block
        cut = len(data) if block is None else data.rfind(b"\n") + 1
        data, rest = data[:cut], data[cut:]
        if len(rest) > MAX_LINE_BYTES:
            raise _too_long(name, line + data.count(b"\n"))
        if not data:
            continue
        if offset == 0:
            data = data.removeprefix(b"\xef\xbb\xbf")
        table = parse_flat_lines(data)
        chunk = _parse_lines(data, line, offset, name) if table is None else TableChunk(line, table)
        is_blank = is_blank and not chunk
        yield chunk
        line += data.count(b"\n")
        offset += len(data)
    if is_blank:
        raise InputError(f"{name}: is empty")


def parse_flat_lines(data: bytes) -> Any:
    """The lines of a block as a table, or None where they are not all texts under the names of the first line."""
    try:
        first = json.loads(data[: data.find(b"\n") + 1 or None])
        if not first or not isinstance(first, dict) or not all(isinstance(value, str) for value in first.values()):
            return None  # pyarrow 26 ends the process where the first value is null
        if len(first) > MAX_COLUMNS:
            return None
        table = pyarrow.json.read_json(
            pyarrow.BufferReader(data),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            pyarrow.json.ParseOptions(
                explicit_schema=pyarrow.schema([(name, pyarrow.string()) for name in first]),
                unexpected_field_behavior="error",
            ),
        )
        table.validate(full=True)
    except (pyarrow.ArrowException, ValueError, RecursionError):
        return None
    # As many rows as lines, each of which ends one: no line is blank or holds two rows.
    num_lines = data.count(b"\n") + (not data.endswith(b"\n"))
    num_ends = data.count(b"}\n") + data.count(b"}\r\n") + data.endswith(b"}")
    has_all = table.num_rows == num_lines == num_ends and not any(column.null_count for column in table.columns)
    return table if has_all else None


def _parse_lines(data: bytes, line: int, offset: int, name: str) -> list[Row]:
    rows = []
    for number, part in enumerate(data.split(b"\n"), line):
        if part.strip():
            rows.append(Row(number, _parse_line(part, number, offset, name)))
        offset += len(part) + 1
    return rows


def _parse_line(part: bytes, number: int, offset: int, name: str) -> Mapping[str, Any] | BadRow:
    try:
        value = json.loads(part.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow("encoding", f"{name}: line {number} is not UTF-8 at byte {offset + error.start}")
    except (ValueError, RecursionError):  # ValueError: also a number with too many digits
        return BadRow("not_json", f"{name}: line {number} is not JSON")
    return value if isinstance(value, dict) else BadRow("not_object", f"{name}: line {number} is not a JSON object")


def _read_json(file: Any, name: str) -> Iterator[Chunk]:
    """One JSON value: a list of rows, an object that holds one list, or an object of rows by id (PubMedQA)."""
    try:
        text = _read_whole(file, name, "save it as JSON lines (.jsonl), which are read line by line").decode(
            "utf-8-sig"
        )
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not UTF-8 at byte {error.start}", hint="save the file as UTF-8") from None
    if not text.strip():
        raise InputError(f"{name}: is empty")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{name}: is not JSON at line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{name}: nested too deep, or a number has too many digits") from None
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list)]
        if value and all(isinstance(part, dict) for part in value.values()):
            value = [{"id": key} | part for key, part in value.items()]
        elif len(lists) == 1:
            value = lists[0]
    if not isinstance(value, list):
        raise InputError(f"{name}: expected a JSON list of objects")
    rows = []
    for number, row in enumerate(value, 1):
        bad = BadRow("not_object", f"{name}: row {number} is not a JSON object")
        rows.append(Row(number, row if isinstance(row, dict) else bad))
    yield rows


def _too_long(name: str, line: int) -> InputError:
    return InputError(
        f"{name}: line {line} is longer than {MAX_LINE_BYTES:,} bytes", hint="write one example a line, or shorten it"
    )


def _read_whole(file: Any, name: str, hint: str) -> bytes:
    """All bytes of an open file, unpacked. InputError where they are more than MAX_WHOLE_BYTES."""
    data: bytes = file.read(MAX_WHOLE_BYTES + 1)
    if len(data) > MAX_WHOLE_BYTES:
        raise InputError(f"{name}: holds more than {MAX_WHOLE_BYTES:,} bytes, which must be read at once", hint=hint)
    return data


# --- CSV --------------------------------------------------------------------------------------------


def _read_csv(file: Any, name: str, delimiter: str | None = None) -> Iterator[Chunk]:
    """Rows of a CSV file by its header; without a delimiter the header tells: comma, else semicolon or tab."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    before = csv.field_size_limit(MAX_LINE_BYTES)
    lines = _bounded_lines(text, name)
    records = None
    try:
        header, blank = "", -1
        while not header.strip():
            header, blank = next(lines, ""), blank + 1
            if not header:
                raise InputError(f"{name}: is empty")
        delimiter = delimiter or next((mark for mark in ",;\t" if mark in header), ",")
        records = csv.reader(itertools.chain([header], lines), delimiter=delimiter, strict=True)
        names = next(records)
        if repeated := sorted({column for column in names if column and names.count(column) > 1}):
            raise InputError(f"{name}: the header has {repeated[0][:80]!r} twice", hint="rename one of the columns")
        chunk: list[Row] = []
        for number, cells in enumerate((cells for cells in records if cells), 1):
            chunk.append(Row(number, _parse_cells(cells, names, number, name)))
            if len(chunk) == BATCH_ROWS:
                yield chunk
                chunk = []
        yield chunk
    except csv.Error as error:
        place = f"line {blank + records.line_num}: " if records is not None else ""
        raise InputError(f"{name}: {place}is not CSV ({error})") from None
    finally:
        csv.field_size_limit(before)
        text.detach()


def _bounded_lines(text: io.TextIOWrapper, name: str) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: text.readline(MAX_LINE_BYTES), ""), 1):
        if len(line) == MAX_LINE_BYTES:
            raise _too_long(name, number)
        yield line


def _parse_cells(cells: list[str], names: list[str], number: int, name: str) -> Mapping[str, Any] | BadRow:
    if len(cells) != len(names):
        return BadRow("fields", f"{name}: row {number} has another number of fields than the header")
    if any(map(is_broken, cells)):
        return BadRow("encoding", f"{name}: row {number} is not UTF-8")
    return dict(zip(names, cells, strict=True))


# --- Parquet and Arrow ------------------------------------------------------------------------------


def _read_parquet(file: Any, name: str) -> Iterator[Chunk]:
    try:
        file = _make_seekable(file, name)
        schema = pyarrow.parquet.read_schema(file)
        # One text for a million rows stays one in memory, until `make_batch` has looked at its size.
        texts = [column.name for column in schema if pyarrow.types.is_string(column.type)]
        file.seek(0)
        reader = pyarrow.parquet.ParquetFile(file, pre_buffer=False, read_dictionary=texts)
        yield from _read_tables(reader.iter_batches(BATCH_ROWS))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
        raise InputError(f"{name}: is not a readable Parquet file") from None


def _read_arrow(file: Any, name: str) -> Iterator[Chunk]:
    """Arrow's file format (Feather too), or its stream format, which the datasets library writes."""
    file = _make_seekable(file, name)
    try:
        try:
            reader = pyarrow.ipc.open_file(file)
            batches: Iterable[Any] = (reader.get_batch(i) for i in range(reader.num_record_batches))
        except pyarrow.ArrowInvalid:
            file.seek(0)
            batches = pyarrow.ipc.open_stream(file)
        yield from _read_tables(batches)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
        raise InputError(f"{name}: is not a readable Arrow file") from None


def _make_seekable(file: Any, name: str) -> Any:
    if isinstance(file, io.BufferedReader):
        return file
    return io.BytesIO(_read_whole(file, name, "unpack it: Parquet and Arrow files are compressed within"))


def _read_tables(batches: Iterable[Any]) -> Iterator[TableChunk]:
    line = 1
    for batch in batches:
        _check_offsets(batch)
        yield TableChunk(line, pyarrow.Table.from_batches([batch]))
        line += batch.num_rows


def _check_offsets(batch: Any) -> None:
    """ArrowInvalid where an offset or index of a batch points outside: pyarrow believes a file without looking.

    UnicodeDecodeError where a column's name is not text. Columns of texts are checked as bytes: what is not UTF-8
    there is a bad row, not a bad file.
    """
    columns = [column.view(_as_bytes(column.type)) for column in batch.columns]
    pyarrow.RecordBatch.from_arrays(columns, [field.name for field in batch.schema]).validate(full=True)


def _as_bytes(kind: Any) -> Any:
    """The type of the same buffers where texts, also those behind codes, are bytes."""
    if pyarrow.types.is_dictionary(kind):
        return pyarrow.dictionary(kind.index_type, _as_bytes(kind.value_type), kind.ordered)
    return {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}.get(kind, kind)


def table_rows(chunk: TableChunk, name: str) -> list[Row]:
    """The rows of a table; one that is not UTF-8 is a bad row."""
    try:
        values: list[Any] = chunk.table.to_pylist()
    except UnicodeDecodeError:
        values = [_read_table_row(chunk.table.slice(i, 1)) for i in range(len(chunk))]
    lines = range(chunk.line, chunk.line + len(chunk))
    return [
        Row(line, BadRow("encoding", f"{name}: row {line} is not UTF-8") if value is None else value)
        for line, value in zip(lines, values, strict=True)
    ]


def _read_table_row(table: Any) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = table.to_pylist()[0]
    except UnicodeDecodeError:
        return None
    return row


PARSERS: dict[str, Callable[[Any, str], Iterator[Chunk]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": functools.partial(_read_csv, delimiter="\t"),
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
}
