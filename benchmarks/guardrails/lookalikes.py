"""Write fedmed_cli/chat/guardrails/words.txt: real words that the speller would take for a mistyped rule word.

Usage: python benchmarks/guardrails/lookalikes.py FOLDER_OF_THE_BASE_MODEL

Real words are those of the base model's tokenizer that are whole words, and those that the bundled corpus uses at
least 3 times. Run it again after the words of the rules have changed.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

from fedmed_cli.chat.guardrails import patterns
from fedmed_cli.chat.guardrails.normalise import Speller
from fedmed_cli.data import corpus

WORDS = Path(patterns.__file__).with_name("words.txt")


def main(folder: str) -> None:
    vocabulary = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    words = {token[1:].lower() for token in vocabulary if re.fullmatch(r"Ġ[A-Za-z]{4,}", token)}
    counts = Counter()
    for row in corpus.examples():
        counts.update(re.findall(r"[a-z]{4,}", f"{row['question']} {row['answer']}".lower()))
    words |= {word for word, count in counts.items() if count >= 3}
    speller = Speller(patterns.load().speller.vocabulary, ())
    alike = sorted(word for word in words if speller.correct(word) != word)
    WORDS.write_text("\n".join(alike) + "\n", encoding="utf-8")
    print(f"{len(alike)} of {len(words)} words look like one of {len(speller.vocabulary)} rule words")


if __name__ == "__main__":
    main(sys.argv[1])
