"""The words of a question in one plain form: contractions, spellings, numbers and typing errors evened out."""

from __future__ import annotations

import functools
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

# Case, accents and look-alike letters are folded to these.
_LOOKALIKES = str.maketrans("а е о р с х у і к м т н в".replace(" ", ""), "aeopcxyikmthb")
_LEET = (str.maketrans("013457@$!", "oieastasi"), str.maketrans("013457@$!", "oleastasl"))
_TOKEN = re.compile(
    r"[^\W_](?:[^\W_]|\0)*(?:[.,]\d+)?(?:['’`´][^\W\d_]+)*(?:[*@$!][^\W_]+)*|[.!?;…\n]+|[,:()\[\]/–—-]", re.UNICODE
)
_UNIT = re.compile(r"(\d+(?:[.,]\d+)?)([a-z]{1,5})")
_WILL = re.compile(r"(.+)['’`´]ll")
_JOINED_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
LONGEST_SENTENCE = 60  # words; what has no full stop is cut there
_BEFORE_IS = frozenset("he she it that there what who how where someone everyone let here".split())


@dataclass(frozen=True)
class PlainWords:
    """What plain_words.toml holds."""

    fillers: frozenset[str]
    now_fillers: frozenset[str]
    expansions: Mapping[str, str]
    spellings: Mapping[str, str]
    sounds: Mapping[str, str]

    def of(self, word: str) -> list[str]:
        """A correctly typed lower-case word in the spelling that the rules use: none, one or several words."""
        if word in self.expansions:
            return self.expansions[word].split()
        word = self.spellings.get(word, word)
        for sound, spelled in self.sounds.items():
            word = word.replace(sound, spelled)
        return [word]


@functools.cache
def plain_words() -> PlainWords:
    """The table that ships with fedmed."""
    table = tomllib.loads((resources.files(__package__) / "plain_words.toml").read_text(encoding="utf-8"))
    fillers, now_fillers = frozenset(table.pop("fillers")), frozenset(table.pop("now_fillers"))
    return PlainWords(fillers, now_fillers, **table)


@dataclass(frozen=True)
class Word:
    """A word in its plain form, with its place in the text as it was typed."""

    text: str
    start: int
    end: int
    after_comma: bool


@dataclass(frozen=True)
class Sentence:
    """Words between two full stops. `is_now`: a dropped filler ("just", "still") said that it is happening."""

    words: tuple[Word, ...]
    is_now: bool

    @property
    def plain(self) -> str:
        """The words, each followed by a blank and the first after one: what patterns are matched against."""
        return _plain(self.words)


def _plain(words: Iterable[Word]) -> str:
    return " " + "".join(f"{word.text} " for word in words)


def word_span(match: re.Match[str]) -> tuple[int, int]:
    """First and last + 1 word of a match in a sentence's plain words."""
    first = match.string.count(" ", 0, match.start() + 1) - 1
    return first, first + match.group().strip().count(" ") + 1


def fold(text: str) -> str:
    """Lower case without accents, invisible characters and look-alike letters; as long as `text`."""
    return text.lower() if text.isascii() else "".join(map(_fold, text))


@functools.lru_cache(maxsize=1024)
def _fold(character: str) -> str:
    parts = unicodedata.normalize("NFKD", character)
    plain = next((part for part in parts if not unicodedata.combining(part)), "")
    if unicodedata.category(character) in ("Cf", "Mn") or not plain:
        plain = "\0"
    return plain.lower()[:1].translate(_LOOKALIKES)


def distance(one: str, other: str, limit: int) -> int:
    """Edits from one word to another, where swapping two neighbours is one edit; more than `limit` is limit + 1.

    Optimal string alignment (Damerau 1964, doi 10.1145/363958.363994).
    """
    if abs(len(one) - len(other)) > limit:
        return limit + 1
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    one, other = one[same:], other[same:]
    if not one or not other:
        return len(one or other)
    if not limit:
        return 1
    ways = [(one[1:], other[1:]), (one[1:], other), (one, other[1:])]
    if one[:2] == other[1::-1]:
        ways.append((one[2:], other[2:]))
    return 1 + min(distance(*way, limit - 1) for way in ways)


def _limit(shorter: int) -> int:
    """How many typing errors a word is taken to have, by the letters of the shorter of two words."""
    return 0 if shorter < 4 else 1 if shorter < 8 else 2


def _letters(word: str) -> int:
    """A bit for each letter in a word: an edit changes at most two of them, one where it changes the length."""
    return functools.reduce(lambda bits, letter: bits | 1 << ord(letter) % 32, word, 0)


def _typing_errors(typed: str, known: str) -> int | None:
    """Edits from a known word to the typed one; None where they are too many, or mean another word."""
    shorter = min(len(typed), len(known))
    limit = _limit(shorter)
    edits = distance(typed, known, limit)
    if edits > limit:
        return None
    if typed[0] != known[0] or len(typed) == len(known) == 4:  # letters may be swapped, no more
        return edits if sorted(typed) == sorted(known) else None
    # A short word may lack a letter or have one too many; but a plural is not a typing error.
    return None if shorter == 4 and typed[-1] == "s" else edits


def _is_masked(typed: str, known: str) -> bool:
    """Whether each `*` in the typed word stands for letters of the known one."""
    head, *middle, tail = typed.split("*")
    if not known.startswith(head) or not known.endswith(tail):
        return False
    at = len(head)
    for piece in middle:
        at = known.find(piece, at + 1)
        if at < 0:
            return False
        at += len(piece)
    return at < len(known) - len(tail)


