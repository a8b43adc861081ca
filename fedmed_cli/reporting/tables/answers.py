"""Tables of what adapters answer: multiple choice, and overlap with reference answers."""

from __future__ import annotations

from collections.abc import Sequence

from fedmed_cli.records.comparison import Generated, MultipleChoice
from fedmed_cli.reporting import numbers
from fedmed_cli.reporting.parts import Part, Table, Text


def multiple_choice_parts(record: MultipleChoice, order: Sequence[str]) -> list[Part]:
    """Accuracy of each adapter: by the options' probabilities, and by letters."""
    about = (
        f"{numbers.count(record.num_questions, 'question')} of {record.examples}; guessing is right in "
        f"{numbers.percent(record.chance, 1)}. By text takes the option of the highest log-probability, per character "
        "divides that by its length, by letter takes the most probable letter of the listed options; when asked, the "
        "model writes a letter, and an answer without one counts as wrong."
    )
    if record.num_skipped:
        about += f" Left out: {numbers.count(record.num_skipped, 'row')}, repeated, not a question, or too long."
    by_text, by_letter = [], []
    for name in order:
        score = record.adapters[name]
        accuracy, per_character = numbers.rate(score.accuracy), numbers.rate(score.accuracy_norm)
        by_text.append([name, accuracy, per_character, numbers.rate_change(score.accuracy_norm)])
        unparseable = f"{score.num_unparseable:,} of {record.num_asked:,}" if score.asked else ""
        by_letter.append([name, numbers.rate(score.by_letter), numbers.rate(score.asked), unparseable])
    return [
        Text(about),
        Table(
            "Accuracy by the options' log-probabilities, in % with 95 % intervals",
            ["adapter", "by text", "per character", "per character, against base"],
            by_text,
        ),
        Table(
            "Accuracy by letters, in % with 95 % intervals",
            ["adapter", "by letter", "asked", "without a letter"],
            by_letter,
        ),
    ]


def generated_parts(record: Generated, order: Sequence[str]) -> list[Part]:
    """Overlap of each adapter's generated answers with the reference answers."""
    about = (
        f"Answers to {numbers.count(record.num_questions, 'question')} "
        f"({numbers.count(record.num_groups, 'group')}), at most {record.max_new_tokens:,} tokens each. Words in "
        "common with one reference answer say little about whether an answer is right."
    )
    rouge, f1 = [], []
    for name in order:
        score = record.adapters[name]
        counts = [f"{score.num_empty:,}", f"{score.num_unfinished:,}"]
        rouge.append([name, numbers.rate(score.rouge_l), numbers.rate_change(score.rouge_l), *counts])
        f1.append([name, numbers.rate(score.token_f1), numbers.rate_change(score.token_f1)])
    title = "Overlap with the reference answers, in % with 95 % intervals"
    return [
        Text(about, "note"),
        Table(f"{title}: ROUGE-L", ["adapter", "ROUGE-L", "against base", "empty", "cut"], rouge),
        Table(f"{title}: token F1", ["adapter", "token F1", "against base"], f1),
    ]
