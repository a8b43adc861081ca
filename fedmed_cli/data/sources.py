"""Where examples come from: the bundled corpus, files, or a data set of the hub, read as often as needed."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from fedmed_cli.data import corpus
from fedmed_cli.data.bad_rows import BadRow, BadRows
from fedmed_cli.data.batches import Batch, check_columns, make_batch
from fedmed_cli.data.columns import Layout, find_layout
from fedmed_cli.data.formats import (
    BATCH_ROWS,
    MAX_ROWS,
    OBJECT_TYPES,
    PARSERS,
    Chunk,
    Row,
    TableChunk,
    file_type,
    open_file,
    read_chunks,
    table_rows,
)
from fedmed_cli.errors import ConflictError, InputError, MachineError
from fedmed_cli.records.codec import parse_json, read_file
from fedmed_cli.records.digests import sha256_json

CORPUS = "corpus"
_SNIFFED_ROWS = 100


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
        if CORPUS in self.names:
            if len(self.names) > 1:
                raise InputError("the corpus cannot be mixed with other data")
            self.kind, self.label_column, self.group_column = "corpus", corpus.LABEL_COLUMN, corpus.GROUP_COLUMN
        elif len(self.names) == 1 and not Path(self.names[0]).expanduser().exists() and _is_hub_id(self.names[0]):
            self.kind = "hub"
        else:
            self.paths = [path for name in self.names for path in _find_files(name)]
        self._states = [_read_state(path) for path in self.paths]

    @property
    def title(self) -> str:
        """How messages call the data."""
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]} and {len(self.names) - 1} more"

    @property
    def has_patients(self) -> bool:
        """Whether the examples may be of patients: all are but those of the bundled corpus."""
        return self.kind != "corpus"

    def fetch(self, folder: Path) -> None:
        """Bring a hub id's rows into `folder`, streamed, so that they can be read more than once."""
        if self.kind == "hub" and not self.paths:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "rows.jsonl"
            with path.open("w", encoding="utf-8") as file:
                for row in itertools.islice(_stream_hub_rows(self.names[0]), self.limit):
                    file.write(json.dumps(row, default=str) + "\n")
            self.paths = [path]
            self._states = [_read_state(path)]

    def digest(self) -> str:
        """SHA-256 of what was read: the file's bytes, or the digest of several files' digests."""
        if not self._digest:
            if self.kind == "corpus":
                self._digest = sha256_json(corpus.examples()[: self.limit])
            else:
                digests = [_digest_file(path) for path in self.paths]
                self._digest = digests[0] if len(digests) == 1 else sha256_json(digests)
        return self._digest

    def check_unchanged(self) -> None:
        """ConflictError where a file is not as it was when the source was opened."""
        for path, state in zip(self.paths, self._states, strict=True):
            if _read_state(path) != state:
                raise ConflictError(f"{path} changed while it was read", hint="run the command again; nothing was kept")

    def batches(self, bad: BadRows | None = None) -> Iterator[Batch]:
        """The examples in order. Rows that are none are told to `bad`, whose `num_rows` counts all rows."""
        bad = bad if bad is not None else BadRows()
        if self.kind == "hub" and not self.paths:
            raise RuntimeError("fetch() comes first")
        layout: Layout | None = None
        columns: set[str] = set()
        for number, name, chunk in _read_ahead(self._limited_chunks()):
            if layout is None:
                layout = self._find_layout(chunk, number, name)
            batch = make_batch(chunk, layout, number, name, bad)
            columns.update(batch.others)
            check_columns(columns, name)
            if bad.num_rows > MAX_ROWS:
                raise InputError(f"{name}: more than {MAX_ROWS:,} rows", hint="use a part of the data")
            if len(batch):
                yield batch
        if not bad.num_rows:
            raise InputError(f"{self.title}: holds no example")

    def _find_layout(self, chunk: Chunk, file: int, name: str) -> Layout | None:
        """The layout by the first rows of a file; None where all are bad."""
        if isinstance(chunk, TableChunk):
            rows = [chunk.table.column_names] * len(chunk[:_SNIFFED_ROWS])
        else:
            rows = [list(row.value) for row in chunk if not isinstance(row.value, BadRow)][:_SNIFFED_ROWS]
        if not rows:
            return None
        names = list(dict.fromkeys(str(column) for row in rows for column in row))
        # Objects that all have the same keys; the names of a table may be its first row of data.
        has_keys = bool(self.paths) and file_type(self.paths[file - 1]) in OBJECT_TYPES
        is_header = has_keys and len(rows) > 1 and all(len(row) == len(names) for row in rows)
        return find_layout(names, self.columns, name, is_header)

    def _limited_chunks(self) -> Iterator[tuple[int, str, Chunk]]:
        """Chunks of at most BATCH_ROWS rows with their file's number and name, up to the limit."""
        num_left = self.limit
        for number, name, chunk in self._chunks():
            for start in range(0, len(chunk), BATCH_ROWS):
                part = chunk[start : start + BATCH_ROWS][:num_left]
                yield number, name, part
                if num_left is not None:
                    num_left -= len(part)
                    if not num_left:
                        return

    def _chunks(self) -> Iterator[tuple[int, str, Chunk]]:
        if self.kind == "corpus":
            yield 1, CORPUS, [Row(number, row) for number, row in enumerate(corpus.examples(), 1)]
        for number, path in enumerate(self.paths, 1):
            name = self.names[0] if self.kind == "hub" else str(path)
            for chunk in read_chunks(path, name):
                yield number, name, chunk


