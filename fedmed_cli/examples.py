"""Read any common format into examples, and turn examples into prompts."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmed_cli import corpus
from fedmed_cli.digests import canonical_json, sha256_bytes, sha256_json
from fedmed_cli.errors import InputError, MachineError
from fedmed_cli.records import Prompt

SITE_COLUMN = "fedmed_site"
CORPUS = "corpus"
# Pairs of column names that hold a question and its answer, the first that fits is taken.
LAYOUTS = (
    ("question", "answer"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "response"),
    ("input", "output"),
)
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
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
    """Examples with where they came from: `source` is corpus, file or hub."""

    examples: list[Example]
    source: str
    digest: str
    label_column: str | None = None
    group_column: str | None = None


def read_dataset(name: str, columns: Mapping[str, str] | None = None, limit: int | None = None) -> Dataset:
    """Read `name`: "corpus", a file (JSON, JSONL, CSV, TSV, Parquet; .gz too) or a hub id.

    `columns` maps "question" and "answer" to the data's own column names. `limit` keeps the first rows.
    InputError (exit code 3) names the file and the row, and never quotes a value.
    """
    if name == CORPUS:
        rows = corpus.examples()[:limit]
        examples = [_example(row, number, ("question", "answer"), name) for number, row in enumerate(rows, 1)]
        return Dataset(examples, "corpus", sha256_json(rows), corpus.LABEL_COLUMN, corpus.GROUP_COLUMN)
    path = Path(name).expanduser()
    if path.exists() or _looks_like_path(name):
        data = _read(path)
        return Dataset(_to_examples(_rows(data, path), columns, limit, str(path)), "file", sha256_bytes(data))
    found, digest = _hub_rows(name)
    return Dataset(_to_examples(found, columns, limit, name), "hub", digest)


def _looks_like_path(name: str) -> bool:
    stem = name.removesuffix(".gz")
    return stem.endswith(_SUFFIXES) or name.startswith((".", "/", "~")) or name.count("/") != 1


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file", hint="name a data file, a hub id such as owner/name, or 'corpus'"
        ) from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, expected a data file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _rows(data: bytes, path: Path) -> Iterator[Mapping[str, Any]]:
    name = path.name.lower()
    if name.endswith(".gz"):
        name = name.removesuffix(".gz")
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            raise InputError(f"{path}: is not a whole gzip file") from None
    if name.endswith(".parquet"):
        return _parquet_rows(data, path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 at byte {error.start}", hint="save the file as UTF-8") from None
    if not text.strip():
        raise InputError(f"{path}: is empty")
    if name.endswith((".csv", ".tsv")):
        return _csv_rows(text, "\t" if name.endswith(".tsv") else ",", path)
    if name.endswith((".jsonl", ".ndjson")):
        return _jsonl_rows(text, path)
    if name.endswith(".json"):
        return _json_rows(text, path)
    raise InputError(
        f"{path}: unknown file type, expected one of {', '.join(_SUFFIXES)} (each also with .gz)",
        hint="rename the file to its type",
    )


def _jsonl_rows(text: str, path: Path) -> Iterator[Mapping[str, Any]]:
    # Only line feeds end a line: a JSON string may hold other line separators.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # ValueError: also a number with too many digits
                raise InputError(f"{path}: line {number} is not JSON") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}: line {number} is no JSON object")
            yield row


def _json_rows(text: str, path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: is not JSON at line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: nested too deep, or a number has too many digits") from None
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise InputError(f"{path}: expected a JSON list of objects")
    yield from value


def _csv_rows(text: str, delimiter: str, path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise InputError(f"{path}: row {number} has another number of fields than the header")
            yield row
    except csv.Error as error:
        raise InputError(f"{path}: is not CSV ({error})") from None


def _parquet_rows(data: bytes, path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    except (pyarrow.ArrowException, OSError):
        raise InputError(f"{path}: is not a readable Parquet file") from None
    for batch in table.to_batches(max_chunksize=4096):
        yield from batch.to_pylist()


def _hub_rows(name: str) -> tuple[Iterable[Mapping[str, Any]], str]:
    import datasets

    repository, _, split = name.partition(":")
    try:
        data = datasets.load_dataset(repository, split=split or "train")
    except Exception as error:  # the hub's client raises many kinds; all mean that the data are not to be had
        raise MachineError(
            f"the data set {name!r} could not be loaded from the hub ({type(error).__name__})",
            hint="check the name (owner/name or owner/name:split) and the network, or give a local file",
        ) from None
    return data, sha256_json([repository, split, data._fingerprint])


def _to_examples(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str] | None, limit: int | None, name: str
) -> list[Example]:
    examples: list[Example] = []
    layout: tuple[str, str] | None = None
    for number, row in enumerate(rows, 1):
        if limit is not None and number > limit:
            break
        layout = layout or _layout(row, columns, name)
        examples.append(_example(row, number, layout, name))
    if not examples:
        raise InputError(f"{name}: holds no example")
    return examples


def _layout(row: Mapping[str, Any], columns: Mapping[str, str] | None, name: str) -> tuple[str, str]:
    found = {str(column) for column in row}
    if columns:
        unknown = sorted(set(columns) - {"question", "answer"})
        if unknown:
            raise InputError(f"--columns maps {unknown[0]!r}, expected 'question' and 'answer'")
        wanted = (columns.get("question", "question"), columns.get("answer", "answer"))
        if found.issuperset(wanted):
            return wanted
    else:
        for layout in LAYOUTS:
            if found.issuperset(layout):
                return layout
    names = ", ".join(sorted(column[:40] for column in found)[:30])
    raise InputError(
        f"{name}: expected columns question and answer, found {names}",
        hint="say which they are, for example --columns question=Q,answer=A",
    )


def _example(row: Mapping[str, Any], number: int, layout: tuple[str, str], name: str) -> Example:
    texts = []
    for column in layout:
        value = row.get(column)
        if not isinstance(value, str) or not value.strip():
            found = "nothing" if value is None or value == "" else f"a value of type {type(value).__name__}"
            found = "white space only" if isinstance(value, str) and value else found
            raise InputError(f"{name}: row {number}: expected text in column {column!r}, found {found}")
        if max(value) >= "\ud800" and not _encodable(value):
            raise InputError(f"{name}: row {number}: column {column!r} holds a broken character")
        texts.append(value.strip())
    if layout == ("instruction", "output") and isinstance(row.get("input"), str) and row["input"].strip():
        texts[0] += "\n\n" + row["input"].strip()
    for column, value in row.items():
        if not _encodable(str(column)) or (isinstance(value, str) and not _encodable(value)):
            raise InputError(f"{name}: row {number}: a column holds a broken character")
    others = {
        str(column): value if isinstance(value, str) else json.dumps(value, default=str)
        for column, value in row.items()
        if column not in layout and column != "id" and value is not None
    }
    identifier = row.get("id")
    if not isinstance(identifier, str | int) or identifier == "":
        identifier = hashlib.sha256(canonical_json([number, *texts])).hexdigest()[:16]
    return Example(str(identifier), texts[0], texts[1], others)


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def to_jsonl(examples: Iterable[Example], extra: Callable[[Example], Mapping[str, str]] | None = None) -> bytes:
    """Examples as the JSON lines that `read_jsonl` reads; `extra` adds columns."""
    lines = []
    for example in examples:
        row = dict(example.columns) | (dict(extra(example)) if extra else {})
        row |= {"id": example.id, "question": example.question, "answer": example.answer}
        lines.append(json.dumps(row, ensure_ascii=False, sort_keys=True))
    return "".join(line + "\n" for line in lines).encode("utf-8")


def read_jsonl(path: Path) -> list[Example]:
    """Read examples that fedmed wrote (`data/…`)."""
    return _to_examples(_rows(_read(path), path), {"question": "question", "answer": "answer"}, None, str(path))


def home_site(example: Example) -> str:
    """The site that a coordinator or test example was taken from; empty where nobody said."""
    return example.columns.get(SITE_COLUMN, "")


def set_digest(examples: Iterable[Example]) -> str:
    """Digest of a set of examples: their questions and answers in order."""
    return sha256_json([[example.question, example.answer] for example in examples])


# --- prompts ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """One example as token ids: `ids[num_prompt:]` are the supervised answer tokens (end token included)."""

    ids: tuple[int, ...]
    num_prompt: int
    truncated: bool

    @property
    def num_supervised(self) -> int:
        return len(self.ids) - self.num_prompt


def prompt_messages(prompt: Prompt, question: str) -> list[dict[str, str]]:
    """The question as chat messages, as the plan's prompt wraps it."""
    user = {"role": "user", "content": prompt.user.replace("{question}", question)}
    return [{"role": "system", "content": prompt.system}, user] if prompt.system else [user]


