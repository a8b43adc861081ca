"""The files of a split: written in one pass over the batches, and read again to count what leaked."""

from __future__ import annotations

import shutil
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedmed_cli.data.examples import SITE_COLUMN
from fedmed_cli.data.near_duplicates import Sketches, tokens
from fedmed_cli.data.partition import NOWHERE, SETS
from fedmed_cli.data.row_index import repeated_keys
from fedmed_cli.data.sources import Batch, TableBatch, json_lines
from fedmed_cli.workspace.durable import sync_tree

Format = Literal["jsonl", "parquet"]
FORMATS: tuple[Format, ...] = ("jsonl", "parquet")
BUFFER_BYTES = 32_000_000
NEAR_MARGIN = 0.1  # estimates of 64 values scatter by 0.06
MAX_NEAR_PAIRS = 50_000
MAX_PARQUET_SITES = 100
_SHARED = (SETS.index("coordinator"), SETS.index("test"))


def file_names(folder: Path, names: Sequence[str], file_format: Format) -> list[str]:
    """The files of a split, relative to its folder. The shared ones are JSON lines always; an empty set has none."""
    own = [f"{name}/{part}.{file_format}" for name in names for part in ("train", "validation")]
    return [name for name in (*own, "coordinator.jsonl", "test.jsonl") if (folder / name).exists()]


def write_sets(
    folder: Path,
    batches: Iterable[Batch],
    places: NDArray[np.int32],
    names: Sequence[str],
    columns: Iterable[str],
    file_format: Format = "jsonl",
    progress: Callable[[int], None] = lambda rows: None,
) -> None:
    """Write each row to the file of its place, keeping the order of the input; every file reaches the disk.

    A site's part of coordinator.jsonl and test.jsonl follows the part of the site before.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name in names:
        (folder / name).mkdir(parents=True)
    writer = _Lines(folder, names)
    tables = _Tables(folder, names, columns) if file_format == "parquet" else None
    done = 0
    for batch in batches:
        here = places[done : done + len(batch)]
        if len(here) != len(batch):
            raise RuntimeError("the second pass found other rows than the first")
        order = np.argsort(here, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(here[order])) + 1):
            place = int(here[rows[0]])
            if place == NOWHERE:
                continue
            if tables is not None and place % len(SETS) not in _SHARED:
                tables.add(place, batch, rows)
            else:
                writer.add(place, batch, rows)
        writer.end_batch()
        done += len(batch)
        progress(done)
    if done != len(places):
        raise RuntimeError("the second pass found other rows than the first")
    writer.close()
    if tables is not None:
        tables.close()
    sync_tree(folder)


class _Lines:
    """JSON lines files, appended to from one buffer, so that a thousand sites need no thousand open files."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names
        self.parts = folder / ".parts"
        self.parts.mkdir()
        self.buffers: dict[int, list[str]] = {}
        self.size = 0
        self.lines: list[str] | None = None

    def add(self, place: int, batch: Batch, rows: NDArray[np.int64]) -> None:
        site, kind = divmod(place, len(SETS))
        if kind in _SHARED:
            own = batch.take(rows.tolist())
            others = own.others | {SITE_COLUMN: [self.names[site]] * len(own)}
            lines = json_lines(Batch(own.rows, own.given_ids, own.questions, own.answers, others))
        else:
            if self.lines is None:
                self.lines = json_lines(batch)
            lines = [self.lines[row] for row in rows.tolist()]
        text = "".join(lines)
        self.buffers.setdefault(place, []).append(text)
        self.size += len(text)

    def end_batch(self) -> None:
        self.lines = None
        if self.size >= BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        for place, texts in self.buffers.items():
            with self._path(place).open("ab") as file:
                file.write("".join(texts).encode("utf-8"))
        self.buffers, self.size = {}, 0

    def _path(self, place: int) -> Path:
        site, kind = divmod(place, len(SETS))
        if kind in _SHARED:
            return self.parts / f"{SETS[kind]}-{site}"
        return self.folder / self.names[site] / f"{SETS[kind]}.jsonl"

    def close(self) -> None:
        self.flush()
        for kind in _SHARED:
            paths = [self._path(site * len(SETS) + kind) for site in range(len(self.names))]
            paths = [path for path in paths if path.exists()]
            if paths:
                with (self.folder / f"{SETS[kind]}.jsonl").open("wb") as file:
                    for path in paths:
                        with path.open("rb") as part:
                            shutil.copyfileobj(part, file, 1 << 20)
        shutil.rmtree(self.parts)


