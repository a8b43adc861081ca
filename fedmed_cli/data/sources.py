"""Read data of any common format as a stream of batches, counting the rows that are not valid examples.

It is one file because each format has a fast way over whole columns and a slow one row by row, which must agree.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import gzip
import hashlib
import io
import itertools
import json
import os
import queue
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fedmed_cli.data import corpus
from fedmed_cli.data.columns import BadRow, Layout, find_layout, turns_left_out
from fedmed_cli.errors import ConflictError, InputError, MachineError
from fedmed_cli.records.digests import sha256_file, sha256_json

CORPUS = "corpus"
BATCH_ROWS = 8192
BLOCK_BYTES = 8_000_000
DEFAULT_MAX_BAD = 0.001
MAX_BAD_LINES = 100
_SNIFFED_ROWS = 100
_TYPES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
_COMPRESSIONS = (".gz", ".zst")
_encode_string = json.encoder.encode_basestring  # in C; what json.dumps(text, ensure_ascii=False) calls


@dataclass(frozen=True)
class Batch:
    """Examples as columns: the i-th items of all lists belong together. A value of `others` may be missing (None).

    `rows` numbers the rows of the data, from 1; `given_ids` are the data's own ids, None where there is none.
    """

    rows: Sequence[int]
    given_ids: list[str | None]
    questions: list[str]
    answers: list[str]
    others: dict[str, list[str | None]]

    def __len__(self) -> int:
        return len(self.questions)

    @cached_property
    def ids(self) -> list[str]:
        """The given ids; in place of a missing one a digest of the row's number and texts."""
        return [
            given if given is not None else _make_id(row, question, answer)
            for given, row, question, answer in zip(
                self.given_ids, self.rows, self.questions, self.answers, strict=True
            )
        ]

    @property
    def columns(self) -> Iterable[str]:
        """The names of `others`."""
        return self.others

    def coded(self, column: str) -> tuple[Sequence[int], list[str | None]]:
        """One of `others` as a number for each example, and the values that the numbers stand for."""
        numbers: dict[str | None, int] = {}
        codes = [numbers.setdefault(value, len(numbers)) for value in self.others[column]]
        return codes, list(numbers)

    def take(self, rows: Sequence[int]) -> Batch:
        """The examples at these positions, in this order."""
        return Batch(
            [self.rows[i] for i in rows],
            [self.given_ids[i] for i in rows],
            [self.questions[i] for i in rows],
            [self.answers[i] for i in rows],
            {column: [values[i] for i in rows] for column, values in self.others.items()},
        )


class TableBatch(Batch):
    """A batch that still is an Arrow table with the columns of its examples; lists are made when asked for.

    Only for a table that was looked at before: no text is missing, empty or to be stripped.
    """

    def __init__(self, table: Any, rows: range) -> None:
        self.__dict__ |= {"table": table, "rows": rows}
        self.table: Any

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def questions(self) -> list[str]:
        return list(self.table.column("question").to_pylist())

    @cached_property
    def answers(self) -> list[str]:
        return list(self.table.column("answer").to_pylist())

    @cached_property
    def given_ids(self) -> list[str | None]:
        if "id" not in self.table.column_names:
            return [None] * len(self)
        return [found or None for found in self.table.column("id").to_pylist()]

    @property
    def all_have_ids(self) -> bool:
        """Whether no id is missing or empty."""
        import pyarrow.compute as pc

        if "id" not in self.table.column_names:
            return False
        given = self.table.column("id")
        return given.null_count == 0 and bool(pc.min(pc.binary_length(given)).as_py())

    @cached_property
    def others(self) -> dict[str, list[str | None]]:
        return {name: self.table.column(name).to_pylist() for name in self.columns}

    @property
    def columns(self) -> Iterable[str]:
        return [name for name in self.table.column_names if name not in ("id", "question", "answer")]

    def coded(self, column: str) -> tuple[Sequence[int], list[str | None]]:
        found = self.table.column(column).combine_chunks().dictionary_encode(null_encoding="encode")
        return found.indices.to_numpy(), found.dictionary.to_pylist()


