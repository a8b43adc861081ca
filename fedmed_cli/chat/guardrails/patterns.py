"""The patterns of rules.toml, turned once into expressions over plain words."""

from __future__ import annotations

import functools
import re
import tomllib
from collections import Counter
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
Needs = tuple[frozenset[str], ...]  # a sentence must hold a word of each set ("abc*": one so begun)
LONGEST_STEM = 20
ANY = "*"  # stands for a number, or for a word of which a pattern has the ending


@dataclass(frozen=True)
class Rule:
    """A row of rules.toml. `match`: each pattern with what it needs."""

    id: str
    kind: Kind
    level: Level
    notice: str
    source: str
    match: tuple[tuple[Needs, Pattern], ...]
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
    def by_word(self) -> Mapping[str, Sequence[tuple[int, Rule, Needs, Pattern]]]:
        """The patterns that have this in their rarest need, numbered in the table's order, with their rules."""
        pairs = [(rule, needs, pattern) for rule in self.rules for needs, pattern in rule.match]
        times = Counter(key for _, needs, _ in pairs for need in needs for key in need)
        times[ANY] = len(pairs)
        table: dict[str, list[tuple[int, Rule, Needs, Pattern]]] = {}
        for number, (rule, needs, pattern) in enumerate(pairs):
            for key in min(needs, key=lambda need: sum(times[key] for key in need)):
                table.setdefault(key, []).append((number, rule, needs, pattern))
        return table

    @functools.cached_property
    def needed(self) -> frozenset[str]:
        """All that a pattern needs."""
        return frozenset().union(*(need for rule in self.rules for needs, _ in rule.match for need in needs))

    def candidates(self, words: Iterable[str]) -> list[tuple[Rule, Pattern]]:
        """The patterns that can match a sentence of these plain words: all whose needs they meet."""
        keys = self.needed & {ANY}.union(*map(_keys, words))
        found = {
            number: (rule, pattern)
            for key in keys
            for number, rule, needs, pattern in self.by_word.get(key, ())
            if not any(keys.isdisjoint(need) for need in needs)
        }
        return [found[number] for number in sorted(found)]


@functools.lru_cache(maxsize=4096)
def _keys(word: str) -> frozenset[str]:
    """What `Needs` can call a word: itself, the first word of a compound, and each stem of them."""
    parts = {word, word.split("_")[0]}
    return frozenset(parts | {f"{part[:size]}*" for part in parts for size in range(1, LONGEST_STEM + 1)})


class _Compiler:
    """Turns patterns into expressions over plain words, and collects the words they are made of."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names
        self.fillers = plain_words().fillers | plain_words().now_fillers
        self.words: set[str] = set()
        self.bounds: list[tuple[float, bool]] = []
        self._expanded: dict[str, str] = {}

    def patterns(self, texts: Iterable[str]) -> tuple[tuple[Needs, Pattern], ...]:
        """Each pattern with what it needs."""
        return tuple(map(self._pattern, texts))

    def any_of(self, phrases: Iterable[str], start: str = "(?<= )") -> re.Pattern[str]:
        return re.compile(start + "(?:" + "|".join(self._phrase(phrase) for phrase in phrases) + ")")

    def _pattern(self, text: str) -> tuple[Needs, Pattern]:
        first, *others = re.split(r" ([+&]) ", text)
        signs, parts = ["+", *others[::2]], [first, *others[1::2]]
        needs = [need for part, sign in zip(parts, signs, strict=True) if sign == "+" for need in self._needs(part)]
        return tuple(needs), tuple(self._part(part, sign == "&") for part, sign in zip(parts, signs, strict=True))

    def _needs(self, text: str) -> Iterator[frozenset[str]]:
        """For each word that a part must have, what it can begin with: a word, or a stem with `*`."""
        after = ""
        for word in text.split():
            if word != "..":
                starts = self._starts(word.rstrip("?"), after)
                if not starts:
                    raise ValueError(
                        f"rules.toml: {word!r} in {text!r} is dropped from messages, so it asks for nothing"
                    )
                if not word.endswith("?"):
                    yield starts
                after = word

    def _starts(self, word: str, after: str) -> frozenset[str]:
        found: set[str] = set()
        for alternative in word.split("|"):
            if alternative in self.names:
                found.update(*(self._first_starts(phrase) for phrase in self.names[alternative].split(",")))
            elif alternative[0] in "#*" or alternative == "YEAR":
                found.add(ANY)
            elif plain := self._word(alternative, after).replace("[ _]", " ").split():
                stem = plain[0].removesuffix(r"[^")
                found.add(re.sub(r"\\(.)", r"\1", stem) + ("*" if stem != plain[0] else ""))
        return frozenset(found)

    def _first_starts(self, phrase: str) -> frozenset[str]:
        """What a phrase can begin with: its first word that is not optional, or an optional one before it."""
        found: frozenset[str] = frozenset()
        for word in phrase.split():
            starts = self._starts(word.rstrip("?"), "")
            found |= starts
            if starts and not word.endswith("?"):
                break
        return found

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
            compiler.patterns(row["match"]),
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
