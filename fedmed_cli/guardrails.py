"""What a question or an answer must not pass without: emergencies, harm, doses, identifiers; by rules, not by a model.

The rules stand in guardrail_rules.toml, each with its source. Nothing here loads torch, and nothing is learnt: the
same text gives the same findings everywhere. docs/guardrails.md says what was measured and what is not covered.
"""

from __future__ import annotations

import enum
import functools
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fedmed_cli import wording
from fedmed_cli.wording import Sentence, Speller

MAX_CHARACTERS = 20_000  # of a text that is looked at; what the chat takes in is not longer
WINDOW = 14  # words between the parts of a pattern
NEGATION_REACH = 7  # words after a denial that it can cover


class Level(enum.StrEnum):
    """What a finding asks for, the strongest first."""

    URGENT = "urgent"  # a notice before anything else
    DECLINE = "decline"  # no answer
    NOTICE = "notice"  # a sentence


class Kind(enum.StrEnum):
    """What a finding is about."""

    EMERGENCY = "emergency"
    CRISIS = "crisis"
    MISUSE = "misuse"
    DOSING = "dosing"
    DIAGNOSIS = "diagnosis"
    STOPPING = "stopping"
    IDENTIFIER = "identifier"
    LANGUAGE = "language"
    ANSWER = "answer"


@dataclass(frozen=True)
class Finding:
    """One thing that a text holds, where (character positions), by which rule, and what is to be said about it."""

    rule: str
    kind: Kind
    level: Level
    start: int
    end: int
    notice: str
    source: str

    def to_dict(self) -> dict[str, str | int]:
        """For --json. It holds no text of the question."""
        return {
            "rule": self.rule,
            "kind": self.kind.value,
            "level": self.level.value,
            "start": self.start,
            "end": self.end,
            "notice": self.notice,
        }


# --- the rules ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """A part of a pattern: its expression, the bounds on the numbers in it, whether it may stand anywhere."""

    expression: re.Pattern[str]
    bounds: tuple[tuple[float, bool], ...]  # (value, at least?) for each group
    anywhere: bool

    def spans(self, plain: str) -> Iterator[tuple[int, int]]:
        """First and last + 1 word of each place in a sentence's plain words."""
        for match in self.expression.finditer(plain):
            found = zip(match.groups(), self.bounds, strict=True)
            if all(text is None or _within(float(text), bound) for text, bound in found):
                first = plain.count(" ", 0, match.start() + 1) - 1
                yield first, first + match.group().strip().count(" ") + 1


@dataclass(frozen=True)
class Rule:
    """A row of guardrail_rules.toml, compiled."""

    id: str
    kind: Kind
    level: Level
    notice: str
    source: str
    match: tuple[tuple[Item, ...], ...]
    unless: tuple[tuple[Item, ...], ...]
    gone: bool
    personal: bool
    generic: bool


@dataclass(frozen=True)
class Rules:
    """The whole table."""

    rules: tuple[Rule, ...]
    notices: Mapping[str, str]
    context: Mapping[str, re.Pattern[str]]
    compounds: re.Pattern[str]
    speller: Speller


def _within(value: float, bound: tuple[float, bool]) -> bool:
    limit, at_least = bound
    return value >= limit if at_least else value <= limit


