"""What a question must not pass without: emergencies, harm, doses, identifiers.

Two readers look at a question: the rules of rules.toml, each with its source, and a classifier (classifier.py), which
knows how people write. A rule counts where the message is not far from its kind; likeness counts by itself where it is
strong, but a crisis is declared only where words speak of it. Nothing here loads torch; the same text gives the same
findings everywhere. docs/guardrails.md says what was measured and what is not covered.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedmed_cli.chat.guardrails import classifier, normalise, patterns
from fedmed_cli.chat.guardrails.findings import MAX_CHARACTERS, OWN_SOURCE, Finding, Kind, Level, Strictness
from fedmed_cli.chat.guardrails.patterns import GuardrailRules, Part, Pattern, Rule
from fedmed_cli.chat.guardrails.reading import Reading, Span, passages
from fedmed_cli.data import identifiers

WINDOW = 14  # words between the parts of a pattern
LONG_WORDS = 40
FURTHER_RULE = 0.2  # log-odds that each further rule of a kind makes up for: a fever, a stiff neck and a rash
FEWEST_WORDS = 3  # of a message that likeness may judge by itself: "And then?" says nothing


@dataclass(frozen=True)
class Point:
    """From which log-odds a kind counts: by likeness alone, and where a rule of that kind matches.

    `plain` and `doubtful` make it certain: in messages up to LONG_WORDS, and in longer ones, those that speak of months
    and years alone, where a sign may belong to a history, and those whose signs are all denied. `possible` earns a calm
    sentence. `danger`: from where likeness to a crisis that it does not declare means that somebody is in danger, in
    plain and in doubtful messages; `sign`: from where a warning sign counts.
    """

    plain: tuple[float, float]
    doubtful: tuple[float, float]
    possible: tuple[float, float] = (math.inf, math.inf)
    danger: tuple[float, float] = (math.inf, math.inf)
    sign: float = math.inf


# Searched for one after the other, each source by a model that had not seen it (docs/guardrails.md).
POINTS: Mapping[Strictness, Mapping[Kind, Point]] = {
    "standard": {
        Kind.CRISIS: Point((-0.5, -2.6), (4.5, 0.0), (1.3, -1.0), danger=(0.65, 2.2), sign=-2.5),
        Kind.EMERGENCY: Point((0.5, -0.8), (1.2, 0.5), (0.8, -0.8)),
        Kind.MISUSE: Point((0.8, -1.0), (0.8, -1.0)),
        Kind.DOSING: Point((1.4, -1.2), (1.4, -1.2)),
        Kind.DIAGNOSIS: Point((1.4, -1.2), (1.4, -1.2)),
        Kind.STOPPING: Point((1.4, -1.2), (1.4, -1.2)),
    },
    "strict": {
        Kind.CRISIS: Point((-1.0, -4.0), (3.0, -1.0), (-0.5, -5.0), danger=(0.0, 1.0), sign=-3.0),
        Kind.EMERGENCY: Point((-0.5, -3.0), (0.3, 0.3), (-1.0, -5.0)),
        Kind.MISUSE: Point((-0.5, -3.0), (-0.5, -3.0)),
        Kind.DOSING: Point((0.4, -2.0), (0.4, -2.0)),
        Kind.DIAGNOSIS: Point((0.4, -2.0), (0.4, -2.0)),
        Kind.STOPPING: Point((0.4, -2.0), (0.4, -2.0)),
    },
}
LEVELS: Mapping[Kind, Level] = {Kind.EMERGENCY: Level.URGENT, Kind.CRISIS: Level.URGENT, Kind.MISUSE: Level.DECLINE}
# Kinds that a chat is full of; none identifies anybody by itself.
UNNOTICED = frozenset(("url", "age", "date"))

_SPEAKER = re.compile(r" (?:i|my|me|we|our|us|help|please|someone) ")
_STEM = re.compile(
    r"(?i)(?:[:\u2013-]|(?<!he )(?<!it )(?<!they )\b(?:is|are|by|to|of|between|from|because))[\s?.:\u2013-]*$"
)
_ENGLISH = frozenset(
    "the a an i my me is are am was have has do does not it in on of to and for with what how why can should he she "
    "his her you your if this that there when who at be help pain no or from after before about".split()
)


def check_question(text: str, strictness: Strictness = "standard") -> tuple[Finding, ...]:
    """What a question holds: the most urgent first, each rule at most once.

    Only the first MAX_CHARACTERS are looked at.
    """
    text = text[:MAX_CHARACTERS]
    rules = patterns.load()
    message = [
        Reading(sentence, rules.context) for sentence in normalise.sentences(text, rules.speller, rules.compounds)
    ]
    findings = [*_find_kinds(text, message, rules, POINTS[strictness]), *_find_identifiers(text, rules.notices)]
    if not any(finding.level is Level.URGENT for finding in findings) and _is_foreign(text, message, rules):
        notice = rules.notices["language"]
        findings.append(Finding("language", Kind.LANGUAGE, Level.NOTICE, 0, len(text), notice, OWN_SOURCE))
    order = list(Level)
    return tuple(sorted(findings, key=lambda finding: (order.index(finding.level), finding.kind is not Kind.CRISIS)))


def _find_kinds(
    text: str, message: Sequence[Reading], rules: GuardrailRules, points: Mapping[Kind, Point]
) -> Iterator[Finding]:
    """What rules and likeness find together."""
    scores = classifier.scores(passages(text, message))
    matched, denied = _match_rules(message, rules)
    num_words = sum(len(reading.sentence.words) for reading in message)
    is_personal = any(reading.is_personal for reading in message)
    is_exam = is_examination(text, message)
    is_knowledge = is_exam or (all(reading.is_informational for reading in message) and not is_personal)
    is_history = _says(message, "lasting") and not _says(message, "recent")
    certain: set[Level] = set()
    for kind, point in points.items():
        level = LEVELS.get(kind, Level.NOTICE)
        is_urgent = level is Level.URGENT
        own = [finding for finding in matched if finding.kind is kind]
        if is_urgent and (is_exam or (is_knowledge and not own)):
            continue
        score = scores[kind.value] if num_words >= FEWEST_WORDS else -math.inf
        is_denied = kind is Kind.EMERGENCY and kind in denied and not own
        is_doubtful = is_denied or num_words > LONG_WORDS or (kind is Kind.EMERGENCY and is_history)
        alone, with_rule = point.doubtful if is_doubtful else point.plain
        with_rule -= FURTHER_RULE * max(0, len(own) - 1)
        perhaps_alone, perhaps_with_rule = point.possible
        if is_denied:
            perhaps_alone = max(alone, perhaps_alone)
        danger = point.danger[is_doubtful]
        like = None if is_urgent and is_knowledge else _by_likeness(kind, message, is_personal, score, alone, danger)
        by_rule = scores["urgent" if kind is Kind.EMERGENCY else kind.value]
        firm = [finding for finding in own if by_rule > (point.sign if finding.rule in rules.signs else with_rule)]
        if firm and by_rule > with_rule:
            certain.add(level)
            yield from firm
        elif level in certain:
            continue
        elif like:
            certain.add(level)
            yield _likeness(like, level, rules.notices[kind.value if like is kind else "danger"], text)
        elif score > perhaps_alone or (own and by_rule > perhaps_with_rule):
            yield _likeness(kind, Level.POSSIBLE, rules.notices[f"possible_{kind.value}"], text)


def _by_likeness(
    kind: Kind, message: Sequence[Reading], is_personal: bool, score: float, alone: float, danger: float
) -> Kind | None:
    """What likeness to a kind declares by itself: harm only where a word speaks of it, and a crisis likewise.

    Where all such words are denied, nothing. Where there is none, or the likeness is not enough for a crisis, somebody
    whom a message speaks of may be in danger: an emergency.
    """
    is_spoken_of = kind not in (Kind.CRISIS, Kind.MISUSE) or any(reading.affirms(kind.value) for reading in message)
    if is_spoken_of and score > alone:
        return kind
    may_be_danger = kind is Kind.CRISIS and is_personal and (is_spoken_of or not _says(message, "crisis"))
    return Kind.EMERGENCY if may_be_danger and score > danger else None


def _likeness(kind: Kind, level: Level, notice: str, text: str) -> Finding:
    return Finding(f"like-{kind.value}", kind, level, 0, len(text), notice, OWN_SOURCE)


def is_examination(text: str, message: Sequence[Reading]) -> bool:
    """Whether a message is a question out of an examination: a case, or a fact to be named, and nobody speaks."""
    if any(_SPEAKER.search(reading.plain) for reading in message):
        return False
    is_personal = any(reading.is_personal for reading in message)
    is_case = _says(message, "exam")
    asks = _says(message[-1:], "exam_question") or bool(_STEM.search(text[-40:]))
    return (asks and is_case) or ((asks or is_case) and not is_personal)


def _says(message: Sequence[Reading], name: str) -> bool:
    return any(reading.says(name) for reading in message)


def _match_rules(message: Sequence[Reading], rules: GuardrailRules) -> tuple[list[Finding], set[Kind]]:
    """What each rule finds in a message (the first place where it is meant), and the kinds that are only denied."""
    found: dict[str, Finding] = {}
    denied: set[Kind] = set()

    @functools.cache
    def is_anywhere(part: Part) -> bool:
        return any(part.expression.search(reading.plain) for reading in message)

    for reading in message:
        words = reading.sentence.words
        silent: set[str] = set()
        for rule, pattern in rules.candidates(word.text for word in words):
            if rule.id in found or rule.id in silent:
                continue
            if not all(is_anywhere(part) for part in pattern if part.anywhere):
                continue
            for spans in _places(pattern, reading):
                if _is_denied_or_past(rule, spans, reading):
                    denied.add(rule.kind)
                else:
                    if _is_silent(rule, reading, message):
                        silent.add(rule.id)
                        break
                    start = min(words[first].start for first, _ in spans)
                    end = max(words[last - 1].end for _, last in spans)
                    notice = rules.notices[rule.notice]
                    found[rule.id] = Finding(rule.id, rule.kind, rule.level, start, end, notice, rule.source)
                    break
    return [found[rule.id] for rule in rules.rules if rule.id in found], denied


def _places(pattern: Pattern, reading: Reading) -> Iterator[list[Span]]:
    """Word spans of a pattern's own parts near each other in a sentence, for each place where its first part is."""
    found_by_part: list[list[Span]] = []
    for part in pattern:
        if not part.anywhere:
            found_by_part.append(list(part.spans(reading.plain)))
            if not found_by_part[-1]:
                return
    for first in found_by_part[0]:
        place = [first]
        for spans in found_by_part[1:]:
            free = [span for span in spans if all(span[1] <= other[0] or other[1] <= span[0] for other in place)]
            if not free:
                break
            place.append(min(free, key=lambda span: abs(span[0] - first[0])))
        else:
            if max(span[0] for span in place) - min(span[1] for span in place) <= WINDOW:
                yield place