@dataclass
class BadRows:
    """What was skipped, by kind: how many rows, and the lines of the first ones as "file:line"."""

    counts: dict[str, int] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    num_rows: int = 0
    turns_left_out: int = 0
    first: str | None = None

    def add(self, kind: str, file: int, line: int, message: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        where = self.lines.setdefault(kind, [])
        if len(where) < MAX_BAD_LINES:
            where.append(f"{file}:{line}")
        self.first = self.first or message

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def summary(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()))

    def check(self, max_bad: float) -> None:
        """InputError with the first bad row where more than the share `max_bad` of all rows is bad."""
        if self.first is not None and self.total > max_bad * self.num_rows:
            raise InputError(
                self.first,
                hint=f"{self.total} of {self.num_rows} rows are not valid examples ({self.summary}); correct them, "
                f"or skip them with --max-bad {min(1.0, self.total / max(self.num_rows, 1) * 1.01 + 0.001):.3f}",
            )


@dataclass(frozen=True)
class _Row:
    """A row of a file with its place: `line` is a line of text, or a row's number where there are no lines."""

    line: int
    value: Mapping[str, Any] | BadRow


# What a file yields: a list of rows, or an Arrow table whose first row has the given line.
_Chunk = list[_Row] | tuple[int, Any]


class Source:
    """Where examples come from: the corpus, files, or a hub id. Reading it twice gives the same batches.

    `columns` maps "question" and "answer" (or "text", "messages") to the data's own names. `limit` keeps the
    first rows. InputError (exit code 3) names file and row, and never quotes a value.
    """

    def __init__(
        self, names: Sequence[str], columns: Mapping[str, str] | None = None, limit: int | None = None
    ) -> None:
        self.names = tuple(names)
        self.columns = columns
        self.limit = limit
        self.kind: Literal["corpus", "file", "hub"] = "file"
        self.label_column: str | None = None
        self.group_column: str | None = None
        self.paths: list[Path] = []
        self._digest = ""
        self._clean: set[int] = set()  # chunks whose tables are examples as they stand
        if CORPUS in self.names:
            if len(self.names) > 1:
                raise InputError("the corpus cannot be mixed with other data")
            self.kind, self.label_column, self.group_column = "corpus", corpus.LABEL_COLUMN, corpus.GROUP_COLUMN
        elif len(self.names) == 1 and not Path(self.names[0]).expanduser().exists() and _is_hub_id(self.names[0]):
            self.kind = "hub"
        else:
            self.paths = [path for name in self.names for path in _files(name)]
        self._states = [_state(path) for path in self.paths]

    @property
    def title(self) -> str:
        """How messages call the data."""
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]} and {len(self.names) - 1} more"

    @property
    def num_bytes(self) -> int:
        """Bytes of all files; 0 where there are none."""
        return sum(state[0] for state in self._states)

    def fetch(self, folder: Path) -> None:
        """Bring a hub id's rows into `folder`, streamed, so that they can be read more than once."""
        if self.kind == "hub" and not self.paths:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "rows.jsonl"
            with path.open("w", encoding="utf-8") as file:
                for row in itertools.islice(_hub_rows(self.names[0]), self.limit):
                    file.write(json.dumps(row, default=str) + "\n")
            self.paths = [path]
            self._states = [_state(path)]

    def digest(self) -> str:
        """SHA-256 of what was read: the file's bytes, or the digest of several files' digests."""
        if not self._digest:
            if self.kind == "corpus":
                self._digest = sha256_json(corpus.examples()[: self.limit])
            else:
                digests = [sha256_file(path) for path in self.paths]
                self._digest = digests[0] if len(digests) == 1 else sha256_json(digests)
        return self._digest

    def check_unchanged(self) -> None:
        """ConflictError where a file is not as it was when the source was opened."""
        for path, state in zip(self.paths, self._states, strict=True):
            if _state(path) != state:
                raise ConflictError(f"{path} changed while it was read", hint="run the command again; nothing was kept")

    def batches(self, bad: BadRows | None = None) -> Iterator[Batch]:
        """The examples in order. Rows that are none are told to `bad`, whose `num_rows` counts all rows."""
        bad = bad if bad is not None else BadRows()
        if self.kind == "hub" and not self.paths:
            raise RuntimeError("fetch() comes first")
        layout: Layout | None = None
        for at, (number, name, chunk) in enumerate(_ahead(self._chunks())):
            if layout is None and not (isinstance(chunk, list) and all(isinstance(row.value, BadRow) for row in chunk)):
                layout = find_layout(_column_names(chunk), self.columns, name)
            first = bad.num_rows + 1
            if isinstance(chunk, tuple):
                assert layout is not None
                table = _text_table(chunk[1], layout)
                if at in self._clean and table is not None:
                    bad.num_rows += table.num_rows
                    batch: Batch = TableBatch(table, range(first, first + table.num_rows))
                else:
                    batch = _table_batch(chunk, table, layout, first, number, name, bad)
                    if isinstance(batch, TableBatch):
                        self._clean.add(at)
            else:
                batch = _rows_batch(chunk, layout, first, number, name, bad)
            if len(batch):
                yield batch
        if not bad.num_rows:
            raise InputError(f"{self.title}: holds no example")

    def _chunks(self) -> Iterator[tuple[int, str, _Chunk]]:
        """Chunks of at most BATCH_ROWS rows with their file's number and name, up to the limit."""
        left = self.limit
        if self.kind == "corpus":
            rows = [_Row(number, row) for number, row in enumerate(corpus.examples()[: self.limit], 1)]
            for piece in _pieces(rows):
                yield 1, CORPUS, piece
            return
        for number, path in enumerate(self.paths, 1):
            name = self.names[0] if self.kind == "hub" else str(path)
            for chunk in _read_file(path, name):
                for part in _pieces(chunk):
                    size = part[1].num_rows if isinstance(part, tuple) else len(part)
                    if left is not None and size > left:
                        part = (part[0], part[1].slice(0, left)) if isinstance(part, tuple) else part[:left]
                        size = left
                    if left is not None:
                        left -= size
                    if size:
                        yield number, name, part
                    if left == 0:
                        return


