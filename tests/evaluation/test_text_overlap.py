"""ROUGE-L and token F1: against other implementations of the same definitions."""

import functools

import numpy as np
import pytest

from fedmed_cli.evaluation.text_overlap import longest_common_subsequence, rouge_l, token_f1

PAIRS = [
    ("The liver makes bile, and the gall bladder stores it.", "Bile is made by the liver; it is stored elsewhere."),
    ("Drink plenty of water.", "drink PLENTY of water"),
    ("Take 2 tablets (500 mg) a day", "2 tablets of 500-mg each day, at most"),
    ("one two three four five six", "six five four three two one"),
    ("An answer", ""),
    ("same words same words same", "words same same"),
]


def slow_lcs(first, second):
    @functools.cache
    def length(i, j):
        if i == len(first) or j == len(second):
            return 0
        if first[i] == second[j]:
            return 1 + length(i + 1, j + 1)
        return max(length(i + 1, j), length(i, j + 1))

    return length(0, 0)


def test_the_longest_common_subsequence_is_that_of_the_recursive_definition():
    generator = np.random.Generator(np.random.Philox(4))
    for _ in range(300):
        first, second = (["abcdef"[i] for i in generator.integers(0, 6, generator.integers(0, 40))] for _ in "12")
        assert longest_common_subsequence(first, second) == slow_lcs(tuple(first), tuple(second))


# computed by rouge-score 0.1.2, rougeL without stemming
@pytest.mark.parametrize(
    ("pair", "expected"),
    [(0, 0.3), (1, 1.0), (2, 0.6250000000000001), (3, 0.16666666666666666), (4, 0), (5, 0.7499999999999999)],
)
def test_rouge_l_of_known_pairs(pair, expected):
    assert rouge_l(*PAIRS[pair]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("The answer is water.", "water is an answer", 1.0),  # order, case, articles and marks do not count
        ("blood pressure", "high blood", 0.5),  # 1 of 2 and 1 of 2
        ("iron iron iron", "iron", 0.5),  # precision 1, recall 1/3
        ("water", "", 0.0),
        ("the", "a", 1.0),  # nothing is left of either
    ],
)
def test_token_f1(reference, text, expected):
    assert token_f1(reference, text) == pytest.approx(expected)


def test_letters_of_every_script_are_words():
    assert rouge_l("вода и соль", "вода соль") == pytest.approx(2 * 2 / 5)
    assert rouge_l("fièvre élevée", "fievre élevée") == pytest.approx(0.5)
