"""The files of a split, read again by other code with other digests, to find what is in two of them."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.json
import pyarrow.parquet
import xxhash
from numpy.typing import NDArray

from fedmed_cli.data.near_duplicates import MinHashIndex, tokens
from fedmed_cli.data.row_index import repeated_keys

NEAR_MARGIN = 0.1  # estimates of 64 values scatter by 0.06
MAX_NEAR_PAIRS = 50_000


def count_leaks(folder: Path, files: Sequence[str], group_by: str | None) -> dict[str, int]:
    """Count the rows, and the texts and groups that are in more than one file.

    Whole texts are read where a question is in more than one.
    """
    questions, groups, file_of = array("Q"), array("Q"), array("i")
    for number, name in enumerate(files):
        for batch_questions, *values in _read(folder / name, "question", *([group_by] if group_by else [])):
            questions.extend([_digest(_normalize(question)) for question in batch_questions])
            for column in values:
                groups.extend([_digest(value.encode()) if value else 0 for value in column])
            file_of.extend([number] * len(batch_questions))
    repeated = set(_find_in_two(questions, file_of).tolist())
    texts, file_of_text = array("Q"), array("i")
    for number, name in enumerate(files if repeated else ()):
        for batch in _read(folder / name, "question", "answer"):
            pairs = [pair for pair in zip(*batch, strict=True) if _digest(_normalize(pair[0])) in repeated]
            texts.extend(text_digest(*pair) for pair in pairs)
            file_of_text.extend([number] * len(pairs))
    return {
        "rows": len(file_of),
        "texts_in_two_sets": len(_find_in_two(texts, file_of_text)),
        "groups_in_two_sets": len(_find_in_two(groups, file_of)) if group_by else 0,
    }


def find_near_leaks(
    folder: Path, files: Sequence[str], similarity: float, scratch: Path
) -> tuple[int, NDArray[np.int64]]:
    """Search for near-duplicates in two files, with other hash functions than the division's.

    Pairs that look similar are compared by the exact Jaccard similarity of their words and word pairs. Returns
    how many pairs were compared, and those of at least `similarity`: (pairs, 2), rows counted through all files.
    """
    file_of = array("i")
    with contextlib.closing(MinHashIndex(scratch, other=True)) as minhash:
        for number, name in enumerate(files):
            for questions, answers in _read(folder / name, "question", "answer"):
                minhash.add(questions, answers)
                file_of.extend([number] * len(questions))
        places = np.frombuffer(file_of, dtype=np.int32)
        first, second = minhash.pairs_across(places, similarity - NEAR_MARGIN, MAX_NEAR_PAIRS)
    wanted, token_sets, row = set(first.tolist()) | set(second.tolist()), {}, 0
    for name in files if wanted else ():
        for questions, answers in _read(folder / name, "question", "answer"):
            for question, answer in zip(questions, answers, strict=True):
                if row in wanted:
                    token_sets[row] = set(tokens(question, answer))
                row += 1
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    near = [
        (a, b)
        for a, b in pairs
        if len(token_sets[a] & token_sets[b]) >= similarity * len(token_sets[a] | token_sets[b])
    ]
    return len(pairs), np.array(near, dtype=np.int64).reshape(-1, 2)


# What is the same text here is on purpose not what `same_text` says: a fault there must not hide itself.


def text_digest(question: str, answer: str) -> int:
    """64 bits of a text without case and white space."""
    return _digest(_normalize(question) + b"\x00" + _normalize(answer))


def _normalize(text: str) -> bytes:
    data = text.encode() if text.isascii() else text.casefold().encode()
    return data.lower().translate(None, b" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f")


def _digest(data: bytes) -> int:
    return xxhash.xxh64_intdigest(data) or 1


def _find_in_two(digests: array[int], file_of: array[int]) -> NDArray[np.uint64]:
    """The digests other than 0 that are in more than one file."""
    keys, files = np.frombuffer(digests, dtype=np.uint64), np.frombuffer(file_of, dtype=np.int32)
    repeated = np.isin(keys, repeated_keys(keys))
    keys, files = keys[repeated], files[repeated]
    order = np.argsort(keys, kind="stable")
    keys, files = keys[order], files[order]
    split = (keys[1:] == keys[:-1]) & (files[1:] != files[:-1]) & (keys[1:] != 0)
    return np.unique(keys[1:][split])


def _read(path: Path, *columns: str) -> Iterator[list[list[Any]]]:
    """These columns of a file that a split wrote, by pyarrow's own readers."""
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