class _Compiler:
    """Turns patterns into expressions over plain words, and collects the words they are made of."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names
        self.words: set[str] = set()
        self.bounds: list[tuple[float, bool]] = []
        self._expanded: dict[str, str] = {}

    def pattern(self, text: str) -> tuple[Item, ...]:
        parts = re.split(r" ([+&]) ", text)
        signs = ["+", *parts[1::2]]
        return tuple(self.item(part, sign == "&") for part, sign in zip(parts[::2], signs, strict=True))

    def item(self, text: str, anywhere: bool = False) -> Item:
        self.bounds = []
        expression = re.compile(r"(?<= )" + self._phrase(text))
        return Item(expression, tuple(self.bounds), anywhere)

    def any_of(self, phrases: Iterable[str], start: str = "(?<= )") -> re.Pattern[str]:
        self.bounds = []
        return re.compile(start + "(?:" + "|".join(self._phrase(phrase) for phrase in phrases) + ")")

    def _phrase(self, text: str) -> str:
        """Each word with the blank after it, so that optional words and gaps need no care."""
        parts = []
        for word in text.split():
            if word == "..":
                parts.append(r"(?:\S+ ){0,4}")
                continue
            optional = word.endswith("?")
            choices = [self._word(choice) for choice in word.rstrip("?").split("|")]
            parts.append(f"(?:{'|'.join(choice for choice in choices if choice)})" + ("?" if optional else ""))
        return "".join(part for part in parts if part != "(?:)")

    def _word(self, word: str) -> str:
        """A choice with its closing blank: a number, a name, or words joined by "_"."""
        if number := re.fullmatch(r"#([\d.]+)([+-])", word):
            self.bounds.append((float(number[1]), number[2] == "+"))
            return r"(\d+(?:\.\d+)?) "
        if word in self.names:
            if word not in self._expanded:
                phrases = (phrase.strip() for phrase in self.names[word].split(","))
                self._expanded[word] = "|".join(self._phrase(phrase) for phrase in phrases if phrase)
                if "(\\d" in self._expanded[word]:
                    raise ValueError(f"guardrail_rules.toml: {word} holds a number, which only a pattern may")
            return self._expanded[word]
        parts = []
        for part in word.split("_"):
            plain = part.strip("*")
            if plain in wording.FILLERS or plain in wording.NOW_FILLERS:
                continue
            plain = " ".join(wording.plain_form(plain)) or plain
            self._learn(plain, part.endswith("*"))
            plain = re.escape(plain).replace(r"\ ", " ")
            parts.append((r"\S*" if part.startswith("*") else "") + plain + (r"[^ _]*" if part.endswith("*") else ""))
        return "[ _]".join(parts) + " " if parts else ""

    def _learn(self, plain: str, is_stem: bool) -> None:
        for word in plain.split():
            self.words.add(word)
            if is_stem and len(word) >= 4:
                self.words.update(word + end for end in ("s", "ed", "ing", "d", "es", "e", "er"))


@functools.cache
def load() -> Rules:
    """The table, read and compiled once."""
    text = (resources.files("fedmed_cli") / "guardrail_rules.toml").read_text(encoding="utf-8")
    table: dict[str, Any] = tomllib.loads(text)
    names: dict[str, str] = dict(table["names"])
    small = "SMALLBABY"
    numbered = names.pop(small)
    compiler = _Compiler(names)
    names[small] = ", ".join(part for part in numbered.split(",") if "#" not in part)
    rules = tuple(
        Rule(
            row["id"],
            Kind(row["kind"]),
            Level(row["level"]),
            row["notice"],
            row["source"],
            tuple(compiler.pattern(pattern) for pattern in row["match"]),
            tuple(compiler.pattern(pattern) for pattern in row.get("unless", ())),
            row.get("gone", False),
            row.get("personal", False),
            row.get("generic", False),
        )
        for row in table["rule"]
    )
    vocabulary = set(compiler.words)
    compounds = compiler.any_of(table["compounds"])
    context = {}
    for name, phrases in table["context"].items():
        start = "^ " if name == "informational_start" else "(?<= )"
        context[name] = compiler.any_of(phrases, start)
    others = (resources.files("fedmed_cli") / "guardrail_words.txt").read_text(encoding="utf-8").split()
    return Rules(rules, table["notices"], context, compounds, Speller(vocabulary, {*others, *compiler.words}))


# --- what a sentence means ---------------------------------------------------------------------------

# After these a denial is over: another thought or another subject begins.
_BREAKS = frozenset("but however although though except yet and because so then now i he she my his her it".split())
_SUBJECTS = frozenset("i he she we they my his her our it there".split())


@dataclass(frozen=True)
class _Reading:
    """How one sentence is meant."""

    sentence: Sentence
    plain: str
    is_informational: bool
    is_personal: bool
    is_now: bool
    is_past: bool
    is_supposed: bool
    denied: frozenset[int]
    is_over: bool


def _read(sentence: Sentence, rules: Rules) -> _Reading:
    context = rules.context
    plain = sentence.plain
    head = re.sub(r"^ (?:(?:hi|hello|hey|ok|okay|so|well|and|but|also|doctor|doc|dear|thanks|sorry) )+", " ", plain)
    asked = context["asking"].sub("", plain)
    return _Reading(
        sentence,
        plain,
        bool(context["informational_start"].search(head) or context["informational_anywhere"].search(plain)),
        bool(context["personal"].search(asked)),
        sentence.is_now or bool(context["now"].search(plain)),
        bool(context["past"].search(plain)),
        bool(context["supposed"].search(plain)),
        _denied(sentence, plain, context),
        bool(context["ended"].search(plain)),
    )


def _denied(sentence: Sentence, plain: str, context: Mapping[str, re.Pattern[str]]) -> frozenset[int]:
    """Indices of the words that stand in the scope of a denial (after NegEx, Chapman 2001, 10.1006/jbin.2001.1029)."""
    spared: set[int] = set()
    for match in context["not_negation"].finditer(plain):
        spared.add(plain.count(" ", 0, match.start() + 1) - 1)
    denied: set[int] = set()
    words = sentence.words
    for match in context["negation"].finditer(plain):
        first = plain.count(" ", 0, match.start() + 1) - 1
        size = match.group().strip().count(" ") + 1
        if first in spared or any(index in spared for index in range(first, first + size)):
            continue
        is_bare = match.group() == "not "
        for index in range(first + size, min(first + size + (2 if is_bare else NEGATION_REACH), len(words))):
            word = words[index]
            if word.text in _BREAKS and not (word.text in ("my", "his", "her", "it") and index == first + size):
                break
            if word.after_comma and index > first + size and word.text in _SUBJECTS:
                break
            denied.add(index)
    return frozenset(denied)


# --- matching ----------------------------------------------------------------------------------------


def _places(pattern: Sequence[Item], reading: _Reading, message: Sequence[_Reading]) -> list[tuple[int, int]] | None:
    """Word spans of a pattern's parts in a sentence, near each other; None where it does not match."""
    near = [item for item in pattern if not item.anywhere]
    options: list[list[tuple[int, int]]] = []
    for item in near:
        spans = list(item.spans(reading.plain))
        if not spans:
            return None
        options.append(spans)
    for item in pattern:
        if item.anywhere and not any(item.expression.search(other.plain) for other in message):
            return None
    for first in options[0]:
        chosen = [first]
        for spans in options[1:]:
            free = [span for span in spans if all(_apart(span, other) for other in chosen)]
            if not free:
                break
            chosen.append(min(free, key=lambda span: abs(span[0] - first[0])))
        else:
            if max(span[0] for span in chosen) - min(span[1] for span in chosen) <= WINDOW:
                return chosen
    return None


