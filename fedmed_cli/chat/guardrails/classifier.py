"""How much a text is like those that people in need, or with bad intent, have written: a linear model, learnt once.

It sees words, pairs of words and letters, and knows which words follow a denial. Its numbers are in
classifier.tsv; benchmarks/guardrails/train.py makes that file. No library is needed to apply it, and the
same text gives the same shares everywhere.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

CLASSES = ("emergency", "crisis", "misuse", "dosing", "diagnosis", "stopping", "none")
WINDOW_WORDS = 120  # a longer text is read in windows, so that a sign is not lost among much else
STEP_WORDS = 60
DENIAL_REACH = 5
_DENIALS = frozenset(
    "no not never without nor neither none isnt isn't wasnt wasn't doesnt doesn't dont don't didnt didn't havent "
    "haven't hasnt hasn't".split()
)
_TOKEN = re.compile(r"[a-z0-9]+(?:['’][a-z]+)?|[.,;:!?]")
_SPACE = re.compile(r"\s+")


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


def letter_features(text: str) -> list[str]:
    """Runs of 3 to 5 letters inside each word, with a blank on each side."""
    found = []
    for word in _SPACE.sub(" ", text.lower()).split():
        padded = f" {word} "
        for size in (3, 4, 5):
            if size >= len(padded):
                found.append(padded)
                break
            found += [padded[i : i + size] for i in range(len(padded) - size + 1)]
    return found


BLOCKS = {"w": word_features, "l": letter_features}


@dataclass(frozen=True)
class Model:
    """`features[block][feature]` is its rarity (idf) and its weight for each class; `offsets` are the classes' own."""

    offsets: Sequence[float]
    features: Mapping[str, Mapping[str, tuple[float, Sequence[float]]]]

    def shares(self, text: str) -> dict[str, float]:
        """Softmax over the classes of one text: tf-idf in each block, at length 1, times the weights."""
        scores = list(self.offsets)
        for block, split in BLOCKS.items():
            known = self.features[block]
            counts = {feature: count for feature, count in Counter(split(text)).items() if feature in known}
            values = {feature: (1 + math.log(count)) * known[feature][0] for feature, count in counts.items()}
            length = math.sqrt(math.fsum(value * value for value in values.values()))
            for feature in sorted(values):
                share = values[feature] / length
                for position, weight in enumerate(known[feature][1]):
                    scores[position] += share * weight
        top = max(scores)
        parts = [math.exp(score - top) for score in scores]
        return {name: part / math.fsum(parts) for name, part in zip(CLASSES, parts, strict=True)}


@functools.cache
def load() -> Model:
    """The model that ships with fedmed."""
    text = (resources.files(__package__) / "classifier.tsv").read_text(encoding="utf-8")
    offsets: list[float] = []
    features: dict[str, dict[str, tuple[float, Sequence[float]]]] = {block: {} for block in BLOCKS}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        block, feature, rarity, *weights = line.split("\t")
        numbers = [float(weight) for weight in weights]
        if block == "offset":
            offsets = numbers
        else:
            features[block][feature] = float(rarity), numbers
    return Model(offsets, features)


def shares(text: str) -> dict[str, float]:
    """For each class its share, from 0 to 1, the most that any window of the text has (`none`: the least)."""
    tokens = text.split()
    windows = [text]
    if len(tokens) > WINDOW_WORDS:
        starts = range(0, len(tokens) - WINDOW_WORDS + STEP_WORDS, STEP_WORDS)
        windows = [" ".join(tokens[start : start + WINDOW_WORDS]) for start in starts]
    by_window = [load().shares(window) for window in windows]
    return {name: (min if name == "none" else max)(shares[name] for shares in by_window) for name in CLASSES}
