"""Multiple-choice accuracy of adapters: by log-probability of options, and by what a model writes when asked."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.data.examples import Example
from fedmed_cli.errors import InputError
from fedmed_cli.evaluation import mcq_scores, measuring
from fedmed_cli.evaluation.compared_adapters import BASE
from fedmed_cli.evaluation.mcq_files import Question, QuestionSet
from fedmed_cli.evaluation.mcq_scores import Continued
from fedmed_cli.events import Progress, Say, StageProgress
from fedmed_cli.intervals import paired_shares, wilson
from fedmed_cli.models.batch_generation import answer_many
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.models.prompts import encode, prompt_messages
from fedmed_cli.records.comparison import Choices, ChoiceScore, Rate
from fedmed_cli.records.digests import sha256_json
from fedmed_cli.records.measures import Interval
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import Workspace

NUM_ASKED = 100
ASKED_TOKENS = 16


@dataclass(frozen=True)
class Items:
    """Questions with all their options: `texts` continue with an option, `labels` with its letter."""

    questions: list[Question]
    texts: list[Continued]
    labels: list[Continued]


def prepare(lm: LanguageModel, plan: Plan, questions: Sequence[Question]) -> Items:
    """Encode every question with each of its options. Questions that do not fit into max_length are left out.

    InputError where none fits.
    """
    kept, texts, labels = [], [], []
    for question in questions:
        by_text = _continued(lm, plan, question.text, question.options)
        by_label = _continued(lm, plan, question.asking, question.labels)
        if by_text is not None and by_label is not None:
            kept.append(question)
            texts.append(by_text)
            labels.append(by_label)
    if not kept:
        raise InputError(f"none of {len(questions)} questions fits into max_length {plan.training.max_length}")
    return Items(kept, texts, labels)


def _continued(lm: LanguageModel, plan: Plan, question: str, options: Sequence[str]) -> Continued | None:
    """The prompt with each option as token ids, without an end token; None where they do not fit whole."""
    ends = []
    for option in options:
        found = encode(Example("", question, option), plan.prompt, lm.tokenizer, plan.training.max_length)
        if found is None or found.truncated or found.num_supervised < 2:
            return None
        ends.append(found.ids[found.num_prompt : -1])
    assert found is not None
    return Continued(found.ids[: found.num_prompt], tuple(ends))


def measure(
    workspace: Workspace,
    plan: Plan,
    lm: LanguageModel,
    chosen: Mapping[str, Adapter],
    asked: QuestionSet,
    *,
    num_asked: int = NUM_ASKED,
    say: Say = lambda message: None,
    progress: StageProgress | None = None,
) -> Choices:
    """Score the base and every adapter on the questions; each difference to the base is paired by question.

    An option's log-probability is that of its tokens after the prompt, as lm-evaluation-harness defines `acc`
    (summed) and `acc_norm` (divided by the option's characters). With letters the options stand in the prompt.
    """
    items = prepare(lm, plan, asked.questions)
    left_out = len(asked.questions) - len(items.questions)
    if left_out:
        say(f"{asked.name}: {left_out} questions left out: they do not fit into max_length {plan.training.max_length}")
    right = np.array([question.answer for question in items.questions])
    sample = items.questions[:num_asked]
    starts = [0, *itertools.accumulate(len(question.options) for question in items.questions)]
    characters = np.array([len(option) for question in items.questions for option in question.options])
    hits: dict[str, dict[str, np.ndarray]] = {}
    unparseable: dict[str, int] = {}
    same: dict[str, bool] = {}
    base: tuple[np.ndarray, np.ndarray] | None = None
    for name, adapter in {BASE: None, **chosen}.items():
        report = (lambda done, total, name=name: progress(name, done, total)) if progress else None
        texts, labels = (
            _remembered(workspace, plan, lm, adapter, items.questions, part, report)
            for part in (items.texts, items.labels)
        )
        base = base or (texts, labels)
        same[name] = all(np.array_equal(*pair) for pair in zip((texts, labels), base, strict=True))
        hits[name] = {
            "accuracy": _best(texts, starts) == right,
            "accuracy_norm": _best(texts / characters, starts) == right,
            "by_letter": _best(labels, starts) == right,
        }
        if sample:
            picks = _ask(lm, plan, adapter, sample, report)
            unparseable[name] = sum(pick is None for pick in picks)
            hits[name]["asked"] = np.array([pick == q.answer for pick, q in zip(picks, sample, strict=True)])
    return Choices(
        examples=asked.name,
        examples_digest=sha256_json([[question.key, question.answer] for question in items.questions]),
        layout=asked.layout,
        num_questions=len(items.questions),
        num_skipped=asked.num_skipped + left_out,
        num_asked=len(sample),
        chance=float(np.mean([1 / len(question.options) for question in items.questions])),
        adapters={
            name: ChoiceScore(
                accuracy=_rate(hits, name, "accuracy", same[name]),
                accuracy_norm=_rate(hits, name, "accuracy_norm", same[name]),
                by_letter=_rate(hits, name, "by_letter", same[name]),
                asked=_rate(hits, name, "asked", same[name]) if sample else None,
                num_unparseable=unparseable.get(name, 0),
            )
            for name in hits
        },
    )


def _remembered(
    workspace: Workspace,
    plan: Plan,
    lm: LanguageModel,
    adapter: Adapter | None,
    questions: Sequence[Question],
    items: Sequence[Continued],
    progress: Progress | None,
) -> np.ndarray:
    """Negative log-likelihood of every option of every question, measured once for an adapter."""
    digest = sha256_json(["choices", [[item.prompt, item.ends] for item in items]])
    return measuring.remembered(
        workspace, plan, lm, adapter, digest, lambda one: mcq_scores.measure(lm, one, items, progress)
    ).nll


def _best(nll: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """For each question the option of the least negative log-probability, the first of equal ones."""
    return np.array([int(np.argmin(nll[a:b])) for a, b in itertools.pairwise(starts)])


def _ask(
    lm: LanguageModel,
    plan: Plan,
    adapter: Adapter | None,
    questions: Sequence[Question],
    progress: Progress | None,
) -> list[int | None]:
    """What a model chooses when it is asked to write a letter; None where its answer holds none."""
    lm.use(adapter)
    conversations = [prompt_messages(plan.prompt, question.asking) for question in questions]
    found = answer_many(lm, conversations, ASKED_TOKENS, progress)
    return [question.parse(answer.text) for question, answer in zip(questions, found, strict=True)]


def _rate(hits: Mapping[str, Mapping[str, np.ndarray]], name: str, what: str, same: bool) -> Rate:
    """The accuracy of an adapter; `same` where it has the base's very log-probabilities, which leaves no doubt."""
    own, base = hits[name][what], hits[BASE][what]
    score = wilson(int(own.sum()), len(own))
    if name == BASE:
        return Rate(score, None)
    if same:
        return Rate(score, Interval(0.0, 0.0, 0.0))
    return Rate(score, paired_shares(int(np.sum(own & ~base)), int(np.sum(base & ~own)), len(own)))