def render(messages: list[dict[str, str]], tokenizer: Any) -> str:
    """The text a model continues with its answer, by the base model's own chat template.

    A template that refuses a system message gets its text in front of the first user message. A tokenizer
    without a template gets the plain form "Question: …\\nAnswer:".
    """
    if not tokenizer.chat_template:
        parts = []
        for message in messages:
            form = {"system": "{}\n\n", "user": "Question: {}\nAnswer:", "assistant": " {}\n\n"}[message["role"]]
            parts.append(form.format(message["content"]))
        return "".join(parts)
    import jinja2

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except jinja2.TemplateError:
        if messages[0]["role"] != "system":
            raise
        first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
        return str(tokenizer.apply_chat_template([first, *messages[2:]], tokenize=False, add_generation_prompt=True))


def prompt_ids(messages: list[dict[str, str]], tokenizer: Any) -> list[int]:
    """Token ids of `render`. A template writes its own special tokens; the plain form gets the tokenizer's."""
    text = render(messages, tokenizer)
    return list(tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"])


def encode(example: Example, prompt: Prompt, tokenizer: Any, max_length: int) -> Encoded | None:
    """Token ids of an example, at most `max_length`; None where the prompt alone fills them.

    Prompt and answer are tokenized apart, so that the prompt's length marks where the labels start; a cut
    answer gets no end token, for the model should not learn to stop there.
    """
    start = prompt_ids(prompt_messages(prompt, example.question), tokenizer)
    lead = "" if tokenizer.chat_template else " "
    answer = list(tokenizer(lead + example.answer, add_special_tokens=False)["input_ids"])
    answer.append(tokenizer.eos_token_id)
    room = max_length - len(start)
    if room < 1:
        return None
    return Encoded((*start, *answer[:room]), len(start), len(answer) > room)
