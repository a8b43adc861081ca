"""What long work reports while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedmed_cli.text import MOST_NAMED

Say = Callable[[str], None]  # a sentence
Progress = Callable[[int, int], None]  # done, of how many
StageProgress = Callable[[str, int, int], None]  # what is being done, done, of how many (0 where not known)


def say_first(say: Say, sentences: Sequence[str], what: str) -> None:
    """Say the first few of many sentences of one kind, and how many more there are; `what` says of what."""
    for sentence in sentences[:MOST_NAMED]:
        say(sentence)
    if (more := len(sentences) - MOST_NAMED) > 0:
        say(f"and {more:,} more {what}")


@dataclass(frozen=True)
class Step:
    """What is shown after each step. `loss` is this batch's, in nats per supervised token."""

    step: int
    max_steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Events:
    """Where a long step reports to: `say` gets sentences, the others get numbers."""

    say: Say = lambda message: None
    step: Callable[[Step], None] | None = None
    measured: Progress | None = None
