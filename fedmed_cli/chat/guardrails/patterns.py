"""The patterns of rules.toml, turned once into expressions over plain words."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fedmed_cli.chat.guardrails.findings import Kind, Level
from fedmed_cli.chat.guardrails.normalise import Speller, plain_words, word_span


@dataclass(frozen=True)
class Part:
    """A part of a pattern: its expression, the bounds on the numbers in it, whether it may appear anywhere."""

    source: str  # of the expression
    bounds: tuple[tuple[float, bool], ...]  # (value, at least?) for each group
    anywhere: bool

    @functools.cached_property
    def expression(self) -> re.Pattern[str]:
        """Compiled when it is asked for: most questions need few of the rules, and all of them take half a second."""
        return re.compile(self.source)

    def spans(self, plain: str) -> Iterator[tuple[int, int]]:
        """First and last + 1 word of each place in a sentence's plain words."""
        for match in self.expression.finditer(plain):
            numbers = zip(match.groups(), self.bounds, strict=True)
            if all(
                text is None or (float(text) >= limit if at_least else float(text) <= limit)
                for text, (limit, at_least) in numbers
            ):
                yield word_span(match)


Pattern = tuple[Part, ...]
LONGEST_STEM = 20
ANY = "*"  # the first word of a pattern that begins with a number or an ending


@dataclass(frozen=True)
class Rule:
    """A row of rules.toml. `match`: each pattern with the words it can begin with ("abc*": so begun)."""

    id: str
    kind: Kind
    level: Level
    notice: str
    source: str
    match: tuple[tuple[frozenset[str], Pattern], ...]
    gone: bool
    generic: bool
    sign: bool


@dataclass(frozen=True)
class GuardrailRules:
    """All of rules.toml."""

    rules: tuple[Rule, ...]
    notices: Mapping[str, str]
    context: Mapping[str, re.Pattern[str]]
    compounds: re.Pattern[str]
    speller: Speller

    @functools.cached_property
    def signs(self) -> frozenset[str]:
        """The rules that count only where a message is like their kind."""
        return frozenset(rule.id for rule in self.rules if rule.sign)

    @functools.cached_property
    def by_first_word(self) -> Mapping[str, Sequence[tuple[int, Rule, Pattern]]]:
        """The patterns that can begin with a word, numbered in the table's order, with their rules."""
        table: dict[str, list[tuple[int, Rule, Pattern]]] = {}
        pairs = [(rule, starts, pattern) for rule in self.rules for starts, pattern in rule.match]
        for number, (rule, starts, pattern) in enumerate(pairs):
            for start in starts:
                table.setdefault(start, []).append((number, rule, pattern))
        return table

    def candidates(self, words: Iterable[str]) -> list[tuple[int, Rule, Pattern]]:
        """The patterns that can match a sentence of these plain words: all that begin with one of them."""
        keys = {ANY}
        for word in words:
            for part in {word, word.split("_")[0]}:
                keys.add(part)
                keys.update(f"{part[:size]}*" for size in range(1, min(len(part), LONGEST_STEM) + 1))
        found = {entry[0]: entry for key in keys for entry in self.by_first_word.get(key, ())}
        return [found[number] for number in sorted(found)]


