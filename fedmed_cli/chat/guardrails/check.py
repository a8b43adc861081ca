"""What a question or an answer must not pass without: emergencies, harm, doses, identifiers.

Two readers look at a question: the rules of rules.toml, each with its source, and a classifier (classifier.py), which
knows how people write. Either may raise a finding, but neither by itself against the clear word of the other.
Nothing here loads torch; the same text gives the same findings everywhere. docs/guardrails.md says what was measured
and what is not covered. It is one file because a rule, its context and the order of the steps
are understood only together.
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

from fedmed_cli.chat.guardrails import classifier, normalise
from fedmed_cli.chat.guardrails.normalise import Sentence, Speller

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


# The share of a class from which likeness alone raises a finding, and below which it silences a rule; an urgent rule
# is silenced only by likeness to harmless texts, since a question of doses may hold an emergency. Chosen on the open
# sets of prompts, each author's by a model that had not seen it (benchmarks/guardrails/train.py --held).
ENOUGH: Mapping[Level, float] = {Level.URGENT: 0.7, Level.DECLINE: 0.55, Level.NOTICE: 0.8}
TOO_LITTLE: Mapping[Level, float] = {Level.URGENT: 0.4, Level.DECLINE: 0.15, Level.NOTICE: 0.25}
FEWEST_WORDS = 3  # of a text that likeness alone may judge: "And then?" says nothing
_LIKE: Mapping[Level, tuple[Kind, ...]] = {
    Level.URGENT: (Kind.EMERGENCY, Kind.CRISIS),
    Level.DECLINE: (Kind.MISUSE,),
    Level.NOTICE: (Kind.DOSING, Kind.DIAGNOSIS, Kind.STOPPING),
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
    """A row of rules.toml, compiled."""

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
        expression = self._phrase(text)
        if re.fullmatch(expression, ""):
            raise ValueError(f"rules.toml: {text!r} matches everything")
        return Item(re.compile(r"(?<= )" + expression), tuple(self.bounds), anywhere)

    def any_of(self, phrases: Iterable[str], start: str = "(?<= )") -> re.Pattern[str]:
        self.bounds = []
        compiled = [(phrase, self._phrase(phrase)) for phrase in phrases]
        for phrase, expression in compiled:
            if re.fullmatch(expression, ""):
                raise ValueError(f"rules.toml: {phrase!r} matches everything")
        return re.compile(start + "(?:" + "|".join(expression for _, expression in compiled) + ")")

    def _phrase(self, text: str) -> str:
        """Each word with the blank after it, so that optional words and gaps need no care."""
        parts = []
        after = ""
        for word in text.split():
            if word == "..":
                parts.append(r"(?:\S+ ){0,4}?")  # the nearest, so that a number is the next one
                continue
            optional = word.endswith("?")
            choices = [self._word(choice, after) for choice in word.rstrip("?").split("|")]
            after = word
            parts.append(f"(?:{'|'.join(choice for choice in choices if choice)})" + ("?" if optional else ""))
        return "".join(part for part in parts if part != "(?:)")

    def _word(self, word: str, after: str) -> str:
        """A choice with its closing blank: a number, a name, or words joined by "_"."""
        if number := re.fullmatch(r"#([\d.]+)([+-])", word):
            self.bounds.append((float(number[1]), number[2] == "+"))
            return r"(\d+(?:\.\d+)?) "
        if word == "YEAR":
            return r"(?:19|20)\d\d "
        if word in self.names:
            if word not in self._expanded:
                phrases = (phrase.strip() for phrase in self.names[word].split(","))
                self._expanded[word] = "|".join(self._phrase(phrase) for phrase in phrases if phrase)
                if re.fullmatch(self._expanded[word], ""):
                    raise ValueError(f"rules.toml: a phrase of {word} matches everything")
                if "(\\d" in self._expanded[word]:
                    raise ValueError(f"rules.toml: {word} holds a number, which only a pattern may")
            return self._expanded[word]
        parts = []
        for part in word.split("_"):
            plain = part.strip("*")
            if (plain in normalise.FILLERS or plain in normalise.NOW_FILLERS) and after != "not":
                continue
            plain = " ".join(normalise.plain_form(plain)) or plain
            self._learn(plain, part.endswith("*"))
            plain = re.escape(plain).replace(r"\ ", " ")
            parts.append((r"\S*" if part.startswith("*") else "") + plain + (r"[^ _]*" if part.endswith("*") else ""))
        return "[ _]".join(parts) + " " if parts else ""

    def _learn(self, plain: str, is_stem: bool) -> None:
        for word in plain.split():
            self.words.add(word)
            if is_stem and len(word) >= 4:
                self.words.update(word + end for end in ("s", "ed", "ing", "d", "es", "e", "er", "y"))


@functools.cache
def load() -> Rules:
    """The table, read and compiled once."""
    text = (resources.files(__package__) / "rules.toml").read_text(encoding="utf-8")
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
    others = (resources.files(__package__) / "words.txt").read_text(encoding="utf-8").split()
    return Rules(rules, table["notices"], context, compounds, Speller(vocabulary, {*others, *compiler.words}))


# --- what a sentence means ---------------------------------------------------------------------------

# After these a denial is over: another thought or another subject begins.
_BREAKS = frozenset("but however although though except yet and because so then now i he she my his her it".split())
_SUBJECTS = frozenset("i he she we they my his her our it there".split())
_CONNECTIVES = frozenset("but however although though yet and because so then now".split())
_OPENERS = frozenset("when as in back after before since last once during years".split())
_DENYING = frozenset("no not never without neither nor none nobody".split())
_OWN = frozenset("my his her it".split())


_ABOUT_SOMEBODY = re.compile(
    r" (?:i|my|mine|me|he|she|his|her|him|we|our|us|this|these|it|FAMILY) ".replace(
        "FAMILY", "mother|father|son|daughter|husband|wife"
    )
)


@dataclass(frozen=True)
class _Reading:
    """How one sentence is meant."""

    sentence: Sentence
    plain: str
    is_informational: bool
    is_personal: bool
    is_now: bool
    past: tuple[tuple[int, int], ...]  # words that say it was long ago
    over: tuple[tuple[int, int], ...]  # words that say it has ended
    is_back: bool
    clauses: tuple[int, ...]  # for each word, the number of its clause
    is_supposed: bool
    denials: tuple[tuple[int, int, int], ...]  # where each begins, and the words from-to that it covers


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
        _word_spans(context["past"], plain),
        _word_spans(context["ended"], plain),
        sentence.is_now or bool(context["back"].search(plain)),
        _clauses(sentence),
        bool(context["supposed"].search(plain)),
        _denials(sentence, plain, context),
    )


def _word_spans(expression: re.Pattern[str], plain: str) -> tuple[tuple[int, int], ...]:
    """First and last + 1 word of each match."""
    spans = []
    for match in expression.finditer(plain):
        first = plain.count(" ", 0, match.start() + 1) - 1
        spans.append((first, first + match.group().strip().count(" ") + 1))
    return tuple(spans)


def _clauses(sentence: Sentence) -> tuple[int, ...]:
    """The number of each word's clause; an opening "when I was a child, …" belongs to what follows it."""
    numbers: list[int] = []
    number = 0
    for index, word in enumerate(sentence.words):
        opens = word.text in _CONNECTIVES or (word.after_comma and word.text in _SUBJECTS)
        if index and opens and not (number == 0 and sentence.words[0].text in _OPENERS):
            number += 1
        numbers.append(number)
    return tuple(numbers)


