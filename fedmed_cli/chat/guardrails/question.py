"""What a question must not pass without: emergencies, harm, doses, identifiers.

Two readers look at a question: the rules of rules.toml, each with its source, and a classifier (classifier.py), which
knows how people write. Either may raise a finding, but neither by itself against the clear word of the other.
Nothing here loads torch; the same text gives the same findings everywhere. docs/guardrails.md says what was measured
and what is not covered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from fedmed_cli.chat.guardrails import classifier, normalise, patterns
from fedmed_cli.chat.guardrails.findings import MAX_CHARACTERS, OWN_SOURCE, Finding, Kind, Level
from fedmed_cli.chat.guardrails.patterns import GuardrailRules, Pattern, Rule
from fedmed_cli.chat.guardrails.reading import Reading, Span

WINDOW = 14  # words between the parts of a pattern

# The share of a class from which likeness by itself raises a finding, and below which it silences a rule; an urgent
# rule is silenced only by likeness to harmless texts, since a question of doses may hold an emergency. Chosen on the
# open sets of prompts, each author's by a model that had not seen it (benchmarks/guardrails/train.py --held).
ENOUGH: Mapping[Level, float] = {Level.URGENT: 0.7, Level.DECLINE: 0.55, Level.NOTICE: 0.8}
TOO_LITTLE: Mapping[Level, float] = {Level.URGENT: 0.4, Level.DECLINE: 0.15, Level.NOTICE: 0.25}
FEWEST_WORDS = 3  # of a text that likeness may judge by itself: "And then?" says nothing
_KINDS: Mapping[Level, tuple[Kind, ...]] = {
    Level.URGENT: (Kind.EMERGENCY, Kind.CRISIS),
    Level.DECLINE: (Kind.MISUSE,),
    Level.NOTICE: (Kind.DOSING, Kind.DIAGNOSIS, Kind.STOPPING),
}
_ABOUT_SOMEBODY = re.compile(
    r" (?:i|my|mine|me|he|she|his|her|him|we|our|us|this|these|it|mother|father|son|daughter|husband|wife) "
)

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DATE = (
    rf"(?:\d{{1,2}}[./-]\d{{1,2}}[./-]\d{{2,4}}|\d{{4}}-\d{{2}}-\d{{2}}"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?\s+{_MONTH},?\s+\d{{4}}|{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}})"
)
# After the kinds of 45 CFR 164.514(b)(2), HIPAA's Safe Harbor list, as far as a form gives them away.
IDENTIFIERS: Mapping[str, re.Pattern[str]] = {
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
_ENGLISH = frozenset(
    "the a an i my me is are am was have has do does not it in on of to and for with what how why can should he she "
    "his her you your if this that there when who at be help pain no or from after before about".split()
)


def check_question(text: str) -> tuple[Finding, ...]:
    """What a question holds: the most urgent first, each rule at most once.

    A rule's finding counts unless the text is far from its kind; likeness adds one of a level that no rule has
    found where a text is near enough. Only the first MAX_CHARACTERS are looked at.
    """
    text = text[:MAX_CHARACTERS]
    rules = patterns.load()
    message = [
        Reading(sentence, rules.context) for sentence in normalise.sentences(text, rules.speller, rules.compounds)
    ]
    shares = classifier.shares(text)
    likeness = {level: sum(shares[kind.value] for kind in kinds) for level, kinds in _KINDS.items()}
    support = likeness | {Level.URGENT: 1 - shares["none"]}
    findings = [
        finding
        for rule in rules.rules
        if support[rule.level] > TOO_LITTLE[rule.level] and (finding := _apply(rule, message, rules.notices))
    ]
    levels = {finding.level for finding in findings}
    if len(classifier.words(text)) >= FEWEST_WORDS:
        for level, kinds in _KINDS.items():
            if likeness[level] > ENOUGH[level] and level not in levels:
                kind = max(kinds, key=lambda kind: shares[kind.value])
                notice = rules.notices[kind.value]
                findings.append(Finding(f"like-{kind.value}", kind, level, 0, len(text), notice, OWN_SOURCE))
    findings += _identifiers(text, rules.notices)
    if not any(finding.level is Level.URGENT for finding in findings) and _is_foreign(text, message, rules):
        notice = rules.notices["language"]
        findings.append(Finding("language", Kind.LANGUAGE, Level.NOTICE, 0, len(text), notice, OWN_SOURCE))
    order = list(Level)
    return tuple(sorted(findings, key=lambda finding: (order.index(finding.level), finding.kind is not Kind.CRISIS)))


def _apply(rule: Rule, message: Sequence[Reading], notices: Mapping[str, str]) -> Finding | None:
    """What a rule finds in a message: the first place where it matches and what it says is meant."""
    for reading in message:
        places = (spans for pattern in rule.match for spans in _places(pattern, reading, message))
        spans = next((spans for spans in places if not _is_denied_or_past(rule, spans, reading)), None)
        if spans is not None and not _is_silent(rule, reading, message):
            words = reading.sentence.words
            start = min(words[first].start for first, _ in spans)
            end = max(words[last - 1].end for _, last in spans)
            return Finding(rule.id, rule.kind, rule.level, start, end, notices[rule.notice], rule.source)
    return None


def _places(pattern: Pattern, reading: Reading, message: Sequence[Reading]) -> Iterator[list[Span]]:
    """Word spans of a pattern's parts near each other in a sentence, for each place where its first part is."""
    found_by_part: list[list[Span]] = []
    for part in pattern:
        if not part.anywhere:
            found_by_part.append(list(part.spans(reading.plain)))
            if not found_by_part[-1]:
                return
    for part in pattern:
        if part.anywhere and not any(part.expression.search(other.plain) for other in message):
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
    if any(True for pattern in rule.unless for _ in _places(pattern, reading, message)):
        return True
    if rule.personal and not any(_ABOUT_SOMEBODY.search(other.plain) for other in message):
        return True
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


def _identifiers(text: str, notices: Mapping[str, str]) -> Iterator[Finding]:
    source = "45 CFR 164.514(b)(2), Safe Harbor"
    notice = notices["identifier"]
    for name, expression in IDENTIFIERS.items():
        if match := expression.search(text):
            rule = f"identifier-{name}"
            yield Finding(rule, Kind.IDENTIFIER, Level.NOTICE, match.start(), match.end(), notice, source)


def _is_foreign(text: str, message: Sequence[Reading], rules: GuardrailRules) -> bool:
    """Whether a text does not look English, so that the rules cannot read it."""
    letters = [character for character in text if character.isalpha()]
    if sum(character > "\u024f" for character in letters) > len(letters) / 2:
        return True
    words = re.findall(r"[^\W\d_]+", text.lower())
    num_english = sum(word in _ENGLISH for word in words)
    num_known = sum(word.text in rules.speller.vocabulary for reading in message for word in reading.sentence.words)
    return bool(letters) and len(words) >= 5 and 6 * num_english < len(words) and 3 * num_known < len(words)