def _is_denied_or_past(rule: Rule, spans: Sequence[Span], reading: Reading) -> bool:
    """Whether what a rule matched is said not to be so, or no longer."""
    if rule.generic or rule.kind is Kind.DIAGNOSIS:
        return False
    if rule.kind is Kind.MISUSE or reading.denies(spans):
        return reading.denies(spans)
    is_over = reading.is_past(spans) or (not rule.gone and reading.has_ended(spans))
    return is_over and not reading.is_back


def _is_silent(rule: Rule, reading: Reading, message: Sequence[Reading]) -> bool:
    """Whether a rule that matched says nothing, because of how the sentence is meant."""
    if rule.generic or rule.kind in (Kind.DIAGNOSIS, Kind.MISUSE):
        return False
    is_asked = reading.is_informational and not reading.is_personal
    if rule.kind is Kind.CRISIS:
        return is_asked
    if is_asked:  # unless another sentence says that it is happening
        return not any(
            other is not reading and not other.is_informational and other.says("it_is_here") for other in message
        )
    return reading.says("supposed") and not reading.is_now


def _find_identifiers(text: str, notices: Mapping[str, str]) -> Iterator[Finding]:
    """The first of each kind that `fedmed split` would redact, but for those that a chat is full of."""
    seen = set(UNNOTICED)
    for start, end, kind in identifiers.find(text):
        if kind not in seen:
            seen.add(kind)
            yield Finding(
                f"identifier-{kind}",
                Kind.IDENTIFIER,
                Level.NOTICE,
                start,
                end,
                notices["identifier"],
                identifiers.SOURCE,
            )


def _is_foreign(text: str, message: Sequence[Reading], rules: GuardrailRules) -> bool:
    """Whether a text does not look English, so that the rules cannot read it."""
    letters = [character for character in text if character.isalpha()]
    if sum(character > "\u024f" for character in letters) > len(letters) / 2:
        return True
    words = re.findall(r"[^\W\d_]+", text.lower())
    num_english = sum(word in _ENGLISH for word in words)
    num_known = sum(word.text in rules.speller.vocabulary for reading in message for word in reading.sentence.words)
    return bool(letters) and len(words) >= 5 and 6 * num_english < len(words) and 3 * num_known < len(words)
