"""When two texts are the same: up to upper and lower case and white space."""

from __future__ import annotations

import hashlib

import xxhash

from fedmed_cli.records.digests import sha256_json

_WHITE = bytes(code for code in range(128) if chr(code).isspace())
_LOWER = bytes(code + 32 if 65 <= code <= 90 else code for code in range(256))  # str.casefold of ASCII


def words(text: str) -> list[str]:
    """The words of a text without regard to case and white space."""
    return text.casefold().split()


def text_digest(question: str, answer: str) -> str:
    """SHA-256 that names a text: equal for two examples with the same words, and part of what is on disk."""
    return sha256_json([" ".join(words(part)) for part in (question, answer)])


def group_name(question: str, answer: str, column: str | None, value: str | None) -> str:
    """What may not be divided: the value of the group column, or where there is none the example's own text."""
    return f"{column}={value}" if column and value else text_digest(question, answer)


def keyed_hash(name: str, seed: int) -> int:
    """The first 64 bits of SHA-256 over the seed and a text's digest or a group's name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")


# In 64 bits the blanks between words are left out, which is ten times as fast. So "a b" and "ab" stay together as
# well, and these keys order the sets of large data on disk.


def text_key(question: str, answer: str) -> int:
    """64 bits that are equal for the same texts."""
    return xxhash.xxh3_64_intdigest(_join_words(question) + b"\0" + _join_words(answer))


def question_key(question: str) -> int:
    """64 bits that are equal for the same questions."""
    return xxhash.xxh3_64_intdigest(_join_words(question))


def group_key(value: str | None) -> int:
    """64 bits for a value of the group column; 0 where there is none."""
    return (xxhash.xxh3_64_intdigest(value.encode()) or 1) if value else 0


def _join_words(text: str) -> bytes:
    """`words` without blanks between them; for ASCII by two tables of bytes."""
    if text.isascii():
        return text.encode().translate(_LOWER, _WHITE)
    return "".join(words(text)).encode()
