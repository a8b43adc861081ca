"""Multiple-choice questions out of the layouts of MedMCQA, MedQA and PubMedQA, and what an asked model answered."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedmed_cli.data.bad_rows import BadRow
from fedmed_cli.data.columns import text_of
from fedmed_cli.data.disclosure import list_columns
from fedmed_cli.data.sources import raw_rows
from fedmed_cli.errors import InputError
from fedmed_cli.events import Say
from fedmed_cli.records.digests import sha256_json

LETTERS = "ABCDEFGHIJ"
DECISIONS = ("yes", "no", "maybe")
MAX_SKIPPED = 0.1

ChoiceLayout = Literal["options", "columns", "decision"]

_COLUMNS = ("opa", "opb", "opc", "opd")
_LEAD = r"\W*(?:(?:the\s+)?(?:correct\s+|best\s+)?(?:answer|option|choice)(?:\s+is)?\s*:?\s*)?\W*"
_LETTER = re.compile(rf"(?i:{_LEAD})(?:(?i:option)\s+)?([A-J])(?=\s*$|\s*[.):,;*\]\n])")
_DECISION = re.compile(rf"{_LEAD}(yes|no|maybe)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """A question with its options; `labels` are what a model may write for them, `answer` the right one's index."""

    text: str
    options: tuple[str, ...]
    labels: tuple[str, ...]
    answer: int

    @property
    def key(self) -> str:
        """Digest of the question with its options."""
        return sha256_json([self.text, list(self.options)])

    @property
    def asking(self) -> str:
        """The question with its options listed, and what to write."""
        if self.labels == DECISIONS:
            return f"{self.text}\n\nAnswer with one word: yes, no or maybe."
        listed = "\n".join(f"{label}. {option}" for label, option in zip(self.labels, self.options, strict=True))
        return f"{self.text}\n\n{listed}\n\nAnswer with the letter of the right option alone."

    def parse(self, text: str) -> int | None:
        """The option that a generated answer chooses: a label at its start, or one option's text; else None."""
        if self.labels == DECISIONS:
            decision = _DECISION.match(text)
            return DECISIONS.index(decision.group(1).lower()) if decision else None
        letter = _LETTER.match(text)
        if letter:
            return self.labels.index(letter.group(1)) if letter.group(1) in self.labels else None
        mentioned = [i for i, option in enumerate(self.options) if option.casefold() in text.casefold()]
        return mentioned[0] if len(mentioned) == 1 else None


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a file that are asked, how it lays them out, and how many of its rows are left out."""

    questions: list[Question]
    layout: ChoiceLayout
    name: str
    num_skipped: int

    @property
    def digest(self) -> str:
        return sha256_json([[question.key, question.answer] for question in self.questions])


def read_questions(path: Path, limit: int, say: Say) -> QuestionSet:
    """The questions of a file, at most `limit` of them in an order as good as random.

    Rows without options or without an answer, and repeated questions, are left out and counted. InputError
    where the file has none of the layouts, or where more than a tenth of its rows is unusable.
    """
    rows = list(raw_rows(str(path)))
    lower = [
        ({str(k).lower(): v for k, v in row.value.items()}, row.line) for row in rows if isinstance(row.value, Mapping)
    ]
    layout = _find_layout(lower, path)
    first = _find_first_number(lower, path) if layout == "columns" else 0
    faults = [(row.line, row.value.message) for row in rows if isinstance(row.value, BadRow)]
    questions: dict[str, Question] = {}
    num_repeated = 0
    for row, line in lower:
        try:
            question = _READERS[layout](row, first)
        except BadRow as fault:
            faults.append((line, f"{path}: row {line}: {fault.message}"))
            continue
        num_repeated += question.key in questions
        questions.setdefault(question.key, question)
    if len(faults) > MAX_SKIPPED * len(rows):
        raise InputError(
            min(faults)[1], hint=f"{len(faults)} of {len(rows)} rows are not a question with options and an answer"
        )
    if faults:
        say(f"{path.name}: {len(faults)} of {len(rows)} rows left out: not a question with options and an answer")
    if num_repeated:
        say(f"{path.name}: {num_repeated} repeated questions left out")
    sample = sorted(questions.values(), key=lambda question: question.key)[:limit]
    if len(sample) < len(questions):
        say(f"{path.name}: {len(sample)} of {len(questions)} questions (--max-eval-samples)")
    return QuestionSet(sample, layout, path.name, len(faults) + num_repeated)


def _find_layout(rows: Sequence[tuple[Mapping[str, Any], int]], path: Path) -> ChoiceLayout:
    names = {name for row, _ in rows[:100] for name in row}
    if "question" in names and "options" in names:
        return "options"
    if "question" in names and {*_COLUMNS, "cop"} <= names:
        return "columns"
    if "question" in names and "final_decision" in names:
        return "decision"
    raise InputError(
        f"{path}: is not a file of multiple-choice questions, found {list_columns(names, is_header=False)}",
        hint="expected question and options with answer_idx or answer (MedQA), or with opa, opb, opc, opd and cop "
        "(MedMCQA), or with final_decision (PubMedQA)",
    )


def _find_first_number(rows: Sequence[tuple[Mapping[str, Any], int]], path: Path) -> int:
    """Whether `cop` counts options from 0 (the hub's MedMCQA) or from 1 (the original files)."""
    seen = {place for row, _ in rows if type(place := row.get("cop")) is int} & {0, 1, 2, 3, 4}
    if {0, 4} <= seen or not seen & {0, 4}:
        raise InputError(
            f"{path}: cop does not tell whether it counts from 0 or from 1 (found {sorted(seen)})",
            hint="give the right option's letter in a column answer_idx, and the options as an object",
        )
    return 0 if 0 in seen else 1


def _check_number(options: Sequence[Any]) -> None:
    if not 2 <= len(options) <= len(LETTERS):
        raise BadRow("options", f"expected 2 to {len(LETTERS)} options, found {len(options)}")


def _make_question(text: str, options: Sequence[str], answer: int) -> Question:
    _check_number(options)
    if not 0 <= answer < len(options):
        raise BadRow("no_answer", "expected the right option's place among the options, found another number")
    return Question(text, tuple(options), tuple(LETTERS[: len(options)]), answer)


def _read_options(row: Mapping[str, Any], first: int) -> Question:
    """MedQA: `options` an object of letters, or a list of {key, value}, and the letter (or text) of the answer."""
    options = row.get("options")
    if isinstance(options, list) and all(isinstance(part, dict) and {"key", "value"} <= set(part) for part in options):
        options = {str(part["key"]): part["value"] for part in options}
    if isinstance(options, list):
        _check_number(options)
        options = dict(zip(LETTERS, options, strict=False))
    if not isinstance(options, dict):
        raise BadRow("options", "expected options as an object or a list")
    keys = sorted(key for key, value in options.items() if value is not None)  # Arrow fills absent letters with null
    texts = [text_of(options[key], "options") for key in keys]
    for name in ("answer_idx", "answer"):
        answer = row.get(name)
        if isinstance(answer, str) and (answer in keys or answer in texts):
            place = keys.index(answer) if answer in keys else texts.index(answer)
            return _make_question(text_of(row.get("question"), "question"), texts, place)
    raise BadRow("no_answer", "expected answer_idx or answer to be an option's letter or text")


def _read_columns(row: Mapping[str, Any], first: int) -> Question:
    """MedMCQA: `opa` to `opd`, and `cop` the number of the right one, counted from `first`."""
    place = row.get("cop")
    if type(place) is not int:
        raise BadRow("no_answer", "expected cop to be a whole number")
    options = [text_of(row.get(name), name) for name in _COLUMNS]
    return _make_question(text_of(row.get("question"), "question"), options, place - first)


def _read_decision(row: Mapping[str, Any], first: int) -> Question:
    """PubMedQA: the abstract without its conclusion, a question about it, and `final_decision`."""
    context = row.get("contexts", row.get("context"))
    if isinstance(context, dict):
        context = context.get("contexts")
    parts = [context] if isinstance(context, str) else context if isinstance(context, list) else []
    texts = [text_of(part, "contexts") for part in parts]
    answer = row.get("final_decision")
    if answer not in DECISIONS:
        raise BadRow("no_answer", "expected final_decision to be yes, no or maybe")
    text = "\n\n".join([*texts, text_of(row.get("question"), "question")])
    return Question(text, DECISIONS, DECISIONS, DECISIONS.index(answer))


_READERS: dict[ChoiceLayout, Callable[[Mapping[str, Any], int], Question]] = {
    "options": _read_options,
    "columns": _read_columns,
    "decision": _read_decision,
}