def raw_rows(name: str) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
    """The rows of a file (or of a folder's files) as they stand, nested values included, with their line or row."""
    for path in _files(name):
        for chunk in _read_file(path, str(path)):
            if isinstance(chunk, tuple):
                line, table = chunk
                for i in range(table.num_rows):
                    row = _python_row(table.slice(i, 1))
                    yield line + i, BadRow("encoding", f"{path}: row {line + i} is not UTF-8") if row is None else row
            else:
                yield from ((row.line, row.value) for row in chunk)


# --- finding the files ------------------------------------------------------------------------------


def _is_hub_id(name: str) -> bool:
    stem = name.partition(":")[0]
    looks_like_path = name.startswith((".", "/", "~")) or _type(Path(name)) is not None or glob.has_magic(name)
    return not looks_like_path and stem.count("/") == 1


def _type(path: Path) -> str | None:
    name = path.name.lower()
    for ending in _COMPRESSIONS:
        name = name.removesuffix(ending)
    return next((ending for ending in _TYPES if name.endswith(ending)), None)


def _files(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder_files(path)
    if path.exists():
        return [path]
    if glob.has_magic(str(path)):
        found = [Path(part) for part in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(part)]
        if not found:
            raise InputError(f"{name}: no file has such a name")
        return found
    raise InputError(f"{path}: no such file", hint="name a data file, a hub id such as owner/name, or 'corpus'")


def _folder_files(path: Path) -> list[Path]:
    """The files of a folder that `datasets` saved, else all data files in the folder, sorted by name."""
    state = path / "state.json"
    if state.exists():
        try:
            names = [entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{state}: is not what the datasets library writes") from None
        return [path / Path(str(name)).name for name in names]
    parts = sorted(part.parent.name for part in path.glob("*/state.json"))
    if parts:
        if len(parts) > 1:
            raise InputError(
                f"{path}: holds {len(parts)} sets: {', '.join(part[:40] for part in parts[:20])}",
                hint=f"name one, such as {path / parts[0]}, or several with more than one --dataset",
            )
        return _folder_files(path / parts[0])
    found = sorted(part for part in path.iterdir() if part.is_file() and _type(part))
    if not found:
        raise InputError(f"{path}: is a folder without data files, expected one of {', '.join(_TYPES)}")
    return found


def _state(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return found.st_size, found.st_mtime_ns


def _hub_rows(name: str) -> Iterator[Mapping[str, Any]]:
    import datasets

    repository, _, split = name.partition(":")
    try:
        yield from datasets.load_dataset(repository, split=split or "train", streaming=True)
    except Exception as error:  # the hub's client raises many kinds; all mean that the data set is unavailable
        raise MachineError(
            f"the data set {name!r} could not be loaded from the hub ({type(error).__name__})",
            hint="check the name (owner/name or owner/name:split) and the network, or give a local file",
        ) from None


# --- reading one file -------------------------------------------------------------------------------


def _opened(path: Path) -> io.BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _read_file(path: Path, name: str) -> Iterator[_Chunk]:
    kind = _type(path)
    if kind is None:
        raise InputError(
            f"{name}: unknown file type, expected one of {', '.join(_TYPES)} (each also with .gz or .zst)",
            hint="rename the file to its type",
        )
    if path.stat().st_size == 0:
        raise InputError(f"{name}: is empty")
    ending = path.suffix.lower() if path.suffix.lower() in _COMPRESSIONS else ""
    with _opened(path) as raw, contextlib.ExitStack() as stack:
        file: Any = raw
        if ending == ".gz":
            file = stack.enter_context(gzip.open(raw))
        elif ending == ".zst":
            import pyarrow

            file = pyarrow.CompressedInputStream(raw, "zstd")
        try:
            if kind == ".parquet":
                yield from _parquet(io.BytesIO(file.read()) if ending else file, name)
            elif kind in (".arrow", ".feather"):
                yield from _arrow(io.BytesIO(file.read()) if ending else file, name)
            elif kind == ".json":
                yield from _json(file.read(), name)
            elif kind in (".csv", ".tsv"):
                yield from _csv(file, "\t" if kind == ".tsv" else None, name)
            else:
                yield from _jsonl(file, name)
        except (OSError, EOFError, zlib.error) as error:
            if not ending or (isinstance(error, OSError) and error.errno):
                raise
            what = "gzip" if ending == ".gz" else "zstd"
            raise InputError(f"{name}: is not a whole {what} file") from None


def _jsonl(file: Any, name: str) -> Iterator[_Chunk]:
    """JSON lines, block by block. Only line feeds end a line: a JSON string may hold other line separators.

    Once a block has shown that all rows are flat texts under the same names, Arrow parses the next ones; a
    block that it does not take as such is read line by line again, so both ways give the same rows.
    """
    line, offset, rest, schema, blank = 1, 0, b"", None, True
    for block in itertools.chain(iter(lambda: file.read(BLOCK_BYTES), b""), [None]):
        data = rest if block is None else rest + block
        cut = len(data) if block is None else data.rfind(b"\n") + 1
        data, rest = data[:cut], data[cut:]
        if not data:
            continue
        if offset == 0:
            data = data.removeprefix(b"\xef\xbb\xbf")
        table = _arrow_lines(data, schema) if schema is not None else None
        if table is not None:
            yield line, table
        else:
            rows = _python_lines(data, line, offset, name)
            blank = blank and not rows
            schema = _flat_schema(rows)
            yield rows
        line += data.count(b"\n")
        offset += len(data)
    if blank:
        raise InputError(f"{name}: is empty")


def _python_lines(data: bytes, line: int, offset: int, name: str) -> list[_Row]:
    rows = []
    for number, part in enumerate(data.split(b"\n"), line):
        if part.strip():
            rows.append(_Row(number, _json_line(part, number, offset, name)))
        offset += len(part) + 1
    return rows


def _json_line(part: bytes, number: int, offset: int, name: str) -> Mapping[str, Any] | BadRow:
    try:
        value = json.loads(part.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow("encoding", f"{name}: line {number} is not UTF-8 at byte {offset + error.start}")
    except (ValueError, RecursionError):  # ValueError: also a number with too many digits
        return BadRow("not_json", f"{name}: line {number} is not JSON")
    return value if isinstance(value, dict) else BadRow("not_object", f"{name}: line {number} is not a JSON object")


def _flat_schema(rows: list[_Row]) -> Any:
    """An Arrow schema where every row has the same names and texts only, else None."""
    import pyarrow

    if not rows or isinstance(rows[0].value, BadRow):
        return None
    names = list(rows[0].value)
    for row in rows:
        if isinstance(row.value, BadRow) or list(row.value) != names:
            return None
        if not all(isinstance(value, str) for value in row.value.values()):
            return None
    return pyarrow.schema([(name, pyarrow.string()) for name in names])


def _arrow_lines(data: bytes, schema: Any) -> Any:
    """The rows of a block as a table, or None where they are not all flat texts under the schema's names."""
    import pyarrow
    import pyarrow.json

    if not data[:64].lstrip().startswith(b"{"):  # pyarrow 26 ends the process where the first value is null
        return None
    try:
        table = pyarrow.json.read_json(
            pyarrow.BufferReader(data),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
        )
        table.validate(full=True)
    except (pyarrow.ArrowException, ValueError):
        return None
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    whole = table.num_rows == lines and not any(column.null_count for column in table.columns)
    return table if whole else None


def _json(data: bytes, name: str) -> Iterator[_Chunk]:
    """One JSON value: a list of rows, an object that holds one list, or an object of rows by id (PubMedQA)."""
    try:
        text = data.decode("utf-8-sig")
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
    yield [
        _Row(
            number, row if isinstance(row, dict) else BadRow("not_object", f"{name}: row {number} is not a JSON object")
        )
        for number, row in enumerate(value, 1)
    ]


def _csv(file: Any, delimiter: str | None, name: str) -> Iterator[_Chunk]:
    """Rows of a CSV file by its header; without a delimiter the header tells: comma, else semicolon or tab."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    before = csv.field_size_limit(2**31 - 1)
    try:
        header = ""
        while not header.strip():
            header = text.readline()
            if not header:
                raise InputError(f"{name}: is empty")
        if delimiter is None:
            delimiter = next((mark for mark in ",;\t" if mark in header), ",")
        rows = csv.reader(itertools.chain([header], text), delimiter=delimiter, strict=True)
        names = next(rows)
        chunk: list[_Row] = []
        for number, cells in enumerate((cells for cells in rows if cells), 1):
            value: Mapping[str, Any] | BadRow = dict(zip(names, cells, strict=False))
            if len(cells) != len(names):
                message = f"{name}: row {number} has another number of fields than the header"
                value = BadRow("fields", message)
            elif any(max(cell, default="") >= "\ud800" and _is_broken(cell) for cell in cells):
                value = BadRow("encoding", f"{name}: row {number} is not UTF-8")
            chunk.append(_Row(number, value))
            if len(chunk) == BATCH_ROWS:
                yield chunk
                chunk = []
        yield chunk
    except csv.Error as error:
        raise InputError(f"{name}: is not CSV ({error})") from None
    finally:
        csv.field_size_limit(before)
        text.detach()


def _is_broken(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _parquet(file: Any, name: str) -> Iterator[_Chunk]:
    import pyarrow
    import pyarrow.parquet

    try:
        line = 1
        for batch in pyarrow.parquet.ParquetFile(file, pre_buffer=False).iter_batches(BATCH_ROWS):
            yield line, _sound(batch)
            line += batch.num_rows
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
        raise InputError(f"{name}: is not a readable Parquet file") from None


def _arrow(file: Any, name: str) -> Iterator[_Chunk]:
    """Arrow's file format (Feather too), or its stream format, which the datasets library writes."""
    import pyarrow

    try:
        try:
            reader = pyarrow.ipc.open_file(file)
            batches: Iterable[Any] = (reader.get_batch(i) for i in range(reader.num_record_batches))
        except pyarrow.ArrowInvalid:
            file.seek(0)
            batches = pyarrow.ipc.open_stream(file)
        line = 1
        for batch in batches:
            yield line, _sound(batch)
            line += batch.num_rows
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
        raise InputError(f"{name}: is not a readable Arrow file") from None


def _sound(batch: Any) -> Any:
    """The batch as a table, once no offset or index in it points outside: pyarrow believes a file without looking.

    ArrowInvalid where one does, UnicodeDecodeError where a column's name is not text. Columns of texts are checked as
    bytes: what is not UTF-8 there is a bad row, not a bad file.
    """
    import pyarrow

    bytes_of = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    columns = [column.view(bytes_of[column.type]) if column.type in bytes_of else column for column in batch.columns]
    pyarrow.RecordBatch.from_arrays(columns, [field.name for field in batch.schema]).validate(full=True)
    return pyarrow.Table.from_batches([batch])


# --- from rows to batches ---------------------------------------------------------------------------


def _ahead(items: Iterator[Any], depth: int = 3) -> Iterator[Any]:
    """The items, a few of them made ahead by a thread of their own: reading and working then overlap."""
    done = object()
    ready: queue.Queue[Any] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((done, None))
        except BaseException as error:  # it is raised again where the items are used
            put((done, error))
        finally:
            items.close()  # type: ignore[attr-defined]  # a generator

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is done:
                return
            yield item
    finally:
        stopped.set()
        thread.join()


def _pieces(chunk: _Chunk) -> Iterator[_Chunk]:
    if isinstance(chunk, tuple):
        line, table = chunk
        for start in range(0, table.num_rows, BATCH_ROWS):
            yield line + start, table.slice(start, BATCH_ROWS)
    else:
        for start in range(0, len(chunk), BATCH_ROWS):
            yield chunk[start : start + BATCH_ROWS]


def _column_names(chunk: _Chunk) -> list[str]:
    if isinstance(chunk, tuple):
        return list(chunk[1].column_names)
    names: dict[str, None] = {}
    for row in chunk[:_SNIFFED_ROWS]:
        if not isinstance(row.value, BadRow):
            names |= dict.fromkeys(map(str, row.value))
    return list(names)


def _text_table(table: Any, layout: Layout) -> Any:
    """The table with question and answer under these names, or None where they or another column are no texts."""
    import pyarrow

    if not layout.plain:
        return None
    names = {layout.question: "question", layout.answer: "answer"}
    columns = {}
    for column, values in zip(table.column_names, table.columns, strict=True):
        coded = pyarrow.types.is_dictionary(values.type)
        kind = values.type.value_type if coded else values.type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            return None
        if coded:
            values = values.cast(kind)
        if column in names or column not in names.values():
            columns[names.get(column, column)] = values
    if "question" not in columns or "answer" not in columns:
        return None
    if columns["question"].null_count or columns["answer"].null_count:
        return None
    return pyarrow.table(columns)


def _table_batch(
    chunk: tuple[int, Any], texts: Any, layout: Layout, first: int, file: int, name: str, bad: BadRows
) -> Batch:
    """A batch from an Arrow table: column by column where all is text, else row by row."""
    import pyarrow

    line, table = chunk
    if texts is not None:
        try:
            texts.validate(full=True)
        except pyarrow.ArrowInvalid:
            texts = None
    if texts is not None:
        batch = TableBatch(texts, range(first, first + texts.num_rows))
        if _is_stripped(texts.column("question")) and _is_stripped(texts.column("answer")):
            bad.num_rows += len(batch)
            return batch
        questions, answers = [[text.strip() for text in part] for part in (batch.questions, batch.answers)]
        if all(questions) and all(answers):
            bad.num_rows += len(batch)
            return Batch(batch.rows, batch.given_ids, questions, answers, batch.others)
    try:
        values = table.to_pylist()
    except UnicodeDecodeError:
        values = [_python_row(table.slice(i, 1)) for i in range(table.num_rows)]
    rows = [
        _Row(line + i, BadRow("encoding", f"{name}: row {line + i} is not UTF-8") if value is None else value)
        for i, value in enumerate(values)
    ]
    return _rows_batch(rows, layout, first, file, name, bad)


def _is_stripped(texts: Any) -> bool:
    """Whether no text of an Arrow column is empty or starts or ends with white space."""
    import pyarrow
    import pyarrow.compute as pc

    for start, stop in ((0, 1), (-1, None)):
        ends = pc.unique(pc.binary_slice(texts.cast(pyarrow.binary()), start, stop)).to_pylist()
        if not all(end.isascii() for end in ends):  # a byte is not a character then
            ends = [end.encode() for end in pc.unique(pc.utf8_slice_codeunits(texts, start, stop)).to_pylist()]
        if any(not end.decode().strip() for end in ends):
            return False
    return True


def _python_row(table: Any) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = table.to_pylist()[0]
    except UnicodeDecodeError:
        return None
    return row


def _rows_batch(rows: list[_Row], layout: Layout | None, first: int, file: int, name: str, bad: BadRows) -> Batch:
    numbers: list[int] = []
    batch = Batch(numbers, [], [], [], {})
    skipped = {*layout.used, "id"} if layout is not None else set()
    for number, row in enumerate(rows, first):
        bad.num_rows += 1
        try:
            if isinstance(row.value, BadRow):
                raise row.value
            assert layout is not None  # found in the first chunk that holds a row
            try:
                question, answer = layout.read(row.value)
                others = _others(row.value, skipped)
            except BadRow as fault:
                raise BadRow(fault.kind, f"{name}: row {row.line}: {fault.message}") from None
        except BadRow as fault:
            bad.add(fault.kind, file, row.line, fault.message)
            continue
        bad.turns_left_out += turns_left_out(layout, row.value)
        identifier = row.value.get("id")
        for column in others:
            if column not in batch.others:
                batch.others[column] = [None] * len(batch)
        numbers.append(number)
        batch.given_ids.append(str(identifier) if isinstance(identifier, str | int) and identifier != "" else None)
        batch.questions.append(question)
        batch.answers.append(answer)
        for column, values in batch.others.items():
            values.append(others.get(column))
    return batch


def _others(row: Mapping[str, Any], skipped: set[str]) -> dict[str, str]:
    found = {}
    for column, value in row.items():
        if value is not None and column not in skipped:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            if _is_broken(text) or _is_broken(str(column)):
                raise BadRow("encoding", f"column {str(column)[:40]!r} holds a broken character")
            found[str(column)] = text
    return found


def _make_id(number: int, question: str, answer: str) -> str:
    text = f"[{number},{_encode_string(question)},{_encode_string(answer)}]"  # their canonical JSON
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def json_lines(batch: Batch) -> list[str]:
    """The batch's examples as JSON lines with sorted keys, as json.dumps(…, ensure_ascii=False) writes them."""
    columns: dict[str, Sequence[str | None]] = dict(batch.others)
    columns |= {"id": batch.ids, "question": batch.questions, "answer": batch.answers}
    names = sorted(columns)
    rows = zip(*(columns[name] for name in names), strict=True)
    if not any(None in values for values in batch.others.values()):
        # Every row has the same names: filling in a form is three times as fast as dumping dictionaries.
        form = "{" + ", ".join(_encode_string(name).replace("%", "%%") + ": %s" for name in names) + "}\n"
        return [form % tuple(map(_encode_string, row)) for row in rows]
    lines = []
    for values in rows:
        row = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        lines.append(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
    return lines
