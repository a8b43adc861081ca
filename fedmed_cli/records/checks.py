"""What fields of several records must keep: site names, digests, ranges."""

from __future__ import annotations

import re
from collections.abc import Iterable

SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
BASE, GLOBAL, FACTOR_MEAN = "base", "global", "factor-mean"  # what a comparison calls an adapter, if not by its site
BOUNDS = POOLED, POOLED_PARALLEL = "pooled", "pooled-parallel"
ALONE, PERSONAL, GLOBAL_OF_ROUND = "alone-", "personal-", "global-"  # and a site or a round
RESERVED_NAMES = frozenset({BASE, GLOBAL, FACTOR_MEAN, *BOUNDS, "best", "train", "test", "coordinator"})
RESERVED_STARTS = (ALONE, PERSONAL, GLOBAL_OF_ROUND)
MAX_ROUND = 999_999  # folders of rounds have at most six digits
_WINDOWS_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(10))}
)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KEY_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")


def check_site_name(name: str) -> str:
    """Return `name`, or raise ValueError where it may not become part of a path."""
    if not SITE_NAME.fullmatch(name):
        raise ValueError(f"site name {name[:80]!r} must match {SITE_NAME.pattern}")
    if name.lower() in RESERVED_NAMES or name.lower().startswith(RESERVED_STARTS):
        raise ValueError(f"site name {name[:80]!r} is reserved: an adapter or a set that fedmed makes is called so")
    if name.lower() in _WINDOWS_DEVICES:
        raise ValueError(f"site name {name[:80]!r} is a device on Windows, where no folder can have it")
    return name


def check_site_names(names: tuple[str, ...]) -> None:
    """Raise ValueError unless every name is allowed and unique without regard to case."""
    seen = set()
    for name in names:
        check_site_name(name)
        if name.lower() in seen:
            raise ValueError(f"site name {name[:80]!r} appears twice (upper and lower case count as one)")
        seen.add(name.lower())


def check_digest(name: str, value: str) -> None:
    if not _DIGEST.fullmatch(value):
        raise ValueError(f"{name} must be 64 hexadecimal digits, found {value[:80]!r}")


def check_key_fingerprint(name: str, value: str) -> None:
    if not _KEY_FINGERPRINT.fullmatch(value):
        raise ValueError(f"{name} must be 'SHA256:' and 43 characters, found {value[:80]!a}")


def check_known(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, found {value[:80]!a}")


def check_range(low: float, high: float, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} must be from {low:g} to {high:g}, found {value!r}")


def check_at_most(most: int, why: str, **values: int) -> None:
    for name, value in values.items():
        if value > most:
            raise ValueError(f"{name} must be at most {most:,} ({why}), found {value:,}")


def check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative, found {value!r}")


def check_files(files: dict[str, str]) -> None:
    for name, value in files.items():
        if not 0 < len(name) <= 80 or not name.isascii() or not name.isprintable():
            raise ValueError(f"files: {name[:80]!a} is not a file name")
        check_digest(f"files.{name}", value)
