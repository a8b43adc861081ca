"""Multiple-choice accuracy of adapters: by log-probability of options, and by what a model writes when asked."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.data.examples import Example
from fedmed_cli.errors import InputError
from fedmed_cli.evaluation import mcq_scores, measuring
from fedmed_cli.evaluation.mcq_files import Question, QuestionSet
from fedmed_cli.evaluation.mcq_scores import Continued
from fedmed_cli.events import Progress, Say, StageProgress
from fedmed_cli.intervals import paired_shares, wilson
from fedmed_cli.models.batch_generation import answer_many
from fedmed_cli.models.language_model import LanguageModel
from fedmed_cli.models.prompts import encode, prompt_messages
from fedmed_cli.records.checks import BASE
from fedmed_cli.records.comparison import ChoiceScore, MultipleChoice, Rate
from fedmed_cli.records.digests import sha256_json
from fedmed_cli.records.measures import Interval
from fedmed_cli.records.plan import Plan
from fedmed_cli.workspace import Workspace

NUM_ASKED = 100
ASKED_TOKENS = 16


@dataclass(frozen=True)
class EncodedQuestions:
    """Questions with all their options: `texts` continue with an option, `labels` with its letter."""

    questions: QuestionSet
    texts: list[Continued]
    labels: list[Continued]


def prepare(lm: LanguageModel, plan: Plan, questions: QuestionSet) -> EncodedQuestions:
    """Encode every question with each of its options. Questions that do not fit into max_length are left out.

    InputError where none fits.
    """
    fitting, texts, labels = [], [], []
    for question in questions.questions:
        by_text = _encode_options(lm, plan, question.text, question.options)
        by_label = _encode_options(lm, plan, question.asking, question.labels)
        if by_text is not None and by_label is not None:
            fitting.append(question)
            texts.append(by_text)
            labels.append(by_label)
    if not fitting:
        raise InputError(
            f"none of {len(questions.questions)} questions fits into max_length {plan.training.max_length}"
        )
    left_out = len(questions.questions) - len(fitting)
    return EncodedQuestions(
        replace(questions, questions=fitting, num_skipped=questions.num_skipped + left_out), texts, labels
    )


def _encode_options(lm: LanguageModel, plan: Plan, question: str, options: Sequence[str]) -> Continued | None:
    """The prompt with each option as token ids, without an end token; None where they do not fit whole."""
    prompt: tuple[int, ...] = ()
    ends = []
    for option in options:
        tokens = encode(Example("", question, option), plan.prompt, lm.tokenizer, plan.training.max_length)
        if tokens is None or tokens.truncated or tokens.num_supervised < 2:
            return None
        prompt = tokens.ids[: tokens.num_prompt]
        ends.append(tokens.ids[tokens.num_prompt : -1])
    return Continued(prompt, tuple(ends))


def measure(
    workspace: Workspace,
    plan: Plan,
    lm: LanguageModel,
    adapters: Mapping[str, Adapter],
    questions: QuestionSet,
    *,
    say: Say = lambda message: None,
    progress: StageProgress | None = None,
) -> MultipleChoice:
    """Score the base and every adapter on the questions; each difference from the base is paired by question.

    An option's log-probability is that of its tokens after the prompt, as lm-evaluation-harness defines `acc`
    (summed) and `acc_norm` (divided by the option's characters). With letters the options stand in the prompt.
    """
    encoded = prepare(lm, plan, questions)
    left_out = encoded.questions.num_skipped - questions.num_skipped
    if left_out:
        say(
            f"{questions.name}: {left_out} questions left out: they do not fit into max_length "
            f"{plan.training.max_length}"
        )
    items = encoded.questions.questions
    right = np.array([question.answer for question in items])
    sample = items[:NUM_ASKED]
    starts = [0, *itertools.accumulate(len(question.options) for question in items)]
    characters = np.array([len(option) for question in items for option in question.options])
    hits: dict[str, dict[str, np.ndarray]] = {}
    unparseable: dict[str, int] = {}
    same: dict[str, bool] = {}
    base: tuple[np.ndarray, np.ndarray] | None = None
    for name, adapter in {BASE: None, **adapters}.items():
        report = (lambda done, total, name=name: progress(name, done, total)) if progress else None
        texts, labels = (
            _measure_cached(workspace, plan, lm, adapter, options, report)
            for options in (encoded.texts, encoded.labels)
        )
        base = base or (texts, labels)
        same[name] = all(np.array_equal(*pair) for pair in zip((texts, labels), base, strict=True))
        hits[name] = {
            "accuracy": _best_options(texts, starts) == right,
            "accuracy_norm": _best_options(texts / characters, starts) == right,
            "by_letter": _best_options(labels, starts) == right,
        }
        if sample:
            answers = _ask(lm, plan, adapter, sample, report)
            unparseable[name] = sum(answer is None for answer in answers)
            hits[name]["asked"] = np.array([answer == q.answer for answer, q in zip(answers, sample, strict=True)])
    return MultipleChoice(
        examples=questions.name,
        examples_digest=encoded.questions.digest,
        layout=questions.layout,
        num_questions=len(items),
        num_skipped=encoded.questions.num_skipped,
        num_asked=len(sample),
        chance=float(np.mean([1 / len(question.options) for question in items])),
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


def _measure_cached(
    workspace: Workspace,
    plan: Plan,
    lm: LanguageModel,
    adapter: Adapter | None,
    options: Sequence[Continued],
    progress: Progress | None,
) -> np.ndarray:
    """Negative log-likelihood of every option of every question, measured once for an adapter."""
    digest = sha256_json(["choices", [[one.prompt, one.ends] for one in options]])
    return measuring.compute_cached(
        workspace, plan, lm, adapter, digest, lambda adapter: mcq_scores.measure(lm, adapter, options, progress)
    ).nll


def _best_options(nll: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """For each question the option of the least negative log-probability, the first of equal ones."""
    return np.array([int(np.argmin(nll[a:b])) for a, b in itertools.pairwise(starts)])


def _ask(
    lm: LanguageModel,
    plan: Plan,
    adapter: Adapter | None,
    questions: Sequence[Question],
    progress: Progress | None,
) -> list[int | None]:
    """The option that a model names when it is asked to write a letter; None where its answer holds none."""
    lm.use(adapter)
    conversations = [prompt_messages(plan.prompt, question.asking) for question in questions]
    answers = answer_many(lm, conversations, ASKED_TOKENS, progress)
    return [question.parse(answer.text) for question, answer in zip(questions, answers, strict=True)]


def _rate(hits: Mapping[str, Mapping[str, np.ndarray]], name: str, what: str, same: bool) -> Rate:
    """The accuracy of an adapter; `same` where it has the base's very log-probabilities, which leaves no doubt."""
    right, base = hits[name][what], hits[BASE][what]
    score = wilson(int(right.sum()), len(right))
    if name == BASE:
        return Rate(score, None)
    if same:
        return Rate(score, Interval(0.0, 0.0, 0.0))
    return Rate(score, paired_shares(int(np.sum(right & ~base)), int(np.sum(base & ~right)), len(right)))
