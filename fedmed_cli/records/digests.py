"""Canonical JSON and SHA-256 digests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fedmed_cli.errors import InputError


def canonical_json(value: Any) -> bytes:
    """The one byte string for `value`: sorted keys, no white space, UTF-8, no NaN or Infinity."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def sha256_bytes(data: bytes | bytearray | memoryview) -> str:
    """SHA-256 of a buffer, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces; InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def sha256_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    return sha256_bytes(canonical_json(value))


def short(digest: str) -> str:
    """The first 12 digits of a digest, for people to compare."""
    return digest[:12]
