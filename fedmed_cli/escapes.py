"""Text that is safe to show on a terminal."""

from __future__ import annotations

import re

# Escape sequences, control characters and marks that turn the reading direction must not reach a terminal.
_ESCAPES = re.compile(
    r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
    r"|[\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
_OPEN_END = re.compile(r"(\x1b(\[[0-?]*[ -/]*|\][^\x07\x1b]*\x1b?)?|\ufffd+)\Z")


def clean(text: str) -> str:
    """`text` without terminal escapes and control characters other than line feed and tab."""
    return _ESCAPES.sub("", text)


def without_open_end(text: str) -> str:
    """A text that is still growing, without the half character or half escape sequence at its end."""
    return _OPEN_END.sub("", text)
