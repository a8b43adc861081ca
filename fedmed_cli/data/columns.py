"""Recognise which columns of a row hold the question and the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedmed_cli.data.bad_rows import BadRow
from fedmed_cli.data.disclosure import list_columns
from fedmed_cli.errors import InputError

# Column names that hold a question and its answer, and one whose text belongs to the question too. The first
# that fits is taken; upper and lower case count as one (PubMedQA writes QUESTION and LONG_ANSWER).
PAIRS: tuple[tuple[str, str, str | None], ...] = (
    ("question", "answer", None),
    ("prompt", "completion", None),
    ("instruction", "output", "input"),
    ("instruction", "response", "input"),
    ("question", "response", None),
    ("input", "output", None),
    ("question", "long_answer", None),
    ("prompt", "response", None),
    ("patient", "doctor", "description"),
    ("question", "context", None),
)
CHATS = ("messages", "conversations", "conversation")
TEXTS = ("text",)
ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "bot": "assistant"}
# How a single text marks its questions (q), its answers (a) and its end: the first row whose q and a it has.
_MARKS = tuple(
    re.compile(f"(?P<q>{asked})|(?P<a>{answered})|(?P<end>{end})", re.IGNORECASE | re.MULTILINE)
    for asked, answered, end in (
        (
            r"###\s*(?:instruction|question|human|user|input)\s*:",
            r"###\s*(?:response|answer|assistant|output)\s*:",
            r"</s>|###\s*end\b",
        ),
        (r"\[INST\]", r"\[/INST\]", "</s>"),
        (r"^[ \t]*(?:question|q)\s*:", r"^[ \t]*(?:answer|a)\s*:", "</s>"),
    )
)


@dataclass(frozen=True)
class Layout:
    """Where question and answer stand. `kind` pair: two columns, and `more` to be put before or after the question."""

    kind: Literal["pair", "chat", "text"]
    question: str
    answer: str
    more: str | None = None

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that do not become columns of the example."""
        if self.more is not None and self.more.lower() == "description":
            return (self.question, self.answer, self.more)
        return (self.question, self.answer)

    @property
    def plain(self) -> bool:
        """Whether question and answer are the texts of two columns as they are."""
        return self.kind == "pair" and self.more is None and self.question != self.answer

    def read(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """Question and answer of a row, stripped. Raises BadRow."""
        if self.kind == "chat":
            return _find_exchange(row.get(self.question), self.question)
        if self.kind == "text":
            return _find_marked(text_of(row.get(self.question), self.question), self.question)[:2]
        question, answer = text_of(row.get(self.question), self.question), text_of(row.get(self.answer), self.answer)
        more = row.get(self.more) if self.more is not None else None
        if self.more is not None and isinstance(more, str) and more.strip():
            _check_characters(more, self.more)
            if self.more.lower() == "description":
                question = f"{more.strip()}\n\n{question}"
            else:
                question += f"\n\n{more.strip()}"
        return question, answer


def find_layout(names: Sequence[str], columns: Mapping[str, str] | None, name: str, is_header: bool) -> Layout:
    """The layout of data with the columns `names`; `columns` maps question and answer, or text, to their names.

    InputError lists the names where that is safe: see `list_columns`, which `is_header` is for.
    """
    if columns:
        unknown = sorted(set(columns) - {"question", "answer", "messages", "text"})
        if unknown:
            raise InputError(f"--columns maps {unknown[0]!r}, expected 'question' and 'answer'")
        for kind, key in (("chat", "messages"), ("text", "text")):
            if key in columns and columns[key] in names:
                return Layout(kind, columns[key], columns[key])  # type: ignore[arg-type]  # one of the three
        question, answer = columns.get("question", "question"), columns.get("answer", "answer")
        if question in names and answer in names and not {"messages", "text"} & set(columns):
            return Layout("pair", question, answer)
    else:
        for first, second, third in PAIRS:
            pair = [_find(names, part) for part in (first, second, third)]
            if pair[0] is not None and pair[1] is not None:
                return Layout("pair", pair[0], pair[1], pair[2])
        for kind, known in (("chat", CHATS), ("text", TEXTS)):
            for part in known:
                column = _find(names, part)
                if column is not None:
                    return Layout(kind, column, column)  # type: ignore[arg-type]  # one of the three
    raise InputError(
        f"{name}: expected columns question and answer, found {list_columns(names, is_header)}",
        hint="say which they are, for example --columns question=Q,answer=A",
    )


def _find(names: Sequence[str], wanted: str | None) -> str | None:
    if wanted is None:
        return None
    exact = [column for column in names if column == wanted]
    return next(iter(exact or [column for column in names if column.lower() == wanted]), None)


def is_broken(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which no file in UTF-8 can."""
    if text.isascii():
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _check_characters(text: str, column: str) -> None:
    if is_broken(text):
        raise BadRow("encoding", f"column {column!r} holds a broken character")


def text_of(value: Any, column: str) -> str:
    """The stripped text of a column, that of a list of turns put together. Raises BadRow."""
    if isinstance(value, list) and value and all(isinstance(turn, dict) and "content" in turn for turn in value):
        value = "\n\n".join(turn["content"] for turn in value if isinstance(turn["content"], str))
    if not isinstance(value, str):
        found = "nothing" if value is None else f"a value of type {type(value).__name__}"
        raise BadRow("empty" if value is None else "not_text", f"expected text in column {column!r}, found {found}")
    if not value.strip():
        found = "white space only" if value else "nothing"
        raise BadRow("empty", f"expected text in column {column!r}, found {found}")
    _check_characters(value, column)
    return value.strip()


def _find_exchange(value: Any, column: str) -> tuple[str, str]:
    """The first turn of the user and the assistant's next: chat (role, content) and ShareGPT (from, value)."""
    question = None
    for turn in value if isinstance(value, list) else ():
        if isinstance(turn, dict):
            role = ROLES.get(str(turn.get("role", turn.get("from"))).lower())
            text = turn.get("content", turn.get("value"))
            if role == "user" and question is None:
                question = text_of(text, column)
            elif role == "assistant" and question is not None:
                return question, text_of(text, column)
    raise BadRow("no_exchange", f"expected a user's turn and the assistant's reply in column {column!r}, found none")


def turns_left_out(layout: Layout, row: Mapping[str, Any]) -> int:
    """How many turns of a conversation are not in its example, the system's included."""
    value = row.get(layout.question)
    if layout.kind == "chat" and isinstance(value, list):
        return max(0, len(value) - 2)
    if layout.kind == "text" and isinstance(value, str):
        return _find_marked(value, layout.question)[2]
    return 0


def _find_marked(text: str, column: str) -> tuple[str, str, int]:
    """Question, answer, and how many more turns a text has. The answer ends with the text or at the next mark."""
    for pattern in _MARKS:
        marks = list(pattern.finditer(text))
        asked = next((i for i, mark in enumerate(marks) if mark["q"]), len(marks))
        answered = next((i for i, mark in enumerate(marks) if mark["a"] and i > asked), None)
        if answered is not None:
            end = marks[answered + 1].start() if answered + 1 < len(marks) else len(text)
            question = text[marks[asked].end() : marks[answered].start()].strip()
            answer = text[marks[answered].end() : end].strip()
            if question and answer:
                return question, answer, sum(not mark["end"] for mark in marks[answered + 1 :])
    raise BadRow(
        "no_exchange",
        f"expected marks such as 'Question:' and 'Answer:', '### Instruction:' and '### Response:' or [INST] "
        f"in column {column!r}, found none",
    )
