"""Examples as fedmed keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedmed_cli.data import same_text
from fedmed_cli.data.bad_rows import DEFAULT_MAX_BAD, BadRows
from fedmed_cli.data.batches import Batch
from fedmed_cli.data.sources import Source
from fedmed_cli.records.digests import sha256_json

SITE_COLUMN = "fedmed_site"


@dataclass(frozen=True)
class Example:
    """One question and answer. `columns` holds the other columns of its row, as text."""

    id: str
    question: str
    answer: str
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def text_digest(self) -> str:
        """Equal for two examples with the same question and answer, up to case and white space."""
        return same_text.text_digest(self.question, self.answer)

    def group(self, column: str | None) -> str:
        """What must not be divided: the value of `column`, or else the example's own text."""
        return same_text.group_name(self.question, self.answer, column, self.columns.get(column or ""))


def from_batch(batch: Batch) -> list[Example]:
    """The examples of a batch; a missing value has no column."""
    columns = {name: texts.to_pylist() for name, texts in batch.others.items()}
    rows = enumerate(zip(batch.ids, batch.questions, batch.answers, strict=True))
    return [
        Example(*texts, {name: value for name, values in columns.items() if (value := values[i]) is not None})
        for i, texts in rows
    ]


def read_examples(source: Source, max_bad: float = DEFAULT_MAX_BAD) -> list[Example]:
    """All examples of a source, into memory. InputError where more than the share `max_bad` of its rows are bad."""
    bad = BadRows()
    examples = [example for batch in source.batches(bad) for example in from_batch(batch)]
    bad.check(max_bad)
    return examples


def read_jsonl(path: Path) -> list[Example]:
    """Read examples that fedmed wrote (`data/…`); where a split wrote Parquet, the file of that type beside it."""
    path = find_set(path) or path
    return read_examples(Source([str(path)], {"question": "question", "answer": "answer"}), max_bad=0.0)


def find_set(path: Path) -> Path | None:
    """`path`, or the Parquet file of the same name beside it; None where there is neither."""
    return next((file for file in (path, path.with_suffix(".parquet")) if file.exists()), None)


def home_site(example: Example) -> str:
    """The site that a coordinator or test example was taken from; empty where nobody said."""
    return example.columns.get(SITE_COLUMN, "")


def set_digest(examples: Iterable[Example]) -> str:
    """Digest of a set of examples: their questions and answers in order."""
    return sha256_json([[example.question, example.answer] for example in examples])
