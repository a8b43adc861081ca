"""A conversation with the model: which messages it sees, and what the guardrails make of it."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fedmed_cli.chat.choose_adapter import BASE, NamedAdapter
from fedmed_cli.chat.generation import Answer, answer
from fedmed_cli.chat.guardrails.answer import check_answer
from fedmed_cli.chat.guardrails.findings import MAX_CHARACTERS, Finding, Strictness, holds_answer_back
from fedmed_cli.chat.guardrails.question import check_question
from fedmed_cli.errors import InputError, UsageError
from fedmed_cli.models.engines.engine import MAX_SEED, Engine, Sampling
from fedmed_cli.models.prompts import prompt_ids, prompt_messages
from fedmed_cli.records.chat import Chat, Turn
from fedmed_cli.records.plan import Prompt
from fedmed_cli.text import clean

LABEL = "research evaluation, not for clinical use"
DISCLAIMER = "Research evaluation, not for clinical use: answers can be wrong. In an emergency call your local number."


@dataclass(frozen=True)
class Guarded:
    """A question that the guardrails have looked at; `is_held_back`: the model is not to be asked."""

    question: str
    findings: tuple[Finding, ...]
    is_held_back: bool


@dataclass(frozen=True)
class Reply:
    """What came of a question: the findings about it, and the answer with those about it. None: held back."""

    findings: tuple[Finding, ...]
    answer: Answer | None
    answer_findings: tuple[Finding, ...]
    num_forgotten: int


SETTINGS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "max-new-tokens": (1, 4096),
    "seed": (0, MAX_SEED),
}


@dataclass
class Settings:
    """What /set changes."""

    temperature: float = 0.0
    max_new_tokens: int = 256
    seed: int | None = None

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.max_new_tokens, self.temperature, self.seed)

    def set(self, name: str, text: str) -> float:
        """Change a setting by its name. UsageError for an unknown one, or a value out of range."""
        if name not in SETTINGS:
            raise UsageError(f"no setting {name!r}, expected one of {', '.join(SETTINGS)}")
        least, most = SETTINGS[name]
        try:
            value = type(least)(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise UsageError(f"{name}: expected {least} to {most}, found {text[:40]!r}")
        setattr(self, name.replace("-", "_"), value)
        return value


@dataclass
class Conversation:
    """Messages so far; each question is answered with what came before it, as far as it fits the context."""

    engine: Engine
    prompt: Prompt
    settings: Settings = field(default_factory=Settings)
    turns: list[Turn] = field(default_factory=list)
    current: NamedAdapter = BASE
    stats: list[Answer] = field(default_factory=list)
    guardrails: Strictness = "standard"

    def __post_init__(self) -> None:
        self.system = self.prompt.system  # until /system or /load change it

    def use(self, named: NamedAdapter) -> float:
        """Answer with another adapter from now on; the seconds it took. The messages stay."""
        started = time.perf_counter()
        if named.adapter is not None:
            self.engine.prepare([named.adapter])
        self.current = named
        return time.perf_counter() - started

    def prompt_ids(self, question: str) -> tuple[list[int], int]:
        """The tokens that the model sees of a question, and how many of the oldest turns no longer fit.

        InputError where the question is too long by itself.
        """
        system = [{"role": "system", "content": self.system}] if self.system else []
        user = prompt_messages(self.prompt, question)[-1]
        room = self.engine.context - self.settings.max_new_tokens

        def tokens(forgotten: int) -> list[int]:
            past = [
                message
                for turn in self.turns[forgotten:]
                for message in (
                    prompt_messages(self.prompt, turn.question)[-1],
                    {"role": "assistant", "content": turn.answer},
                )
            ]
            return prompt_ids([*system, *past, user], self.engine.tokenizer)

        ids = tokens(0)
        if len(ids) <= room:
            return ids, 0
        all_turns = range(len(self.turns) + 1)
        forgotten = bisect.bisect_left(all_turns, True, lo=1, key=lambda number: len(tokens(number)) <= room)
        if forgotten == len(all_turns):
            raise InputError(
                f"the question does not fit into the model's context: {max(room, 0):,} tokens are left beside an "
                f"answer of up to {self.settings.max_new_tokens:,}"
            )
        return tokens(forgotten), forgotten

    def guard(self, question: str) -> Guarded:
        """Check a question, as `guard` does."""
        return guard(question, self.guardrails)

    def ask(self, guarded: Guarded, on_text: Callable[[str], None] = lambda text: None) -> Reply:
        """Answer a question and remember both, unless the guardrails hold the answer back."""
        if guarded.is_held_back:
            return Reply(guarded.findings, None, (), 0)
        ids, num_forgotten = self.prompt_ids(guarded.question)
        result = answer(self.engine, ids, self.current.adapter, self.settings.sampling, on_text)
        self.stats.append(result)
        self.turns.append(Turn(guarded.question, result.text))
        return Reply(guarded.findings, result, check_answer(result.text, guarded.findings), num_forgotten)

    def compare(self, guarded: Guarded, others: list[NamedAdapter]) -> list[tuple[str, str]]:
        """The answers of several adapters to a question by itself, by name. Nothing is remembered.

        Empty where the guardrails hold the answer back.
        """
        if guarded.is_held_back:
            return []
        turns, self.turns = self.turns, []
        try:
            ids, _ = self.prompt_ids(guarded.question)
        finally:
            self.turns = turns
        self.engine.prepare([other.adapter for other in others if other.adapter is not None])
        sampling = Sampling(self.settings.max_new_tokens)
        return [(other.name, answer(self.engine, ids, other.adapter, sampling).text) for other in others]

    def record(self, base_fingerprint: str) -> Chat:
        return Chat(self.current.digest, base_fingerprint, self.system, tuple(self.turns))


def guard(question: str, guardrails: Strictness) -> Guarded:
    """Check a question: nothing is asked without. InputError where it is empty or too long."""
    question = check_length(question)
    findings = check_question(question, guardrails)
    return Guarded(question, findings, holds_answer_back(findings))


def check_length(question: str) -> str:
    """A question without escapes and edges; InputError where it is empty, too long or no text."""
    if len(question) > MAX_CHARACTERS:
        raise InputError(f"the question has {len(question):,} characters, at most {MAX_CHARACTERS:,} are taken")
    cleaned = clean(question).strip()
    odd = sum(character in "\ufffd\0" or "\ud800" <= character <= "\udfff" for character in question)
    if odd > max(2, len(question) // 20) or (question.strip() and not cleaned):
        raise InputError("the question is not text: it holds bytes that are not characters")
    if not cleaned:
        raise InputError("the question is empty")
    return cleaned.encode("utf-8", "replace").decode("utf-8")


def to_json(reply: Reply, named: NamedAdapter) -> dict[str, Any]:
    """What --json prints of a reply."""
    answer = reply.answer
    return {
        "answer": answer.text if answer else None,
        "adapter": named.digest,
        "adapter_name": named.name,
        "findings": [finding.to_dict() for finding in reply.findings],
        "answer_findings": [finding.to_dict() for finding in reply.answer_findings],
        "held_back": answer is None,
        "num_tokens": answer.num_tokens if answer else 0,
        "seconds": round(answer.seconds, 3) if answer else 0.0,
        "seconds_to_first_token": round(answer.seconds_to_first_token, 3) if answer else None,
        "finished": answer.finished if answer else True,
        "notice": DISCLAIMER,
    }
