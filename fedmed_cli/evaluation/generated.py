"""Answers that adapters generate to test questions, scored against the reference answers; no text is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.data.examples import Example
from fedmed_cli.evaluation.text_overlap import rouge_l, token_f1
from fedmed_cli.events import StageProgress
from fedmed_cli.intervals import mean_interval
from fedmed_cli.models.batch_generation import answer_many
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.models.prompts import prompt_messages
from fedmed_cli.records.checks import BASE
from fedmed_cli.records.comparison import Generated, OverlapScore, Rate
from fedmed_cli.records.measures import Interval
from fedmed_cli.records.plan import Plan


def measure(
    plan: Plan,
    lm: LanguageModel,
    adapters: Mapping[str, Adapter],
    examples: Sequence[Example],
    group_by: str | None,
    max_new_tokens: int,
    *,
    progress: StageProgress | None = None,
) -> Generated:
    """Ask the base and every adapter the same questions (greedy decoding); differences are paired by question."""
    conversations = [prompt_messages(plan.prompt, example.question) for example in examples]
    groups = [example.group(group_by) for example in examples]
    values: dict[str, dict[str, np.ndarray]] = {}
    counts: dict[str, tuple[int, int]] = {}
    for name, adapter in {BASE: None, **adapters}.items():
        report = (lambda done, total, name=name: progress(name, done, total)) if progress else None
        lm.use(adapter)
        answers = answer_many(lm, conversations, max_new_tokens, report)
        pairs = [(example.answer, answer.text) for example, answer in zip(examples, answers, strict=True)]
        values[name] = {
            "rouge_l": np.array([rouge_l(*pair) for pair in pairs]),
            "token_f1": np.array([token_f1(*pair) for pair in pairs]),
        }
        counts[name] = (sum(not answer.text for answer in answers), sum(not answer.finished for answer in answers))

    def rate(name: str, what: str) -> Rate:
        scores = values[name][what]
        mean = mean_interval(scores, groups)
        bounded = Interval(mean.mean, max(0.0, mean.low), min(1.0, mean.high))
        if name == BASE:
            return Rate(bounded, None)
        return Rate(bounded, mean_interval(scores - values[BASE][what], groups))

    return Generated(
        num_questions=len(examples),
        num_groups=len(set(groups)),
        max_new_tokens=max_new_tokens,
        adapters={name: OverlapScore(rate(name, "rouge_l"), rate(name, "token_f1"), *counts[name]) for name in values},
    )