class _Compiler:
    """Turns patterns into expressions over plain words, and collects the words they are made of."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names
        self.fillers = plain_words().fillers | plain_words().now_fillers
        self.words: set[str] = set()
        self.bounds: list[tuple[float, bool]] = []
        self._expanded: dict[str, str] = {}

    def patterns(self, texts: Iterable[str]) -> tuple[Pattern, ...]:
        return tuple(self._pattern(text) for text in texts)

    def any_of(self, phrases: Iterable[str], start: str = "(?<= )") -> re.Pattern[str]:
        return re.compile(start + "(?:" + "|".join(self._phrase(phrase) for phrase in phrases) + ")")

    def _pattern(self, text: str) -> Pattern:
        first, *others = re.split(r" ([+&]) ", text)
        signs, parts = ["+", *others[::2]], [first, *others[1::2]]
        return tuple(self._part(part, sign == "&") for part, sign in zip(parts, signs, strict=True))

    def starts(self, text: str) -> frozenset[str]:
        """The words that a pattern's first part can begin with, a stem with `*`."""
        found: set[str] = set()
        for word in text.split():
            if word == "+":
                break
            for alternative in word.rstrip("?").split("|"):
                if alternative in self.names:
                    found.update(*(self.starts(phrase) for phrase in self.names[alternative].split(",")))
                elif alternative[0] in "#*" or alternative == "YEAR":
                    found.add(ANY)
                elif plain := self._word(alternative, "").replace("[ _]", " ").split():
                    stem = plain[0].removesuffix(r"[^")
                    found.add(re.sub(r"\\(.)", r"\1", stem) + ("*" if stem != plain[0] else ""))
            if not word.endswith("?"):
                break
        return frozenset(found)

    def _part(self, text: str, anywhere: bool) -> Part:
        self.bounds = []
        source = r"(?<= )" + self._phrase(text)
        return Part(source, tuple(self.bounds), anywhere)

    def _phrase(self, text: str) -> str:
        """Each word with the blank after it, so that optional words and gaps need no care."""
        parts = []
        after = ""
        is_empty = True
        for word in text.split():
            if word == "..":
                # The nearest, so that a number is the next one. A denial is not leapt: "have never had one".
                parts.append(r"(?:(?!(?:no|not|never|without) )\S+ ){0,4}?")
                continue
            is_optional = word.endswith("?")
            alternatives = [self._word(alternative, after) for alternative in word.rstrip("?").split("|")]
            after = word
            joined = "|".join(alternative for alternative in alternatives if alternative)
            if joined:
                parts.append(f"(?:{joined})" + ("?" if is_optional else ""))
                is_empty = is_empty and is_optional
        if is_empty:
            raise ValueError(f"rules.toml: {text!r} matches everything")
        return "".join(parts)

    def _word(self, word: str, after: str) -> str:
        """An alternative with its closing blank: a number, a name, or words joined by "_"."""
        if number := re.fullmatch(r"#([\d.]+)([+-])", word):
            self.bounds.append((float(number[1]), number[2] == "+"))
            return r"(\d+(?:\.\d+)?) "
        if word == "YEAR":
            return r"(?:19|20)\d\d "
        if word in self.names:
            if word not in self._expanded:
                phrases = (phrase.strip() for phrase in self.names[word].split(","))
                self._expanded[word] = "|".join(self._phrase(phrase) for phrase in phrases if phrase)
                if "(\\d" in self._expanded[word]:
                    raise ValueError(f"rules.toml: {word} holds a number, which only a pattern may")
            return self._expanded[word]
        parts = []
        for part in word.split("_"):
            plain = part.strip("*")
            if plain in self.fillers and after != "not":
                continue
            plain = " ".join(plain_words().of(plain)) or plain
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
def load() -> GuardrailRules:
    """The rules that ship with fedmed, read once."""
    folder = resources.files(__package__)
    table: dict[str, Any] = tomllib.loads((folder / "rules.toml").read_text(encoding="utf-8"))
    compiler = _Compiler(table["names"])
    rules = tuple(
        Rule(
            row["id"],
            Kind(row["kind"]),
            Level(row["level"]),
            row["notice"],
            row["source"],
            tuple(zip(map(compiler.starts, row["match"]), compiler.patterns(row["match"]), strict=True)),
            row.get("gone", False),
            row.get("generic", False),
            row.get("sign", False),
        )
        for row in table["rule"]
    )
    vocabulary = set(compiler.words)
    compounds = compiler.any_of(table["compounds"])
    context = {
        name: compiler.any_of(phrases, "^ " if name == "informational_start" else "(?<= )")
        for name, phrases in table["context"].items()
    }
    # What only compounds and contexts are made of is known to be typed correctly, but no typing error is taken for it.
    others = (folder / "words.txt").read_text(encoding="utf-8").split()
    return GuardrailRules(rules, table["notices"], context, compounds, Speller(vocabulary, {*others, *compiler.words}))
