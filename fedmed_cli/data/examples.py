"""Examples as fedmed keeps them, read and written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedmed_cli.data.sources import DEFAULT_MAX_BAD, BadRows, Source
from fedmed_cli.errors import InputError
from fedmed_cli.records.digests import sha256_json

SITE_COLUMN = "fedmed_site"
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Example:
    """One question and answer. `columns` holds the other columns of its row, as text."""

    id: str
    question: str
    answer: str
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def text_key(self) -> str:
        """Equal for two examples with the same question and answer, up to case and white space."""
        return sha256_json([_SPACE.sub(" ", part).strip().casefold() for part in (self.question, self.answer)])

    def group(self, column: str | None) -> str:
        """What may not be torn apart: the value of `column`, or else the example's own text."""
        value = self.columns.get(column, "") if column else ""
        return f"{column}={value}" if value else self.text_key


@dataclass(frozen=True)
class Dataset:
    """Examples with where they came from: `source` is corpus, file or hub. `bad` counts the rows left out."""

    examples: list[Example]
    source: str
    digest: str
    label_column: str | None = None
    group_column: str | None = None
    bad: BadRows = field(default_factory=BadRows)


def read_dataset(
    name: str | Sequence[str],
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    max_bad: float = DEFAULT_MAX_BAD,
    folder: Path | None = None,
) -> Dataset:
    """Read all of `name` (or of several files) into memory; see `sources.Source` for what it may be.

    Rows that are not valid examples are left out and counted, up to the share `max_bad` of all rows. `folder` takes
    the rows of a hub id. InputError (exit code 3) names the file and the row, and never quotes a value.
    """
    source = Source([name] if isinstance(name, str) else name, columns, limit)
    if folder is not None:
        source.fetch(folder)
    bad = BadRows()
    examples = _examples(source, bad)
    bad.check(max_bad)
    if not examples:
        raise InputError(f"{source.title}: holds no example")
    return Dataset(examples, source.kind, source.digest(), source.label_column, source.group_column, bad)


def _examples(source: Source, bad: BadRows) -> list[Example]:
    examples = []
    for batch in source.batches(bad):
        for i, (identifier, question, answer) in enumerate(zip(batch.ids, batch.questions, batch.answers, strict=True)):
            others = {column: value for column, values in batch.others.items() if (value := values[i]) is not None}
            examples.append(Example(identifier, question, answer, others))
    return examples


def to_jsonl(examples: Iterable[Example], extra: Callable[[Example], Mapping[str, str]] | None = None) -> bytes:
    """Examples as the JSON lines that `read_jsonl` reads; `extra` adds columns."""
    lines = []
    for example in examples:
        row = dict(example.columns) | (dict(extra(example)) if extra else {})
        row |= {"id": example.id, "question": example.question, "answer": example.answer}
        lines.append(json.dumps(row, ensure_ascii=False, sort_keys=True))
    return "".join(line + "\n" for line in lines).encode("utf-8")


def read_jsonl(path: Path) -> list[Example]:
    """Read examples that fedmed wrote (`data/…`); where a split wrote Parquet, the file of that type beside it."""
    path = find_set(path) or path
    bad = BadRows()
    examples = _examples(Source([str(path)], {"question": "question", "answer": "answer"}), bad)
    bad.check(0.0)
    return examples


def find_set(path: Path) -> Path | None:
    """`path`, or the Parquet file of the same name beside it; None where there is neither."""
    return next((found for found in (path, path.with_suffix(".parquet")) if found.exists()), None)


def home_site(example: Example) -> str:
    """The site that a coordinator or test example was taken from; empty where nobody said."""
    return example.columns.get(SITE_COLUMN, "")


def set_digest(examples: Iterable[Example]) -> str:
    """Digest of a set of examples: their questions and answers in order."""
    return sha256_json([[example.question, example.answer] for example in examples])