def _governs(marks: Iterable[tuple[int, int]], spans: Sequence[tuple[int, int]], reading: _Reading) -> bool:
    """Whether one of the marks stands in the clause of a match."""
    clause = reading.clauses[spans[0][0]]
    return any(reading.clauses[first] == clause for first, _ in marks)


def _denials(
    sentence: Sentence, plain: str, context: Mapping[str, re.Pattern[str]]
) -> tuple[tuple[int, int, int], ...]:
    """Each denial with the words in its scope (after NegEx, Chapman et al. 2001, doi 10.1006/jbin.2001.1029)."""

    spared = {first for first, _ in _word_spans(context["not_negation"], plain)}
    found = []
    words = sentence.words
    for first, start in _word_spans(context["negation"], plain):
        if not spared.isdisjoint(range(first, start)):
            continue
        is_bare = start == first + 1 and words[first].text == "not"
        reach = 2 if is_bare else NEGATION_REACH
        stop = start
        while stop < min(start + reach, len(words)):
            word = words[stop]
            if word.text == "or":
                reach += 3
            if word.text in _BREAKS and not (stop == start and word.text in _OWN):
                break
            if word.after_comma and stop > start and word.text in _SUBJECTS:
                break
            stop += 1
        denial = next((index for index in range(first, start) if words[index].text in _DENYING), first)
        found.append((denial, start, stop))
    return tuple(found)


def _is_denied(spans: Sequence[tuple[int, int]], reading: _Reading) -> bool:
    """Whether a match is in the scope of a denial that is not a part of it ("not breathing" denies itself)."""
    for denial, start, stop in reading.denials:
        is_part = any(begin <= denial < end for begin, end in spans)
        if not is_part and any(begin < stop and start < end for begin, end in spans):
            return True
    return False