def _apart(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[1] <= other[0] or other[1] <= one[0]


def _is_silent(rule: Rule, spans: list[tuple[int, int]], reading: _Reading, message: Sequence[_Reading]) -> bool:
    """Whether a rule that matched says nothing, because of how the sentence is meant."""
    if any(_places(pattern, reading, message) for pattern in rule.unless):
        return True
    if rule.personal and not reading.is_personal and not any(other.is_personal for other in message):
        return True
    if rule.generic or rule.kind is Kind.DIAGNOSIS:
        return False
    denied = any(first in reading.denied for first, _ in spans)
    if rule.kind is Kind.MISUSE:
        return denied
    if denied or (reading.is_over and not rule.gone and not reading.is_now):
        return True
    if rule.kind is Kind.CRISIS:
        is_asked = reading.is_informational and not reading.is_personal
        return is_asked or (reading.is_past and not reading.is_now)
    if reading.is_informational and not reading.is_personal:
        return not _turns_out_here(reading, message)
    if reading.is_past and not reading.is_now:
        return True
    return reading.is_supposed and not reading.is_now


def _turns_out_here(reading: _Reading, message: Sequence[_Reading]) -> bool:
    """Whether another sentence says that what was asked about is happening."""
    here = load().context["it_is_here"]
    return any(other is not reading and not other.is_informational and here.search(other.plain) for other in message)


def check_question(text: str) -> tuple[Finding, ...]:
    """What a question holds: the most urgent first, each rule at most once.

    Only the first MAX_CHARACTERS are looked at.
    """
    text = text[:MAX_CHARACTERS]
    rules = load()
    message = [_read(sentence, rules) for sentence in wording.sentences(text, rules.speller, rules.compounds)]
    found: list[Finding] = []
    for rule in rules.rules:
        finding = _apply(rule, message, rules.notices)
        if finding is not None:
            found.append(finding)
    found += _identifiers(text, rules.notices)
    if not any(finding.level is Level.URGENT for finding in found):
        found += _language(text, message, rules.notices)
    return _by_weight(found)


def _by_weight(found: Iterable[Finding]) -> tuple[Finding, ...]:
    order = list(Level)
    return tuple(sorted(found, key=lambda finding: (order.index(finding.level), finding.kind is not Kind.CRISIS)))


def _apply(rule: Rule, message: Sequence[_Reading], notices: Mapping[str, str]) -> Finding | None:
    for reading in message:
        for pattern in rule.match:
            spans = _places(pattern, reading, message)
            if spans is None or _is_silent(rule, spans, reading, message):
                continue
            words = reading.sentence.words
            start = min(words[first].start for first, _ in spans)
            end = max(words[last - 1].end for _, last in spans)
            return Finding(rule.id, rule.kind, rule.level, start, end, notices[rule.notice], rule.source)
    return None


# --- identifiers and other languages -----------------------------------------------------------------

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DATE = rf"(?:\d{{1,2}}[./-]\d{{1,2}}[./-]\d{{2,4}}|\d{{4}}-\d{{2}}-\d{{2}}|\d{{1,2}}(?:st|nd|rd|th)?\s+{_MONTH},?\s+\d{{4}}|{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}})"
# After the kinds of 45 CFR 164.514(b)(2), HIPAA's Safe Harbor list, as far as a form gives them away.
_IDENTIFIERS: Mapping[str, re.Pattern[str]] = {
    "email": re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w"),
    "phone": re.compile(
        r"(?<![\w.])(?:\+\d{1,3}[ ./-]?(?:\(?\d{1,4}\)?[ ./-]?){2,5}\d{2,4}|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}|0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,4})(?!\w)"
    ),
    "ssn": re.compile(r"(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)"),
    "nhs-number": re.compile(r"(?i)\bnhs\s*(?:number|no\.?|#)?[:\s#]*\d{3}[ -]?\d{3}[ -]?\d{4}\b"),
    "record-number": re.compile(
        r"(?i)\b(?:mrn|medical record|patient id|patient number|hospital number|chart|case|record|insurance|policy|member|account|passport|licen[cs]e)"
        r"\s*(?:number|no\.?|id|#)?\s*(?:is|:|#)?\s*[A-Z]{0,3}[- ]?\d[\d-]{4,}"
    ),
    "birth-date": re.compile(rf"(?i)\b(?:dob|d\.o\.b\.?|born(?: on)?|date of birth|birthday|birthdate)\b[\s:is]{{0,6}}{_DATE}"),
    "date": re.compile(rf"(?i)\b(?:on|admitted|discharged|seen|since|dated?)\s+(?:on\s+)?{_DATE}"),
    "address": re.compile(
        r"\b\d{1,5}[a-zA-Z]?\s+(?:[A-Z][a-z]+\s+){1,3}(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Close|Court|Ct|Way|Place|Boulevard|Blvd)\b"
    ),
    "postcode": re.compile(r"\b[A-Z]{1,2}\d[A-Z\d]?\s\d[A-Z]{2}\b"),
    "ip-address": re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])"),
    "url": re.compile(r"https?://\S+"),
    "name": re.compile(
        r"(?:\b(?i:my name is|patient name is|patient name:|patient:|name:|named|called|signed)\s+|\b(?:Mr|Mrs|Ms|Miss)\.?\s+)[A-Z][a-zäöüéèß'-]+(?:\s+[A-Z][a-zäöüéèß'-]+)*"
    ),
}


