"""The file of `/save` and `/load`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fedmed_cli.records.codec import Record
from fedmed_cli.records.measures import Run


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Chat(Record):
    """A conversation, written by /save and read by /load: the one record that holds text, and stays in the house."""

    FORMAT: ClassVar[str] = "chat"

    adapter: str | None
    base_fingerprint: str
    system: str
    turns: tuple[Turn, ...]
    run: Run = field(default_factory=dict)
