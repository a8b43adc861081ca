"""Drafts for decoding: guessing that a text goes on as it did the last time (prompt lookup, Saxena 2023).

A model checks several guessed tokens in one pass that costs little more than a pass of one, and only those are kept
that it would have chosen itself.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_DRAFT = 3


class PromptLookup:
    """The tokens of a text, and what followed each run of up to MAX_DRAFT of them the last time."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        for token in ids:
            self.append(token)

    def append(self, token: int) -> None:
        end = len(self._ids)
        for length in range(1, min(MAX_DRAFT, end) + 1):
            self._after[tuple(self._ids[end - length :])] = end
        self._ids.append(token)

    def next(self, most: int) -> list[int]:
        """As many tokens as were found alike at the end of the text, at most `most`; none where nothing was."""
        for length in range(min(MAX_DRAFT, len(self._ids)), 0, -1):
            place = self._after.get(tuple(self._ids[-length:]))
            if place is not None:
                return self._ids[place : place + min(length, most)]
        return []