def _identifiers(text: str, notices: Mapping[str, str]) -> list[Finding]:
    found = []
    for name, expression in _IDENTIFIERS.items():
        if match := expression.search(text):
            source = "45 CFR 164.514(b)(2), Safe Harbor"
            notice = notices["identifier"]
            found.append(
                Finding(f"identifier-{name}", Kind.IDENTIFIER, Level.NOTICE, match.start(), match.end(), notice, source)
            )
    return found


_ENGLISH = frozenset(
    "the a an i my me is are am was have has do does not it in on of to and for with what how why can should he she his "
    "her you your if this that there when who at be help pain no or from after before about".split()
)


def _language(text: str, message: Sequence[_Reading], notices: Mapping[str, str]) -> list[Finding]:
    """A finding where the text does not look English, since the rules cannot read it."""
    letters = [character for character in text if character.isalpha()]
    foreign = sum(character > "\u024f" for character in letters)
    words = re.findall(r"[^\W\d_]+", text.lower())
    unread = len(words) >= 5 and not any(word in _ENGLISH for word in words)
    if not letters or not (foreign > len(letters) / 2 or unread):
        return []
    if foreign <= len(letters) / 2 and any(word.text in load().speller.vocabulary for r in message for word in r.sentence.words):
        known = sum(word.text in load().speller.vocabulary for r in message for word in r.sentence.words)
        if known * 3 >= len(words):
            return []
    return [Finding("language", Kind.LANGUAGE, Level.NOTICE, 0, len(text), notices["language"], "docs/guardrails.md")]