class Speller:
    """Takes a mistyped word for the word of the rules that was meant.

    `vocabulary` are the words of the rules, `others` real words that look like one of them and are never changed.
    """

    def __init__(self, vocabulary: Iterable[str], others: Iterable[str]) -> None:
        self.vocabulary = frozenset(vocabulary)
        self.known = self.vocabulary | frozenset(others)
        self._alike: dict[tuple[str, int], list[tuple[int, str]]] = {}  # by first letter and length
        self._masked: dict[str, list[str]] = {}  # by first letter
        for word in sorted(word for word in self.vocabulary if len(word) >= 4):
            self._masked.setdefault(word[0], []).append(word)
            if word.isalpha():
                self._alike.setdefault((word[0], len(word)), []).append((_letters(word), word))
        self._seen: dict[str, str] = {}

    def correct(self, word: str) -> str:
        """`word`, or the word or two words of the rules that it is a mistyped form of."""
        if word in self.known or word in plain_words().fillers or len(word) > 30:
            return word
        if word not in self._seen:
            self._seen[word] = self._guess(word)
        return self._seen[word]

    def _guess(self, word: str) -> str:
        if "*" in word:
            return next(
                (known for known in self._masked.get(word[0], ()) if _is_masked(word, known)), word.replace("*", "")
            )
        if len(word) < 4 or not word.isalpha():
            return word
        # Drawn-out letters shortened: "helpppp", "bleeeding".
        for form in (re.sub(r"(.)\1{2,}", r"\1\1", word), re.sub(r"(.)\1+", r"\1", word)):
            if form in self.known:
                return form
        own = _letters(word)
        near = [
            (errors, abs(length - len(word)), known)
            for first in {word[0], word[1]}  # the first two letters may be swapped
            for length in range(len(word) - 2, len(word) + 3)
            for limit, longer in [(_limit(min(length, len(word))), abs(length - len(word)))]
            if longer <= limit
            for letters, known in self._alike.get((first, length), ())
            if (own ^ letters).bit_count() <= 2 * limit - longer and (errors := _typing_errors(word, known)) is not None
        ]
        if near:
            return min(near)[-1]
        for cut in range(4, len(word) - 3):
            if word[:cut] in self.vocabulary and word[cut:] in self.vocabulary:
                return f"{word[:cut]} {word[cut:]}"
        return word


def _token_words(raw: str, speller: Speller) -> list[str]:
    """A token as typed, folded, to its plain words: none for a filler, several for a contraction."""
    plain = plain_words()
    token = raw.strip("'’`´*@$!").replace("\0", "")
    if future := _WILL.fullmatch(token):
        return [*_token_words(future[1], speller), "will"]
    token = re.sub(r"['’`´]s$", "s" if token[:-2] in _BEFORE_IS else "", token)
    token = re.sub(r"['’`´]", "", token)
    if _JOINED_NUMBER.fullmatch(token):
        return [token.replace(",", "." if len(token.split(",")[-1]) != 3 else "")]
    if unit := _UNIT.fullmatch(token):
        return [unit[1].replace(",", "."), *_token_words(unit[2], speller)]
    if not token.isalpha() and any(c.isdigit() or c in "@$!" for c in token):
        forms = [token.translate(table) for table in _LEET]
        token = next((form for form in forms if form in speller.vocabulary), forms[0])
    if token in plain.expansions:
        return plain.of(token)
    return [word for meant in speller.correct(" ".join(plain.of(token))).split() for word in plain.of(meant)]


def sentences(text: str, speller: Speller, compounds: re.Pattern[str]) -> list[Sentence]:
    """The sentences of a text in plain words. `compounds` are phrases that count as one word."""
    now_fillers = plain_words().now_fillers
    fillers = plain_words().fillers | now_fillers
    result: list[Sentence] = []
    words: list[Word] = []
    known: dict[str, list[str]] = {}
    after_comma = is_now = False
    tokens = [(match.group(), match.start(), match.end()) for match in _TOKEN.finditer(fold(text))]
    for raw, start, end in [*tokens, (".", 0, 0)]:
        if raw == "\n" or raw in ",:()[]–—":
            after_comma = True
        elif raw[0] in ".!?;…\n":
            if words:
                result.append(Sentence(_join(words, compounds), is_now))
            words, after_comma, is_now = [], raw[0] == "\n", False
        elif raw not in "-/":
            if raw not in known:
                known[raw] = _token_words(raw, speller)
            for plain in known[raw]:
                is_now = is_now or plain in now_fillers
                # "not just" and "not really" deny nothing: after "not" a filler is a word that counts.
                if plain not in fillers or (words and words[-1].text == "not"):
                    words.append(Word(plain, start, end, after_comma))
                    after_comma = False
            if len(words) >= LONGEST_SENTENCE:
                result.append(Sentence(_join(words, compounds), is_now))
                words, after_comma, is_now = [], True, False
    return result


def _join(words: Sequence[Word], compounds: re.Pattern[str]) -> tuple[Word, ...]:
    joined: list[Word] = []
    position = 0
    for first, end in map(word_span, compounds.finditer(_plain(words))):
        if first >= position:
            parts = words[first:end]
            compound = Word("_".join(word.text for word in parts), parts[0].start, parts[-1].end, parts[0].after_comma)
            joined += [*words[position:first], compound]
            position = end
    return (*joined, *words[position:])