class _Tables:
    """Parquet files of texts: the columns id, question, answer and all others of the data."""

    def __init__(self, folder: Path, names: Sequence[str], columns: Iterable[str]) -> None:
        import pyarrow
        import pyarrow.parquet

        self.columns = sorted({*columns, "id", "question", "answer"})
        self.schema = pyarrow.schema([(name, pyarrow.string()) for name in self.columns])
        self.folder, self.names = folder, names
        self.writers: dict[int, Any] = {}
        self.thread = ThreadPoolExecutor(1)
        self.waiting: deque[Future[None]] = deque()
        self.pending: dict[int, list[Any]] = {}
        self.table: tuple[Batch, Any] | None = None

    def add(self, place: int, batch: Batch, rows: NDArray[np.int64]) -> None:
        import pyarrow

        if self.table is None or self.table[0] is not batch:
            self.table = (batch, self._table(batch))
        pending = self.pending.setdefault(place, [])
        pending.append(self.table[1].take(pyarrow.array(rows)))
        if sum(part.nbytes for part in pending) > max(BUFFER_BYTES // len(self.pending), 1_000_000):
            self._write(place)

    def _table(self, batch: Batch) -> Any:
        import pyarrow

        missing: list[str | None] = [None] * len(batch)
        if isinstance(batch, TableBatch) and batch.all_have_ids:
            found = batch.table
            absent = pyarrow.array(missing, pyarrow.string())
            arrays = [found.column(name) if name in found.column_names else absent for name in self.columns]
            return pyarrow.Table.from_arrays(arrays, self.columns).cast(self.schema)
        given = dict(batch.others) | {"id": batch.ids, "question": batch.questions, "answer": batch.answers}
        arrays = [pyarrow.array(given.get(name, missing), pyarrow.string()) for name in self.columns]
        return pyarrow.Table.from_arrays(arrays, schema=self.schema)

    def _write(self, place: int) -> None:
        import pyarrow
        import pyarrow.parquet

        site, kind = divmod(place, len(SETS))
        if place not in self.writers:
            path = self.folder / self.names[site] / f"{SETS[kind]}.parquet"
            self.writers[place] = pyarrow.parquet.ParquetWriter(
                path, self.schema, compression="lz4", use_dictionary=False, write_statistics=False
            )
        # One thread writes, in order, while the next batches are made; at most two tables wait.
        while len(self.waiting) >= 2:
            self.waiting.popleft().result()
        table = pyarrow.concat_tables(self.pending[place])
        self.waiting.append(self.thread.submit(self.writers[place].write_table, table))
        self.pending[place] = []

    def close(self) -> None:
        for place, pending in self.pending.items():
            if pending:
                self._write(place)
        for written in self.waiting:
            written.result()
        for writer in self.writers.values():
            writer.close()
        self.thread.shutdown()


# --- the check ----------------------------------------------------------------------------------------


def count_leaks(folder: Path, files: Sequence[str], group_by: str | None) -> dict[str, int]:
    """Read the written files again, with another reader and other digests, and count what is in two of them.

    Returns the number of rows, and of texts and groups that stand in more than one file. Whole texts are read
    where a question stands in more than one.
    """
    questions, groups, places = array("Q"), array("Q"), array("i")
    for number, name in enumerate(files):
        for asked, *values in _written(folder / name, "question", *([group_by] if group_by else [])):
            questions.extend([_digest(_plain(question)) for question in asked])
            for column in values:
                groups.extend([_digest(value.encode()) if value else 0 for value in column])
            places.extend([number] * len(asked))
    torn = set(_in_two(questions, places).tolist())
    texts, homes = array("Q"), array("i")
    for number, name in enumerate(files if torn else ()):
        for asked, answers in _written(folder / name, "question", "answer"):
            pairs = [pair for pair in zip(asked, answers, strict=True) if _digest(_plain(pair[0])) in torn]
            texts.extend(_text_digest(*pair) for pair in pairs)
            homes.extend([number] * len(pairs))
    return {
        "rows": len(places),
        "texts_in_two_sets": len(_in_two(texts, homes)),
        "groups_in_two_sets": len(_in_two(groups, places)) if group_by else 0,
    }


def find_near_leaks(
    folder: Path, files: Sequence[str], similarity: float, scratch: Path
) -> tuple[int, list[tuple[int, int]]]:
    """Search the written files for near-duplicates in two of them, with other hash functions than the division's.

    Pairs that look alike are compared by the exact Jaccard similarity of their words and word pairs. Returns
    how many pairs were compared, and those of at least `similarity`: a row's number counts through all files.
    """
    sketches, places = Sketches(scratch, other=True), array("i")
    try:
        for number, name in enumerate(files):
            for questions, answers in _written(folder / name, "question", "answer"):
                sketches.add(questions, answers)
                places.extend([number] * len(questions))
        first, second = sketches.across(np.frombuffer(places, dtype=np.int32), similarity - NEAR_MARGIN, MAX_NEAR_PAIRS)
    finally:
        sketches.close()
    wanted, texts, row = set(first.tolist()) | set(second.tolist()), {}, 0
    for name in files if wanted else ():
        for questions, answers in _written(folder / name, "question", "answer"):
            for question, answer in zip(questions, answers, strict=True):
                if row in wanted:
                    texts[row] = set(tokens(question, answer))
                row += 1
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    return len(pairs), [(a, b) for a, b in pairs if len(texts[a] & texts[b]) >= similarity * len(texts[a] | texts[b])]


def written_rows(places: NDArray[np.int32], num_sites: int) -> NDArray[np.int64]:
    """The input's row for each row of the files, counted through all files in the order of `file_names`."""
    order = np.argsort(places, kind="stable")
    bounds = np.searchsorted(places[order], np.arange(num_sites * len(SETS) + 1))
    parts = [order[bounds[place] : bounds[place + 1]] for place in range(num_sites * len(SETS))]
    own = [
        parts[site * len(SETS) + kind] for site in range(num_sites) for kind in range(len(SETS)) if kind not in _SHARED
    ]
    shared = [parts[site * len(SETS) + kind] for kind in _SHARED for site in range(num_sites)]
    return np.concatenate([*own, *shared])


def _digest(data: bytes) -> int:
    return xxhash.xxh64_intdigest(data) or 1


def _text_digest(question: str, answer: str) -> int:
    return _digest(_plain(question) + b"\x00" + _plain(answer))


def _plain(text: str) -> bytes:
    data = text.encode() if text.isascii() else text.casefold().encode()
    return data.lower().translate(None, b" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f")


def _in_two(digests: array[int], homes: array[int]) -> NDArray[np.uint64]:
    """The digests other than 0 that stand in more than one place."""
    keys, places = np.frombuffer(digests, dtype=np.uint64), np.frombuffer(homes, dtype=np.int32)
    repeated = np.isin(keys, repeated_keys(keys))
    keys, places = keys[repeated], places[repeated]
    order = np.argsort(keys, kind="stable")
    keys, places = keys[order], places[order]
    torn = (keys[1:] == keys[:-1]) & (places[1:] != places[:-1]) & (keys[1:] != 0)
    return np.unique(keys[1:][torn])


def _written(path: Path, *columns: str) -> Iterator[list[list[Any]]]:
    """These columns of a file that a split wrote, by pyarrow's own readers."""
    import pyarrow
    import pyarrow.json
    import pyarrow.parquet

    if path.suffix == ".parquet":
        batches: Any = pyarrow.parquet.ParquetFile(path, pre_buffer=False).iter_batches(20_000, columns=list(columns))
    else:
        schema = pyarrow.schema([(name, pyarrow.string()) for name in columns])
        parse = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        with path.open("rb") as file:
            longest = max(map(len, file))
        read = pyarrow.json.ReadOptions(block_size=max(4_000_000, 2 * longest))  # many are read ahead
        batches = pyarrow.json.open_json(path, read, parse)
    for batch in batches:
        yield [batch.column(name).to_pylist() for name in columns]
