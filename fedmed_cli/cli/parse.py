"""Small parsers of option values; each raises a UsageError that names the option and what was expected."""

from __future__ import annotations

import typing
from collections.abc import Collection

from fedmed_cli.errors import UsageError
from fedmed_cli.text import number_of_seconds

Known = typing.TypeVar("Known", bound=str)  # a Literal of strings
Number = typing.TypeVar("Number", int, float)


def choice(flag: str, value: str, known: Collection[Known]) -> Known:
    """The one of `known` that `value` is, or a UsageError that lists them."""
    for name in known:
        if name == value:
            return name
    raise UsageError(f"{flag}: expected one of {', '.join(known)}, found {value!r}")


def names(flag: str, text: str) -> tuple[str, ...]:
    """A comma-separated list."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise UsageError(f"{flag}: expected comma-separated names, found {text!r}")
    return parts


def numbers(flag: str, text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers above 0."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = (0,)
    if min(values) < 1:
        raise UsageError(f"{flag}: expected comma-separated whole numbers above 0, found {text!r}")
    return values


def mapping(flag: str, text: str) -> dict[str, str]:
    """ "question=Q,answer=A" as a dictionary."""
    result = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise UsageError(f"{flag}: expected comma-separated NAME=COLUMN, found {part!r}")
        if key.strip() in result:
            raise UsageError(f"{flag}: {key.strip()[:80]!r} appears twice")
        result[key.strip()] = value.strip()
    return result


def pattern(flag: str, text: str | None, kind: type[Number]) -> dict[str, Number] | None:
    """ "down_proj=16,v_proj=4" as a dictionary, None where not given; UsageError where it has another form."""
    if text is None:
        return None
    result = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            number = kind(value)
        except ValueError:
            raise UsageError(f"{flag}: expected comma-separated MODULE=NUMBER, found {part[:80]!r}") from None
        if name.strip() in result:
            raise UsageError(f"{flag}: {name.strip()[:80]!r} appears twice")
        result[name.strip()] = number
    return result


def assignment(text: str) -> dict[str, tuple[str, ...]]:
    """ "A=GHR,GARD;B=NIDDK" as site to values."""
    result: dict[str, tuple[str, ...]] = {}
    for part in text.split(";"):
        site, equals, values = part.partition("=")
        if not equals or not site.strip() or site.strip() in result:
            raise UsageError(f"--assign: expected 'A=x,y;B=z' with each site once, found {part!r}")
        result[site.strip()] = names("--assign", values)
    return result


def duration(flag: str, text: str) -> float:
    """ "48h" (or d, m, s) in seconds."""
    try:
        return number_of_seconds(text)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from None


def similarity(flag: str, text: str) -> float | None:
    """A similarity from 0.3 to 1; None for "off"."""
    if text == "off":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.3 <= value <= 1:
        raise UsageError(f"{flag}: expected off or a number from 0.3 to 1, found {text!r}")
    return value
