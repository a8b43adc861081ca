"""How much of a reference answer a generated one has: ROUGE-L and token F1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+")
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge_l(reference: str, text: str) -> float:
    """F1 of the longest common subsequence of words (Lin, 2004), 0 to 1.

    Words are runs of letters and digits in lower case without stemming, as in the package rouge-score; unlike
    there, letters of any script count.
    """
    first, second = _WORD.findall(reference.lower()), _WORD.findall(text.lower())
    if not first or not second:
        return 0.0
    return _f1(longest_common_subsequence(first, second), len(first), len(second))


def token_f1(reference: str, text: str) -> float:
    """F1 of the words in common whatever their order, as SQuAD scores answers (Rajpurkar et al., 2016), 0 to 1."""
    first, second = _squad_words(reference), _squad_words(text)
    if not first or not second:
        return float(first == second)
    return _f1(sum((Counter(first) & Counter(second)).values()), len(first), len(second))


def _squad_words(text: str) -> list[str]:
    return _ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _f1(common: int, first: int, second: int) -> float:
    return 2 * common / (first + second)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Its length, with one integer a word (Hyyrö, 2004), whose bit i is first[i]."""
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    row = everything = (1 << len(first)) - 1
    for word in second:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & everything
    return len(first) - row.bit_count()
