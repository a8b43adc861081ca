"""How much a passage is like those that people in need, or with bad intent, have written: a linear model, learnt once.

It sees words, pairs of words, letters, which words follow a denial, and what a message says of time. Its numbers are in
classifier.tsv; benchmarks/guardrails/train.py makes that file. No library is needed to apply it, and the same text
gives the same scores everywhere.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from fedmed_cli.chat.guardrails.reading import Passage

CLASSES = ("emergency", "crisis", "misuse", "dosing", "diagnosis", "stopping", "none")
DENIAL_REACH = 5
_TINY = 1e-9
_DENIALS = frozenset(
    "no not never without nor neither none isnt isn't wasnt wasn't doesnt doesn't dont don't didnt didn't havent "
    "haven't hasnt hasn't denies denied denying".split()
)
_TOKEN = re.compile(r"[a-z0-9]+(?:['’][a-z]+)?|[.,;:!?]")


def words(text: str) -> list[str]:
    """Lower-case words; those up to five after a denial, in the same clause, are marked with `~`."""
    found = []
    left = 0
    for token in _TOKEN.findall(text.lower()):
        if not token[0].isalnum() or token in ("but", "and"):
            left = 0
        if token[0].isalnum():
            token = token.replace("’", "'")
            found.append(f"~{token}" if left > 0 else token)
            left = DENIAL_REACH if token in _DENIALS else left - 1
    return found


def word_features(text: str) -> list[str]:
    """Words and pairs of neighbours."""
    single = words(text)
    return single + [f"{one} {other}" for one, other in itertools.pairwise(single)]


@functools.lru_cache(maxsize=4096)
def _runs(word: str) -> tuple[str, ...]:
    padded = f" {word} "
    runs = [padded[i : i + size] for size in (3, 4, 5) for i in range(len(padded) - size + 1) if size < len(padded)]
    return (*runs, padded) if len(padded) <= 5 else tuple(runs)


def letter_features(text: str) -> list[str]:
    """Runs of 3 to 5 letters inside each word, with a blank on each side."""
    return [run for word in text.lower().split() for run in _runs(word)]


BLOCKS: Mapping[str, Callable[[Passage], Sequence[str]]] = {
    "w": lambda passage: [*word_features(passage.text), *passage.marks],
    "l": lambda passage: letter_features(passage.text),
}


@functools.lru_cache(maxsize=16384)
def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split("\t")))


@dataclass(frozen=True)
class Model:
    """`features[block][feature]` has its rarity (idf) and its weight for each class; `offsets` are the classes' own.

    The numbers stay text, with tabs between, until a message has the feature: most never do.
    """

    offsets: Sequence[float]
    features: Mapping[str, Mapping[str, str]]

    def shares(self, passage: Passage) -> dict[str, float]:
        """Softmax over the classes: tf-idf in each block, at length 1, times the weights."""
        scores = list(self.offsets)
        for block, split in BLOCKS.items():
            known = self.features[block]
            rows, values = [], []
            for feature, count in Counter(split(passage)).items():
                if feature in known:
                    row = _numbers(known[feature])
                    rows.append(row)
                    values.append(row[0] if count == 1 else (1 + math.log(count)) * row[0])
            length = math.sqrt(math.fsum(value * value for value in values))
            for position, weights in enumerate(list(zip(*rows, strict=True))[1:]):
                scores[position] += math.fsum(map(operator.mul, values, weights)) / length
        top = max(scores)
        parts = [math.exp(score - top) for score in scores]
        return {name: part / math.fsum(parts) for name, part in zip(CLASSES, parts, strict=True)}


@functools.cache
def load() -> Model:
    """The model that ships with fedmed."""
    text = (resources.files(__package__) / "classifier.tsv").read_text(encoding="utf-8")
    offsets: Sequence[float] = ()
    features: dict[str, dict[str, str]] = {block: {} for block in BLOCKS}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        block, feature, numbers = line.split("\t", 2)
        if block == "offset":
            _, *offsets = _numbers(numbers)
        else:
            features[block][feature] = numbers
    return Model(offsets, features)


def scores(passages: Sequence[Passage]) -> dict[str, float]:
    """For each class the log-odds that its most alike passage has.

    Emergency and crisis are one class in two words: the likelier of them has the share of both. `urgent` is that share
    among texts that ask for no notice, since a question of doses may hold an emergency.
    """
    by_passage = [load().shares(passage) for passage in passages]
    most = {name: max(shares[name] for shares in by_passage) for name in CLASSES}
    likelier = "crisis" if most["crisis"] > most["emergency"] else "emergency"
    both = [shares["emergency"] + shares["crisis"] for shares in by_passage]
    most[likelier] = max(both)
    most["urgent"] = max(share / (share + shares["none"]) for share, shares in zip(both, by_passage, strict=True))
    return {name: math.log(share + _TINY) - math.log(1 - share + _TINY) for name, share in most.items()}
