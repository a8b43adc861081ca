"""Text as people read it: safe on a terminal, numbers with units."""

from __future__ import annotations

import re
from collections.abc import Sequence

MOST_NAMED = 10  # of one kind, one by one


def number_of_bytes(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def first_few(parts: Sequence[str], separator: str = ", ") -> str:
    """The first few of many, and how many more there are."""
    more = len(parts) - MOST_NAMED
    return separator.join([*parts[:MOST_NAMED], *([f"and {more:,} more"] if more > 0 else [])])


_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def number_of_seconds(text: str) -> float:
    """ "48h" (or d, m, s) in seconds; ValueError where it has another form."""
    number, unit = text[:-1], text[-1:]
    if unit not in _SECONDS or not number.isdecimal() or not number.isascii():
        raise ValueError(f"expected a whole number and d, h, m or s, as in 48h, found {text[:80]!r}")
    return float(int(number) * _SECONDS[unit])


# Escape sequences, control characters and marks that turn the reading direction must not reach a terminal.
_ESCAPES = re.compile(
    r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
    r"|[\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


# Those of them that JSON leaves as they are.
_STEERING = re.compile(r"[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

_OPEN_END = re.compile(r"(\x1b(\[[0-?]*[ -/]*|\][^\x07\x1b]*\x1b?)?|\ufffd+)\Z")


def clean(text: str) -> str:
    """`text` without terminal escapes and control characters other than line feed and tab."""
    return _ESCAPES.sub("", text)


def escape_json(text: str) -> str:
    """The same JSON with every character escaped that could steer a terminal."""
    return _STEERING.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def without_open_end(text: str) -> str:
    """A text that is still growing, without the half character or half escape sequence at its end."""
    return _OPEN_END.sub("", text)
