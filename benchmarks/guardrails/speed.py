"""Seconds to look at 20,000 characters: python benchmarks/guardrails/speed.py FOLDER

FOLDER is that of real.py. Real messages, one after another, and texts made to be slow: short sentences that match a
part of a rule, words with typing errors, masked words, numbers, addresses. `first`: a new process, which compiles the
rules that the text needs; `new words`: rules compiled, words not seen before; `again`: the same text.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

from real import read

from fedmed_cli.chat.guardrails import classifier, patterns
from fedmed_cli.chat.guardrails.findings import MAX_CHARACTERS
from fedmed_cli.chat.guardrails.question import check_question

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def texts(folder: Path) -> dict[str, str]:
    """Each of MAX_CHARACTERS."""
    rng = random.Random(0)
    vocabulary = sorted(word for word in patterns.load().speller.vocabulary if len(word) > 3)
    messages = read(folder, "consumer_questions")

    def changed(letters: str) -> str:
        word = rng.choice(vocabulary)
        at = rng.randrange(1, len(word) - 1)
        return word[:at] + rng.choice(letters) + word[at + 1 :]

    found = {
        "K-QA": " ".join(text for source, _, text in messages if source == "K-QA"),
        "MeQSum": " ".join(text for source, _, text in messages if source == "MeQSum"),
        "short sentences": "stroke. my pain. " * MAX_CHARACTERS,
        "typing errors": " ".join(changed(LETTERS) for _ in range(MAX_CHARACTERS)),
        "masked words": " ".join(changed("*") for _ in range(MAX_CHARACTERS)),
        "numbers": "1 " * MAX_CHARACTERS,
        "web addresses": "a.b.c.d.com " * MAX_CHARACTERS,
    }
    return {name: text[:MAX_CHARACTERS] for name, text in found.items()}


def forget_words() -> None:
    """What is remembered of single words."""
    patterns.load().speller._seen.clear()
    for cached in (patterns._keys, classifier._numbers, classifier._runs):
        cached.cache_clear()


def seconds(text: str) -> float:
    began = time.perf_counter()
    check_question(text)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        text = texts(arguments.folder)[arguments.one]
        classifier.load()
        first = seconds(text)
        new_words = []
        for _ in range(3):
            forget_words()
            new_words.append(seconds(text))
        again = [seconds(text) for _ in range(5)]
        print(f"| {arguments.one} | {first:.3f} | {min(new_words):.3f} | {min(again):.3f} |")
        return
    print("| text | first | new words | again |\n| --- | --- | --- | --- |", flush=True)
    for name in texts(arguments.folder):
        subprocess.run([sys.executable, __file__, str(arguments.folder), "--one", name], check=True)


if __name__ == "__main__":
    main()