def raw_rows(name: str) -> Iterator[Row]:
    """The rows of a file (or of a folder's files) as they are, nested values included."""
    for path in _find_files(name):
        for chunk in read_chunks(path, str(path)):
            yield from table_rows(chunk, str(path)) if isinstance(chunk, TableChunk) else chunk


# --- finding the files ------------------------------------------------------------------------------


def _is_hub_id(name: str) -> bool:
    stem = name.partition(":")[0]
    looks_like_path = name.startswith((".", "/", "~")) or file_type(Path(name)) is not None or glob.has_magic(name)
    return not looks_like_path and stem.count("/") == 1


def _find_files(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        return _list_folder(path)
    if path.exists():
        return [path]
    if glob.has_magic(str(path)):
        paths = [Path(part) for part in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(part)]
        if not paths:
            raise InputError(f"{name}: no file has such a name")
        return paths
    raise InputError(f"{path}: no such file", hint="name a data file, a hub id such as owner/name, or 'corpus'")


def _list_folder(path: Path) -> list[Path]:
    """The files of a folder that `datasets` saved, else all data files in the folder, sorted by name."""
    state = path / "state.json"
    if state.exists():
        try:
            entries = parse_json(read_file(state), str(state))["_data_files"]
            names = [entry["filename"] for entry in entries]
        except (KeyError, TypeError):
            raise InputError(f"{state}: is not what the datasets library writes") from None
        return [path / Path(str(name)).name for name in names]
    sets = sorted(part.parent.name for part in path.glob("*/state.json"))
    if len(sets) > 1:
        raise InputError(
            f"{path}: holds {len(sets)} sets: {', '.join(part[:40] for part in sets[:20])}",
            hint=f"name one, such as {path / sets[0]}, or several with more than one --dataset",
        )
    if sets:
        return _list_folder(path / sets[0])
    files = sorted(part for part in path.iterdir() if part.is_file() and file_type(part))
    if not files:
        raise InputError(f"{path}: is a folder without data files, expected one of {', '.join(PARSERS)}")
    return files


def _read_state(path: Path) -> tuple[int, int]:
    """A file's size and time, by which a change is noticed."""
    try:
        state = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return state.st_size, state.st_mtime_ns


def _digest_file(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stream_hub_rows(name: str) -> Iterator[Mapping[str, Any]]:
    import datasets

    repository, _, split = name.partition(":")
    try:
        yield from datasets.load_dataset(repository, split=split or "train", streaming=True)
    except Exception as error:  # the hub's client raises many kinds; all mean that the data set is unavailable
        raise MachineError(
            f"the data set {name!r} could not be loaded from the hub ({type(error).__name__})",
            hint="check the name (owner/name or owner/name:split) and the network, or give a local file",
        ) from None


# --- reading ahead ----------------------------------------------------------------------------------


def _read_ahead(items: Iterator[Any], depth: int = 3) -> Iterator[Any]:
    """The items, a few of them made ahead by a thread of their own: reading and working then overlap."""
    with ThreadPoolExecutor(1) as pool:
        try:
            ready = deque(pool.submit(next, items, None) for _ in range(depth))
            while (item := ready.popleft().result()) is not None:
                ready.append(pool.submit(next, items, None))
                yield item
        finally:
            pool.submit(items.close)  # type: ignore[attr-defined]  # a generator
