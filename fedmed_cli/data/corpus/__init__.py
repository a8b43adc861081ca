"""The bundled example corpus: 10,000 synthetic question-answer examples, not for clinical use.

`facts/` holds one table a specialty: conditions with an answer for each question type, written for fedmed. Each
answer is asked for in the eight ways of `phrasings.toml`; of those 10,240 combinations the corpus keeps the 10,000
whose digests come first, so it is the same on every machine.
"""

from __future__ import annotations

import functools
import tomllib
from importlib import resources

from fedmed_cli.records.digests import sha256_json

SIZE = 10_000
GROUP_COLUMN = "focus"
LABEL_COLUMN = "specialty"


def phrasings() -> dict[str, list[str]]:
    """The ways to ask each type of question, with {name} for the condition."""
    return tomllib.loads(resources.files(__package__).joinpath("phrasings.toml").read_text(encoding="utf-8"))


@functools.cache
def facts() -> dict[str, list[dict[str, str]]]:
    """The table of facts: for each specialty its conditions, each with `name` and one answer a question type."""
    tables = {}
    for entry in sorted(resources.files(__package__).joinpath("facts").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".toml"):
            table = tomllib.loads(entry.read_text(encoding="utf-8"))
            tables[table["specialty"]] = table["condition"]
    return tables


def examples() -> list[dict[str, str]]:
    """The corpus as rows with id, question, answer, specialty, question_type and focus.

    The order is fixed and looks random, so that the first rows are a fair sample.
    """
    rows, asked = [], phrasings()
    for specialty, conditions in facts().items():
        for condition in conditions:
            for question_type, ways in asked.items():
                for number, phrasing in enumerate(ways):
                    name = condition["name"]
                    rows.append(
                        {
                            "id": f"{specialty}/{name.lower().replace(' ', '-')}/{question_type}/{number}",
                            "question": phrasing.format(name=name),
                            "answer": condition[question_type],
                            "specialty": specialty,
                            "question_type": question_type,
                            "focus": name,
                        }
                    )
    rows.sort(key=lambda row: sha256_json(row["id"]))
    return rows[:SIZE]
