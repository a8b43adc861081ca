"""The files of a split, written in one pass over the batches."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from fedmed_cli.data.batches import Batch, as_texts, json_lines
from fedmed_cli.data.examples import SITE_COLUMN
from fedmed_cli.data.leakage_groups import Ints
from fedmed_cli.data.partition import NOWHERE, SETS
from fedmed_cli.data.split_options import Format
from fedmed_cli.workspace.durable import sync_tree

BUFFER_BYTES = 32_000_000
_SHARED = (SETS.index("coordinator"), SETS.index("test"))  # one file for all sites


def file_names(folder: Path, names: Sequence[str], file_format: Format) -> list[str]:
    """The files of a split, relative to its folder. The shared ones are JSON lines always; an empty set has none."""
    site_files = [f"{name}/{part}.{file_format}" for name in names for part in ("train", "validation")]
    return [name for name in (*site_files, "coordinator.jsonl", "test.jsonl") if (folder / name).exists()]


def written_rows(assignment: Ints, num_sites: int) -> NDArray[np.int64]:
    """The input's row for each row of the files, counted through all files in the order of `file_names`."""
    place = np.arange(num_sites * len(SETS))
    site, kind = np.divmod(place, len(SETS))
    rank = np.where(np.isin(kind, _SHARED), (kind + 1) * len(place) + site, place)  # the shared files come last
    rows = np.flatnonzero(assignment != NOWHERE)
    return rows[np.argsort(rank[assignment[rows]], kind="stable")]


def write_sets(
    folder: Path,
    batches: Iterable[Batch],
    assignment: Ints,
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
    lines = _Lines(folder, names)
    tables = _Tables(folder, names, columns) if file_format == "parquet" else None
    num_done = 0
    for batch in batches:
        for place, rows in _group_by_place(assignment[num_done : num_done + len(batch)], batch):
            if tables is not None and place % len(SETS) not in _SHARED:
                tables.add(place, batch, rows)
            else:
                lines.add(place, batch, rows)
        lines.end_batch()
        num_done += len(batch)
        progress(num_done)
    if num_done != len(assignment):
        raise RuntimeError("the second pass found other rows than the first")
    lines.close()
    if tables is not None:
        tables.close()
    sync_tree(folder)


def _group_by_place(places: Ints, batch: Batch) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each place of a batch's rows, with its rows."""
    if len(places) != len(batch):
        raise RuntimeError("the second pass found other rows than the first")
    order = np.argsort(places, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(places[order])) + 1):
        if places[rows[0]] != NOWHERE:
            yield int(places[rows[0]]), rows


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
            part = batch.take(rows)
            lines = json_lines(
                replace(part, others={**part.others, SITE_COLUMN: as_texts([self.names[site]] * len(part))})
            )
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
        self.columns = sorted({*columns, "id", "question", "answer"})
        self.schema = pyarrow.schema([(name, pyarrow.string()) for name in self.columns])
        self.folder, self.names = folder, names
        self.writers: dict[int, Any] = {}
        self.thread = ThreadPoolExecutor(1)
        self.waiting: deque[Future[None]] = deque()
        self.pending: dict[int, list[Any]] = {}
        self.table: tuple[Batch, Any] | None = None

    def add(self, place: int, batch: Batch, rows: NDArray[np.int64]) -> None:
        if self.table is None or self.table[0] is not batch:
            self.table = (batch, self._table(batch))
        pending = self.pending.setdefault(place, [])
        pending.append(self.table[1].take(pyarrow.array(rows)))
        if sum(part.nbytes for part in pending) > max(BUFFER_BYTES // len(self.pending), 1_000_000):
            self._write(place)

    def _table(self, batch: Batch) -> Any:
        columns = {name: batch.column(name) for name in self.columns}
        columns |= {"id": as_texts(batch.ids), "question": batch.question_texts, "answer": batch.answer_texts}
        return pyarrow.table(columns).cast(self.schema)

    def _write(self, place: int) -> None:
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