# --- matching ----------------------------------------------------------------------------------------


def _places(pattern: Sequence[Item], reading: _Reading, message: Sequence[_Reading]) -> Iterator[list[tuple[int, int]]]:
    """Word spans of a pattern's parts near each other in a sentence, for each place where its first part stands."""
    near = [item for item in pattern if not item.anywhere]
    options: list[list[tuple[int, int]]] = []
    for item in near:
        spans = list(item.spans(reading.plain))
        if not spans:
            return
        options.append(spans)
    for item in pattern:
        if item.anywhere and not any(item.expression.search(other.plain) for other in message):
            return
    for first in options[0]:
        chosen = [first]
        for spans in options[1:]:
            free = [span for span in spans if all(_apart(span, other) for other in chosen)]
            if not free:
                break
            chosen.append(min(free, key=lambda span: abs(span[0] - first[0])))
        else:
            if max(span[0] for span in chosen) - min(span[1] for span in chosen) <= WINDOW:
                yield chosen


def _apart(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[1] <= other[0] or other[1] <= one[0]


def _is_silent(rule: Rule, spans: list[tuple[int, int]], reading: _Reading, message: Sequence[_Reading]) -> bool:
    """Whether a rule that matched says nothing, because of how the sentence is meant."""
    if any(True for pattern in rule.unless for _ in _places(pattern, reading, message)):
        return True
    if rule.personal and not any(_ABOUT_SOMEBODY.search(other.plain) for other in message):
        return True
    if rule.generic or rule.kind is Kind.DIAGNOSIS:
        return False
    denied = _is_denied(spans, reading)
    if rule.kind is Kind.MISUSE:
        return denied
    is_long_ago = _governs(reading.past, spans, reading) and not reading.is_back
    if denied or is_long_ago or (not rule.gone and _governs(reading.over, spans, reading) and not reading.is_back):
        return True
    is_asked = reading.is_informational and not reading.is_personal
    if rule.kind is Kind.CRISIS:
        return is_asked
    if is_asked:
        return not _turns_out_here(reading, message)
    return reading.is_supposed and not reading.is_now


def _turns_out_here(reading: _Reading, message: Sequence[_Reading]) -> bool:
    """Whether another sentence says that what was asked about is happening."""
    here = load().context["it_is_here"]
    return any(other is not reading and not other.is_informational and here.search(other.plain) for other in message)


def check_question(text: str) -> tuple[Finding, ...]:
    """What a question holds: the most urgent first, each rule at most once.

    A rule's finding stands unless the text is far from its kind; likeness adds one of a level that no rule has
    found where a text is near enough. Only the first MAX_CHARACTERS are looked at.
    """
    text = text[:MAX_CHARACTERS]
    rules = load()
    message = [_read(sentence, rules) for sentence in normalise.sentences(text, rules.speller, rules.compounds)]
    shares = classifier.shares(text)
    near = {level: sum(shares[kind.value] for kind in kinds) for level, kinds in _LIKE.items()}
    stands = near | {Level.URGENT: 1 - shares["none"]}
    found: list[Finding] = []
    for rule in rules.rules:
        finding = _apply(rule, message, rules.notices)
        if finding is not None and stands[finding.level] > TOO_LITTLE[finding.level]:
            found.append(finding)
    for level, kinds in _LIKE.items():
        enough_words = len(classifier.words(text)) >= FEWEST_WORDS
        if enough_words and near[level] > ENOUGH[level] and not any(finding.level is level for finding in found):
            kind = max(kinds, key=lambda kind: shares[kind.value])
            notice = rules.notices[kind.value]
            found.append(Finding(f"like-{kind.value}", kind, level, 0, len(text), notice, "docs/guardrails.md"))
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
            for spans in _places(pattern, reading, message):
                if _is_silent(rule, spans, reading, message):
                    continue
                words = reading.sentence.words
                start = min(words[first].start for first, _ in spans)
                end = max(words[last - 1].end for _, last in spans)
                return Finding(rule.id, rule.kind, rule.level, start, end, notices[rule.notice], rule.source)
    return None


# --- identifiers and other languages -----------------------------------------------------------------

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DATE = (
    rf"(?:\d{{1,2}}[./-]\d{{1,2}}[./-]\d{{2,4}}|\d{{4}}-\d{{2}}-\d{{2}}"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?\s+{_MONTH},?\s+\d{{4}}|{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}})"
)
# After the kinds of 45 CFR 164.514(b)(2), HIPAA's Safe Harbor list, as far as a form gives them away.
_IDENTIFIERS: Mapping[str, re.Pattern[str]] = {
    "email": re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w"),
    "phone": re.compile(
        r"(?<![\w.])(?:\+\d{1,3}[ ./-]?(?:\(?\d{1,4}\)?[ ./-]?){2,5}\d{2,4}"
        r"|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}|0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,4})(?!\w)"
    ),
    "ssn": re.compile(r"(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)"),
    "nhs-number": re.compile(r"(?i)\bnhs\s*(?:number|no\.?|#)?[:\s#]*\d{3}[ -]?\d{3}[ -]?\d{4}\b"),
    "record-number": re.compile(
        r"(?i)\b(?:mrn|medical record|patient id|patient number|hospital number|chart|case|record|insurance|policy"
        r"|member|account|passport|licen[cs]e)"
        r"\s*(?:number|no\.?|id|#)?\s*(?:is|:|#)?\s*[A-Z]{0,3}[- ]?\d[\d-]{4,}"
    ),
    "birth-date": re.compile(
        rf"(?i)\b(?:dob|d\.o\.b\.?|born(?: on)?|date of birth|birthday|birthdate)\b[\s:is]{{0,6}}{_DATE}"
    ),
    "date": re.compile(rf"(?i)\b(?:on|admitted|discharged|seen|since|dated?)\s+(?:on\s+)?{_DATE}"),
    "address": re.compile(
        r"\b\d{1,5}[a-zA-Z]?\s+(?:[A-Z][a-z]+\s+){1,3}"
        r"(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Close|Court|Ct|Way|Place|Boulevard|Blvd)\b"
    ),
    "postcode": re.compile(r"\b[A-Z]{1,2}\d[A-Z\d]?\s\d[A-Z]{2}\b"),
    "ip-address": re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])"),
    "url": re.compile(r"https?://\S+"),
    "name": re.compile(
        r"(?:\b(?i:my name is|patient name is|patient name:|patient:|name:|named|called|signed)\s+"
        r"|\b(?:Mr|Mrs|Ms|Miss)\.?\s+)[A-Z][a-zäöüéèß'-]+(?:\s+[A-Z][a-zäöüéèß'-]+)*"
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
    "the a an i my me is are am was have has do does not it in on of to and for with what how why can should he she "
    "his her you your if this that there when who at be help pain no or from after before about".split()
)


