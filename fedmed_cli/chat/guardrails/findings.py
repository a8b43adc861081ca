"""What the guardrails can find in a question or an answer."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

MAX_CHARACTERS = 20_000  # of a text that is looked at; the chat takes no longer question
OWN_SOURCE = "docs/guardrails.md"  # of findings that no rule of rules.toml makes

Strictness = Literal["standard", "strict"]
STRICTNESS: tuple[Strictness, ...] = ("standard", "strict")


class Level(enum.StrEnum):
    """What a finding asks for, the strongest first."""

    URGENT = "urgent"  # a notice before anything else
    DECLINE = "decline"  # no answer
    POSSIBLE = "possible"  # a calm sentence after the answer
    NOTICE = "notice"  # a sentence


class Kind(enum.StrEnum):
    """What a finding is about."""

    EMERGENCY = "emergency"
    CRISIS = "crisis"
    MISUSE = "misuse"
    DOSING = "dosing"
    DIAGNOSIS = "diagnosis"
    STOPPING = "stopping"
    IDENTIFIER = "identifier"
    LANGUAGE = "language"
    ANSWER = "answer"


@dataclass(frozen=True)
class Finding:
    """One thing that a text holds, where (character positions), by which rule, and what is to be said about it."""

    rule: str
    kind: Kind
    level: Level
    start: int
    end: int
    notice: str
    source: str

    def to_dict(self) -> dict[str, str | int]:
        """For --json. It holds no text of the question."""
        return {
            "rule": self.rule,
            "kind": self.kind.value,
            "level": self.level.value,
            "start": self.start,
            "end": self.end,
            "notice": self.notice,
        }


def holds_answer_back(findings: Iterable[Finding]) -> bool:
    """Whether the model is not asked at all: certainly a request for harm, or a crisis, which needs a person."""
    return any(
        finding.level is Level.DECLINE or (finding.kind is Kind.CRISIS and finding.level is Level.URGENT)
        for finding in findings
    )
