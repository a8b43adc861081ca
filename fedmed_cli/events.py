"""What long work reports while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Say = Callable[[str], None]  # a sentence
Progress = Callable[[int, int], None]  # done, of how many
StageProgress = Callable[[str, int, int], None]  # what is being done, done, of how many (0 where not known)


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