def _language(text: str, message: Sequence[_Reading], notices: Mapping[str, str]) -> list[Finding]:
    """A finding where the text does not look English, since the rules cannot read it."""
    letters = [character for character in text if character.isalpha()]
    foreign = sum(character > "\u024f" for character in letters)
    words = re.findall(r"[^\W\d_]+", text.lower())
    unread = len(words) >= 5 and sum(word in _ENGLISH for word in words) * 6 < len(words)
    if not letters or not (foreign > len(letters) / 2 or unread):
        return []
    if foreign <= len(letters) / 2 and any(
        word.text in load().speller.vocabulary for r in message for word in r.sentence.words
    ):
        known = sum(word.text in load().speller.vocabulary for r in message for word in r.sentence.words)
        if known * 3 >= len(words):
            return []
    return [Finding("language", Kind.LANGUAGE, Level.NOTICE, 0, len(text), notices["language"], "docs/guardrails.md")]


# --- answers -----------------------------------------------------------------------------------------

_ANSWERS: Mapping[str, re.Pattern[str]] = {
    "dose": re.compile(
        r"(?i)\b\d[\d.,]*\s?(?:-|to)?\s?[\d.,]*\s?"
        r"(?:mg|mcg|µg|micrograms?|milligrams?|ml|millilit\w+|units|iu|tablets?|pills|capsules|puffs)\b"
    ),
    "stopping": re.compile(
        r"(?i)\b(?:stop|discontinue|quit|avoid) (?:taking|using) (?:your|the|any|all|this|that|these)? ?\w* ?"
        r"(?:medic\w+|pills?|tablets?|insulin|antibiotics?|antidepressants?|drugs?|treatment)"
    ),
    "reassures": re.compile(
        r"(?i)\b(?:no need to (?:see|worry|call|go)|(?:not|nothing) (?:a )?(?:serious|to worry about"
        r"|an emergency|dangerous)|(?:you are|you're) (?:fine|healthy|not having)"
        r"|do(?:n't| not) need to (?:see|call|go)|completely (?:normal|harmless)|will go away on its own)"
    ),
}


def check_answer(text: str, question: Sequence[Finding] = ()) -> tuple[Finding, ...]:
    """What a generated answer holds: a dose, a word about stopping a medicine, a reassurance, an identifier."""
    notices = load().notices
    found = [
        Finding(
            f"answer-{name}",
            Kind.ANSWER,
            Level.NOTICE,
            match.start(),
            match.end(),
            notices[f"answer_{name}"],
            "docs/guardrails.md",
        )
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