# --- answers -----------------------------------------------------------------------------------------

_ANSWERS: Mapping[str, re.Pattern[str]] = {
    "dose": re.compile(r"(?i)\b\d[\d.,]*\s?(?:-|to)?\s?[\d.,]*\s?(?:mg|mcg|µg|micrograms?|milligrams?|ml|millilit\w+|units|iu|tablets?|pills|capsules|puffs)\b"),
    "stopping": re.compile(
        r"(?i)\b(?:stop|discontinue|quit|avoid) (?:taking|using) (?:your|the|any|all|this|that|these)? ?\w* ?(?:medic\w+|pills?|tablets?|insulin|antibiotics?|antidepressants?|drugs?|treatment)"
    ),
    "reassures": re.compile(
        r"(?i)\b(?:no need to (?:see|worry|call|go)|(?:not|nothing) (?:a )?(?:serious|to worry about|an emergency|dangerous)|(?:you are|you're) (?:fine|healthy|not having)|do(?:n't| not) need to (?:see|call|go)|completely (?:normal|harmless)|will go away on its own)"
    ),
}


def check_answer(text: str, question: Sequence[Finding] = ()) -> tuple[Finding, ...]:
    """What a generated answer holds: a dose, a word about stopping a medicine, a reassurance, an identifier."""
    notices = load().notices
    found = [
        Finding(f"answer-{name}", Kind.ANSWER, Level.NOTICE, match.start(), match.end(), notices[f"answer_{name}"], "docs/guardrails.md")
        for name, expression in _ANSWERS.items()
        if (match := expression.search(text[:MAX_CHARACTERS]))
    ]
    said = {finding.kind for finding in question}
    skip = {"answer-dose": Kind.DOSING, "answer-stopping": Kind.STOPPING}
    return tuple(finding for finding in found if skip.get(finding.rule) not in said)


def urgent(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level is Level.URGENT]


def holds_answer_back(findings: Iterable[Finding]) -> bool:
    """Whether the model is not asked at all: a request for harm, or a person in crisis, who needs a person."""
    return any(finding.level is Level.DECLINE or finding.kind is Kind.CRISIS for finding in findings)


def notices(findings: Iterable[Finding]) -> list[str]:
    """The sentences to show, each once, the most urgent first."""
    return list(dict.fromkeys(finding.notice for finding in findings))
