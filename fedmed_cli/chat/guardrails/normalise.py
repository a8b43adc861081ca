"""The words of a question in one plain form: contractions, spellings, numbers and typos made alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# Case, accents and look-alike letters are folded to these.
_LOOKALIKES = str.maketrans("а е о р с х у і к м т н в".replace(" ", ""), "aeopcxyikmthb")
_LEET = (str.maketrans("013457@$!", "oieastasi"), str.maketrans("013457@$!", "oleastasl"))
_TOKEN = re.compile(
    r"[^\W_](?:[^\W_]|\0)*(?:[.,]\d+)?(?:['’`´][^\W\d_]+)*(?:[*@$!][^\W_]+)*|[.!?;…\n]+|[,:()\[\]/–—-]", re.UNICODE
)
_UNIT = re.compile(r"(\d+(?:[.,]\d+)?)([a-z]{1,5})")
_JOINED_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")

CONTRACTIONS: Mapping[str, str] = {
    **{
        f"{verb}nt": f"{verb} not"
        for verb in ("is are was were do does did has have had would could should must need might dare".split())
    },
    **{"cant": "cannot", "cannot": "cannot", "wont": "will not", "shant": "will not", "aint": "is not"},
    **{"im": "i am", "ive": "i have", "id": "i would", "youre": "you are", "theyre": "they are", "were": "were"},
    **{"hes": "he is", "shes": "she is", "its": "it is", "thats": "that is", "theres": "there is"},
    **{"whats": "what is", "whos": "who is", "hows": "how is", "wheres": "where is", "lets": "let us"},
    **{"youve": "you have", "weve": "we have", "theyve": "they have", "itll": "it will", "ill": "ill"},
    **{
        "gonna": "going to",
        "wanna": "want to",
        "wana": "want to",
        "want2": "want to",
        "gotta": "have to",
        "tryna": "trying to",
        "dunno": "do not know",
    },
    **{"hafta": "have to", "kinda": "", "sorta": "", "lemme": "let me", "gimme": "give me", "outta": "out of"},
    **{"u": "you", "ur": "your", "r": "are", "pls": "", "plz": "", "bc": "because", "cuz": "because"},
    **{"coz": "because", "cos": "because", "rn": "right now", "atm": "right now", "kms": "kill myself"},
    **{"idk": "i do not know", "w": "with", "thru": "through", "tho": "though", "abt": "about", "ppl": "people"},
    **{"yo": "year old", "yr": "year", "yrs": "years", "wk": "week", "wks": "weeks", "mo": "month"},
    **{"mos": "months", "mth": "month", "mths": "months", "hr": "hour", "hrs": "hours", "min": "minutes"},
    **{"mins": "minutes", "mum": "mother", "mom": "mother", "mummy": "mother", "mommy": "mother", "mam": "mother"},
    **{"dad": "father", "daddy": "father", "hubby": "husband", "gran": "grandmother", "nan": "grandmother"},
    **{"grandma": "grandmother", "granny": "grandmother", "nana": "grandmother", "grandad": "grandfather"},
    **{"grandpa": "grandfather", "granddad": "grandfather", "bf": "boyfriend", "gf": "girlfriend"},
    **{"lo": "baby", "bub": "baby", "infant": "baby", "newborn": "newborn", "meds": "medicine"},
    **{"od": "overdose", "ods": "overdose", "oded": "overdosed", "ods'd": "overdosed", "lbs": "pounds"},
    **{"nite": "night", "thx": "", "docs": "doctors", "temp": "temperature", "bp": "blood pressure"},
    **{"preggers": "pregnant", "preggo": "pregnant", "prego": "pregnant", "sb": "someone", "smb": "someone"},
    **{"cardiac": "cardiac", "tia": "mini stroke", "mi": "heart attack"},
    **{"cannt": "cannot", "cnt": "cannot", "cudnt": "could not", "wasnt": "was not", "dont": "do not"},
    **{"doesnt": "does not", "doesn": "does not", "cos": "because", "wud": "would", "shud": "should"},
    **{"cud": "could", "nothin": "nothing", "somethin": "something", "everythin": "everything"},
    **{"unalive": "kill", "unaliving": "killing", "sewerslide": "suicide", "suicidal": "suicidal"},
    **{"hemorrhoids": "haemorrhoids", "someones": "someone is", "sbs": "someone is", "everyones": "everyone"},
}
# American to British where a plain letter rule does not do it; both forms then match one pattern.
SPELLINGS: Mapping[str, str] = {
    "diarrhea": "diarrhoea",
    "esophagus": "oesophagus",
    "estrogen": "oestrogen",
    "fetal": "foetal",
    "fetus": "foetus",
    "gray": "grey",
    "labor": "labour",
    "diaper": "nappy",
    "diapers": "nappies",
    "pediatric": "paediatric",
    "acetaminophen": "paracetamol",
    "tylenol": "paracetamol",
    "panadol": "paracetamol",
    "epinephrine": "adrenaline",
    "ass": "bottom",
    "butt": "bottom",
    "tummy": "stomach",
    "belly": "stomach",
    "abdomen": "stomach",
    "abdominal": "stomach",
    "poop": "poo",
    "pooping": "pooing",
    "stool": "poo",
    "stools": "poo",
    "pee": "urine",
    "wee": "urine",
    "peeing": "urinating",
    "puke": "vomit",
    "puked": "vomited",
    "puking": "vomiting",
    "vomitting": "vomiting",
    "woozy": "dizzy",
    "ambulence": "ambulance",
    "tumor": "tumour",
    "tumors": "tumours",
    "paralyzed": "paralysed",
    "synthesize": "synthesise",
    "weaponize": "weaponise",
    "color": "colour",
    "odor": "odour",
    "anesthetic": "anaesthetic",
    "sulfate": "sulphate",
    "meter": "metre",
    "apologize": "apologise",
    "recognize": "recognise",
    "analyze": "analyse",
    "pharmacy": "pharmacy",
    "sanitizer": "sanitiser",
    "fertilizer": "fertiliser",
    "neighbor": "neighbour",
    "neighbors": "neighbours",
    "behavior": "behaviour",
    "hiccough": "hiccup",
    "math": "maths",
}
_SOUNDS = (("haem", "hem"), ("paed", "ped"), ("oed", "ed"))
NUMBERS: Mapping[str, str] = {
    name: str(value)
    for value, name in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
    if name not in ("zero", "one")
} | {"thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "hundred": "100", "dozen": "12"}
FILLERS = frozenset(
    "a an the really very so literally actually basically totally pretty quite super extremely please fucking "
    "fuckin freaking frigging damn terribly awfully incredibly um uh oh omg any some sort kinda maybe perhaps "
    "honestly seriously absolutely completely also".split()
)
NOW_FILLERS = frozenset("just still currently presently".split())


@dataclass(frozen=True)
class Word:
    """A word in its plain form, with where it stands in the text as it was typed."""

    text: str
    start: int
    end: int
    after_comma: bool


@dataclass(frozen=True)
class Sentence:
    """Words between two full stops. `is_now`: a dropped filler ("just", "still") said that it is happening."""

    words: tuple[Word, ...]
    is_now: bool
    ending: str

    @property
    def plain(self) -> str:
        """The words, each followed by a blank and the first after one: what patterns are matched against."""
        return " " + "".join(f"{word.text} " for word in self.words)


def fold(text: str) -> str:
    """Lower case without accents, invisible characters and look-alike letters; as long as `text`."""
    folded = []
    for character in text:
        parts = unicodedata.normalize("NFKD", character)
        plain = next((part for part in parts if not unicodedata.combining(part)), "")
        if unicodedata.category(character) in ("Cf", "Mn") or not plain:
            plain = "\0"
        folded.append(plain.lower()[:1].translate(_LOOKALIKES))
    return "".join(folded)


def distance(one: str, other: str, limit: int) -> int:
    """Edits from one word to another, where swapping two neighbours is one edit; more than `limit` is limit + 1.

    Optimal string alignment (Damerau 1964, doi 10.1145/363958.363994).
    """
    if abs(len(one) - len(other)) > limit:
        return limit + 1
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        if min(row) > limit:
            return limit + 1
        before, last = last, row
    return last[-1]


def allowed_edits(length: int) -> int:
    """How many typing errors a word of this length may have and still be taken for a known word."""
    return 0 if length < 4 else 1 if length < 8 else 2


class Speller:
    """Takes a mistyped word for the word of the rules that was meant.

    `vocabulary` are the words of the rules, `others` real words that look like one of them and are never changed.
    """

    def __init__(self, vocabulary: Iterable[str], others: Iterable[str]) -> None:
        self.vocabulary = frozenset(vocabulary)
        self.known = self.vocabulary | frozenset(others)
        self._by_letter: dict[str, list[str]] = {}
        for word in sorted(self.vocabulary):
            if len(word) >= 4 and word.isalpha():
                self._by_letter.setdefault(word[0], []).append(word)
        self._seen: dict[str, str] = {}

    def correct(self, word: str) -> str:
        """`word`, or the word or two words of the rules that it is a mistyped form of."""
        if word in self.known or word in FILLERS or len(word) > 30:
            return word
        if word not in self._seen:
            self._seen[word] = self._guess(word)
        return self._seen[word]

    def _guess(self, word: str) -> str:
        if "*" in word:
            pattern = re.compile("[a-z]+".join(map(re.escape, re.split(r"\*+", word))))
            hits = [known for known in sorted(self.vocabulary) if len(known) >= 4 and pattern.fullmatch(known)]
            return hits[0] if hits else word.replace("*", "")
        if len(word) < 4 or not word.isalpha():
            return word
        for form in _repeated(word):
            if form in self.known:
                return form
        starts = {word[0], word[1]}  # the first two letters may be swapped, no more
        best = (3, 0, word)
        for first in starts:
            for known in self._by_letter.get(first, ()):
                limit = allowed_edits(min(len(known), len(word)))
                if len(word) == 4 and len(known) == 4:
                    edits = 1 if sorted(word) == sorted(known) and distance(word, known, 1) == 1 else 9
                elif len(word) == 4 or len(known) == 4:
                    # A letter may be missing or too many; a plural is not a typing error.
                    edits = distance(word, known, 1) if len(word) != len(known) and word[-1] != "s" else 9
                else:
                    edits = distance(word, known, limit)
                if edits <= limit and first != word[0] and sorted(word) != sorted(known):
                    edits = 9
                if edits <= limit:
                    best = min(best, (edits, abs(len(known) - len(word)), known))
        if best[0] < 3:
            return best[2]
        for cut in range(4, len(word) - 3):
            if word[:cut] in self.vocabulary and word[cut:] in self.vocabulary:
                return f"{word[:cut]} {word[cut:]}"
        return word


def _repeated(word: str) -> list[str]:
    """The word with drawn-out letters shortened: "helpppp", "bleeeding"."""
    return [re.sub(r"(.)\1{2,}", r"\1\1", word), re.sub(r"(.)\1+", r"\1", word)]


def plain_form(word: str) -> list[str]:
    """A correctly typed lower-case word in the spelling that the rules use."""
    if word in NUMBERS:
        return [NUMBERS[word]]
    if word in CONTRACTIONS:
        return CONTRACTIONS[word].split()
    word = SPELLINGS.get(word, word)
    for sound, spelled in _SOUNDS:
        word = word.replace(sound, spelled)
    return [word]


def _plain_words(raw: str, speller: Speller) -> list[str]:
    """A token as typed, folded, to its plain words: none for a filler, several for a contraction."""
    token = raw.strip("'’`´*@$!").replace("\0", "")
    token = (
        re.sub(r"['’`´]s$", lambda match: "s", token) if token[:-2] in _IS_OWNERS else re.sub(r"['’`´]s$", "", token)
    )
    token = re.sub(r"['’`´]", "", token)
    if _JOINED_NUMBER.fullmatch(token):
        return [token.replace(",", "." if len(token.split(",")[-1]) != 3 else "")]
    if unit := _UNIT.fullmatch(token):
        return [unit[1].replace(",", "."), *_plain_words(unit[2], speller)]
    if any(c.isdigit() for c in token) or any(c in "@$!" for c in token):
        forms = [token.translate(table) for table in _LEET]
        token = next((form for form in forms if form in speller.vocabulary), forms[0])
    if token in NUMBERS or token in CONTRACTIONS:
        return plain_form(token)
    plain = speller.correct(" ".join(plain_form(token))).split()
    return [form for word in plain for form in plain_form(word)]


_IS_OWNERS = frozenset("he she it that there what who how where someone everyone let here".split())


def sentences(text: str, speller: Speller, compounds: re.Pattern[str] | None = None) -> list[Sentence]:
    """The sentences of a text in plain words. `compounds` are phrases that count as one word."""
    folded = fold(text)
    result: list[Sentence] = []
    words: list[Word] = []
    comma = is_now = False

    def close(ending: str) -> None:
        nonlocal words, comma, is_now
        if words:
            result.append(Sentence(_join(words, compounds), is_now, ending))
        words, comma, is_now = [], False, False

    for match in _TOKEN.finditer(folded):
        raw = match.group()
        if raw[0] in ".!?;…":
            close(raw)
        elif raw[0] == "\n":
            if len(raw) > 1:
                close("\n")
            comma = True
        elif raw in ",:()[]–—":
            comma = True
        elif raw not in "-/":
            for plain in _plain_words(raw, speller):
                # "not just" and "not really" deny nothing: after "not" a filler is a word that counts.
                if plain in NOW_FILLERS:
                    is_now = True
                if (plain not in FILLERS and plain not in NOW_FILLERS) or (words and words[-1].text == "not"):
                    words.append(Word(plain, match.start(), match.end(), comma))
                    comma = False
    close("")
    return result


def _join(words: list[Word], compounds: re.Pattern[str] | None) -> tuple[Word, ...]:
    if compounds is None:
        return tuple(words)
    plain = " " + "".join(f"{word.text} " for word in words)
    joined: list[Word] = []
    position = 0
    for match in compounds.finditer(plain):
        first = plain.count(" ", 0, match.start() + 1) - 1
        size = match.group().strip().count(" ") + 1
        if first < position:
            continue
        joined += words[position:first]
        whole = words[first : first + size]
        joined.append(Word("_".join(word.text for word in whole), whole[0].start, whole[-1].end, whole[0].after_comma))
        position = first + size
    return tuple(joined + words[position:])
