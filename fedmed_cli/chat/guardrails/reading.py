"""How a message is meant, sentence by sentence: when it was, whose it is, whether it is denied or only asked about."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedmed_cli.chat.guardrails.normalise import Sentence, word_span

NEGATION_REACH = 7  # words after a denial that it can cover
PASSAGE_WORDS = 60  # a longer message is read in passages, so that a sign is not lost among much else
STEP_WORDS = 30
MARKS = ("lasting", "recent", "sought")  # contexts: for months or years, since hours, information or a treatment

Span = tuple[int, int]  # first and last + 1 word

# After these a denial is over: another thought or another subject begins.
_BREAKS = frozenset("but however although though except yet and because so then now i he she my his her it".split())
_SUBJECTS = frozenset("i he she we they my his her our it there".split())
_CONNECTIVES = frozenset("but however although though yet and because so then now".split())
_OPENERS = frozenset("when as in back after before since last once during years".split())
_DENYING = frozenset("no not never without neither nor none nobody".split())
_POSSESSIVES = frozenset("my his her it".split())
_GREETING = re.compile(r"^ (?:(?:hi|hello|hey|ok|okay|so|well|and|but|also|doctor|doc|dear|thanks|sorry) )+")


class Reading:
    """What one sentence says, by the phrases of rules.toml's [context]."""

    def __init__(self, sentence: Sentence, context: Mapping[str, re.Pattern[str]]) -> None:
        self.sentence = sentence
        self.plain = sentence.plain
        self._context = context
        self._said: dict[str, bool] = {}

    def says(self, name: str) -> bool:
        """Whether a phrase of this context is in the sentence."""
        if name not in self._said:
            self._said[name] = bool(self._context[name].search(self.plain))
        return self._said[name]

    def affirms(self, name: str) -> bool:
        """Whether a phrase of this context is in the sentence and not denied."""
        return any(not self.denies([span]) for span in self._spans(name))

    def is_past(self, spans: Sequence[Span]) -> bool:
        """Whether a clause of a match says that it was long ago."""
        return any(self._clauses[first] in self._past_clauses for first, _ in spans)

    def has_ended(self, spans: Sequence[Span]) -> bool:
        """Whether a clause of a match says that it has ended."""
        return any(self._clauses[first] in self._ended_clauses for first, _ in spans)

    def denies(self, spans: Sequence[Span]) -> bool:
        """Whether a match is in the scope of a denial that is not a part of it ("not breathing" denies itself)."""
        return any(
            any(first < stop and start < end for first, end in spans)
            and not any(first <= denial < end for first, end in spans)
            for denial, start, stop in self._denials
        )

    @cached_property
    def is_informational(self) -> bool:
        head = _GREETING.sub(" ", self.plain)
        return bool(self._context["informational_start"].search(head)) or self.says("informational_anywhere")

    @cached_property
    def is_personal(self) -> bool:
        return bool(self._context["personal"].search(self._context["asking"].sub("", self.plain)))

    @cached_property
    def is_now(self) -> bool:
        return self.sentence.is_now or self.says("now")

    @cached_property
    def is_back(self) -> bool:
        """Whether what is past or over matters again."""
        return self.sentence.is_now or self.says("back")

    def _spans(self, name: str) -> list[Span]:
        return [word_span(match) for match in self._context[name].finditer(self.plain)]

    @cached_property
    def _past_clauses(self) -> set[int]:
        return {self._clauses[first] for first, _ in self._spans("past")}

    @cached_property
    def _ended_clauses(self) -> set[int]:
        return {self._clauses[first] for first, _ in self._spans("ended")}

    @cached_property
    def _clauses(self) -> list[int]:
        """The number of each word's clause; an opening "when I was a child, …" belongs to what follows it."""
        words = self.sentence.words
        numbers: list[int] = []
        number = 0
        for index, word in enumerate(words):
            opens = word.text in _CONNECTIVES or (word.after_comma and word.text in _SUBJECTS)
            if index and opens and not (number == 0 and words[0].text in _OPENERS):
                number += 1
            numbers.append(number)
        return numbers

    @cached_property
    def _denials(self) -> list[tuple[int, int, int]]:
        """The word of each denial, and the words from-to in its scope.

        After NegEx (Chapman et al. 2001, doi 10.1006/jbin.2001.1029).
        """
        words = self.sentence.words
        spared = {first for first, _ in self._spans("not_negation")}
        denials = []
        for first, start in self._spans("negation"):
            if not spared.isdisjoint(range(first, start)):
                continue
            is_bare = start == first + 1 and words[first].text == "not"
            reach = 2 if is_bare else NEGATION_REACH
            stop = start
            while stop < min(start + reach, len(words)):
                word = words[stop]
                if word.text == "or":
                    reach += 3
                if word.text in _BREAKS and not (stop == start and word.text in _POSSESSIVES):
                    break
                if word.after_comma and stop > start and word.text in _SUBJECTS:
                    break
                stop += 1
            denial = next((index for index in range(first, start) if words[index].text in _DENYING), first)
            denials.append((denial, start, stop))
        return denials


@dataclass(frozen=True)
class Passage:
    """Neighbouring sentences of a message. `marks`: what it and what the whole message say of time and purpose."""

    text: str
    marks: tuple[str, ...]


def passages(text: str, message: Sequence[Reading]) -> list[Passage]:
    """A message in overlapping runs of whole sentences; one passage where it is short."""
    said = [{mark for mark in MARKS if reading.says(mark)} for reading in message]
    in_all = set().union(*said)
    whole = {f"({mark} message)" for mark in in_all}
    if "lasting" in in_all and "recent" not in in_all:
        whole.add("(only lasting)")
    sizes = [len(reading.sentence.words) for reading in message]
    found = []
    first = 0
    while True:
        stop, size = first, 0
        while stop < len(message) and (stop == first or size + sizes[stop] <= PASSAGE_WORDS):
            size += sizes[stop]
            stop += 1
        start = message[first].sentence.words[0].start if first else 0
        end = message[stop].sentence.words[0].start if stop < len(message) else len(text)
        own = {f"({mark})" for mark in set().union(*said[first:stop])}
        found.append(Passage(text[start:end], tuple(sorted(own | whole))))
        if stop >= len(message):
            return found
        size = 0
        while first < stop and (size == 0 or size < STEP_WORDS):
            size += sizes[first]
            first += 1
