"""The bundled example corpus: 10,000 synthetic question-answer examples, not for clinical use.

`facts/` holds one table a specialty: conditions with an answer for each question type, written for
fedmed. Each answer is asked for in eight phrasings; of those 10,240 combinations the corpus keeps the
10,000 whose digests come first, so it is the same on every machine.
"""

from __future__ import annotations

import functools
import tomllib
from importlib import resources

from fedmed_cli.records.digests import sha256_json

SIZE = 10_000
GROUP_COLUMN = "focus"
LABEL_COLUMN = "specialty"

# {name} may be singular or plural ("gallstones"), so no phrasing makes it the subject of a verb.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "symptoms": (
        "What are the symptoms of {name}?",
        "How would I notice {name}?",
        "Which signs point to {name}?",
        "What does a person with {name} feel or notice?",
        "I have been reading about {name}. What symptoms should I look out for?",
        "What are typical complaints of people with {name}?",
        "Can you describe the signs and symptoms of {name}?",
        "What does it feel like to have {name}?",
    ),
    "causes": (
        "What causes {name}?",
        "Why do people get {name}?",
        "What is behind {name}?",
        "What is the reason that somebody develops {name}?",
        "What happens in the body that leads to {name}?",
        "Can you explain the cause of {name}?",
        "My doctor mentioned {name}. What could be the cause?",
        "What is known about the causes of {name}?",
    ),
    "diagnosis": (
        "How do doctors diagnose {name}?",
        "Which tests show {name}?",
        "How can I find out whether I have {name}?",
        "What examinations should I expect if {name} is suspected?",
        "How do doctors tell {name} apart from other problems?",
        "What is done to confirm {name}?",
        "What will a doctor check when looking for {name}?",
        "Is there a test for {name}?",
    ),
    "treatment": (
        "How do doctors treat {name}?",
        "What treatments are there for {name}?",
        "What can be done about {name}?",
        "Which therapies help people with {name}?",
        "I was told I have {name}. What are my options for treatment?",
        "What is the usual treatment for {name}?",
        "Can {name} be treated?",
        "What helps against {name}?",
    ),
    "prevention": (
        "Can {name} be prevented?",
        "How can I lower my chance of {name}?",
        "What can I do to prevent {name}?",
        "Is there a way to avoid {name}?",
        "How do people protect themselves from {name}?",
        "What steps reduce the risk of {name}?",
        "My family worries about {name}. Can we do anything to lower the risk?",
        "What is advised for the prevention of {name}?",
    ),
    "risk_factors": (
        "Who is at risk of {name}?",
        "What are the risk factors for {name}?",
        "Who gets {name}?",
        "What makes {name} more likely?",
        "Which people are more likely than others to have {name}?",
        "Am I at risk of {name}?",
        "What raises the risk of {name}?",
        "Can you tell me the risk factors for {name}?",
    ),
    "outlook": (
        "What is the outlook for people with {name}?",
        "What can I expect if I have {name}?",
        "How does life go on with {name}?",
        "Can people recover from {name}?",
        "What is the prognosis of {name}?",
        "How do people with {name} do in the long run?",
        "A relative of mine has {name}. What lies ahead?",
        "What is the long-term outlook with {name}?",
    ),
    "emergency": (
        "When should someone with {name} seek emergency care?",
        "Which warning signs of {name} need help right away?",
        "When can {name} become an emergency?",
        "When should I call an ambulance because of {name}?",
        "With {name}, which symptoms mean I should go to the emergency department?",
        "What are the red flags of {name}?",
        "How do I know that {name} could need urgent help?",
        "When is it not safe to wait with {name}?",
    ),
}


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
    rows = []
    for specialty, conditions in facts().items():
        for condition in conditions:
            for question_type, phrasings in PHRASINGS.items():
                for number, phrasing in enumerate(phrasings):
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
