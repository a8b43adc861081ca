"""Strict reading and writing of records: dataclasses to JSON and back, with every deviation an error."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import math
import os
import re
import stat
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from fedmed_cli import __version__
from fedmed_cli.errors import InputError

MAX_RECORD_BYTES = 1_000_000
MAX_DEPTH = 12
MAX_REASON = 600
CONTAINERS_PER_BYTE = 0.06
MAX_INTEGER = 2**63 - 1
MAX_SIZE = 1e100  # of a number: no sum or square of such numbers overflows
MAX_READ = 1 << 30  # Linux reads no more than 2 GB at once
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,40}")
# Control characters (but tab and line feed), line and paragraph separators, and what turns the direction of text.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

# Metadata of a field that came after the first release: omitted from the file where it is None, 0 or empty.
OMIT_IF_EMPTY = {"omit_if_empty": True}

T = TypeVar("T", bound="Record")


def describe_value(value: Any) -> str:
    """A foreign value as an error may show it: short, and never the inside of a list or an object."""
    if isinstance(value, str):
        return ascii(value[:80])
    if isinstance(value, bool | float | None):
        return str(value)
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 64 else "a number of more than 64 bits"
    return type(value).__name__


def reason_of(error: ValueError) -> str:
    """What an error says of a foreign value, never longer than people read."""
    text = str(error)
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}…"


def control_character(text: str) -> str | None:
    """The first character of `text` that could steer a terminal, as U+XXXX; None where there is none."""
    match = _CONTROLS.search(text)
    return f"U+{ord(match.group()):04X}" if match else None


def decode(kind: Any, value: Any, where: str) -> Any:
    """Turn a JSON or TOML value into `kind`; ValueError names the place, what it wants and what it found."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        for option in options:
            if option is not type(None):
                try:
                    return decode(option, value, where)
                except ValueError:
                    if option is type(value) or len([o for o in options if o is not type(None)]) == 1:
                        raise
        raise ValueError(f"{where} has an unexpected type ({type(value).__name__})")
    if origin is Literal:
        if not isinstance(value, str) or value not in typing.get_args(kind):
            known = ", ".join(map(str, typing.get_args(kind)))
            raise ValueError(f"{where} must be one of {known}, found {describe_value(value)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, found {type(value).__name__}")
        item = typing.get_args(kind)[0]
        return tuple(decode(item, part, f"{where}[{i}]") for i, part in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, found {type(value).__name__}")
        item = typing.get_args(kind)[1]
        return {decode(str, key, where): decode(item, part, f"{where}.{key[:80]}") for key, part in value.items()}
    if dataclasses.is_dataclass(kind):
        return decode_fields(typing.cast(type, kind), value, where)
    if type(value) is int and not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise ValueError(f"{where} does not fit into 64 bits")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{where} must be {kind.__name__}, found {type(value).__name__}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{where} must be finite, found {value}")
    if kind is float and abs(value) > MAX_SIZE:
        raise ValueError(f"{where} must be at most {MAX_SIZE:g} in size, found {value:g}")
    if kind is str and (control := control_character(value)):
        raise ValueError(f"{where} holds the control character {control}")
    return value


@functools.cache
def _type_hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def decode_fields(kind: type, value: Any, where: str) -> Any:
    """Turn an object into the dataclass `kind`; ValueError for a missing, an unknown or an ill-typed field."""
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'the file'} must be an object, found {type(value).__name__}")
    hints = _type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    for name in value:
        if name not in known:
            raise ValueError(f"unknown field {prefix + name[:80]!r}")
    arguments = {}
    for name, f in known.items():
        if name in value:
            arguments[name] = decode(hints[name], value[name], prefix + name)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"missing field {prefix + name!r}")
    return kind(**arguments)


def encode(value: Any) -> Any:
    """Turn a dataclass into plain JSON values, keys sorted."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: getattr(value, f.name) for f in sorted(dataclasses.fields(value), key=lambda f: f.name)}
        empty = {f.name for f in dataclasses.fields(value) if f.metadata.get("omit_if_empty") and not parts[f.name]}
        return {name: encode(part) for name, part in parts.items() if name not in empty}
    if isinstance(value, dict):
        return {key: encode(part) for key, part in sorted(value.items())}
    if isinstance(value, tuple | list):
        return [encode(part) for part in value]
    return value


def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values; ValueError names a key that appears twice."""
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"the key {name[:80]!r} appears twice")
        result[name] = value
    return result


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _measure_depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        if deepest > MAX_DEPTH:
            return deepest
        level = [
            part
            for node in level
            if isinstance(node, dict | list)
            for part in (node.values() if isinstance(node, dict) else node)
        ]
    return deepest


def parse_json(data: bytes, name: str, max_bytes: int = MAX_RECORD_BYTES) -> Any:
    """Parse foreign JSON strictly; `name` is how errors call the file.

    Refuses more than `max_bytes`, nesting deeper than `MAX_DEPTH`, more brackets than any record of
    that size has, duplicate keys, NaN and Infinity, half characters (lone surrogates), and bytes that are not UTF-8
    (InputError, exit code 3).
    """
    if len(data) > max_bytes:
        raise InputError(f"{name}: expected at most {max_bytes:,} bytes, found {len(data):,}")
    # A byte of brackets becomes a hundred bytes of objects, so they are counted before anything is built.
    containers = data.count(b"{") + data.count(b"[")
    if containers > max_bytes * CONTAINERS_PER_BYTE:
        raise InputError(
            f"{name}: expected at most {max_bytes * CONTAINERS_PER_BYTE:,.0f} lists and objects, found {containers:,}"
        )
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=refuse_duplicates, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{name}: is not JSON at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise InputError(f"{name}: nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        reason = "a number has too many digits" if "digits" in str(error) else reason_of(error)
        raise InputError(f"{name}: {reason}") from None
    if b"\\u" in data:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except (UnicodeEncodeError, RecursionError):
            raise InputError(f"{name}: holds half a character (a lone surrogate), or is nested too deep") from None
    if _measure_depth(value) > MAX_DEPTH:
        raise InputError(f"{name}: nested deeper than {MAX_DEPTH} levels")
    return value


def read_file(path: Path, max_bytes: int = MAX_RECORD_BYTES, links: bool = True) -> bytes:
    """Read a plain file whole, once; InputError where it is missing, unreadable, too large or not a plain file.

    Without `links` the last part of `path` may not be one. What is returned is what was there while it was read,
    whatever happens to the file meanwhile: it is never memory-mapped.
    """
    # Without O_NONBLOCK the opening of a pipe that nobody writes to would wait for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if not links:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        reason = "is a link" if error.errno == errno.ELOOP else f"cannot be read ({error.strerror})"
        raise InputError(f"{path}: {reason}") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: is not a plain file")
        if status.st_size > max_bytes:
            raise InputError(f"{path}: expected at most {max_bytes:,} bytes, found {status.st_size:,}")
        parts, size = [], 0
        # Not more than the file says at once: a read of the limit would first reserve that much memory.
        while part := os.read(handle, min(max(status.st_size - size, 0), MAX_READ) + 1):
            parts.append(part)
            size += len(part)
            if size > max_bytes:
                raise InputError(f"{path}: expected at most {max_bytes:,} bytes, found more (it grows)")
        return parts[0] if len(parts) == 1 else b"".join(parts)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Record:
    """What all JSON records share. `format` is "fedmed/" plus the class's `FORMAT`."""

    FORMAT: ClassVar[str] = ""
    VERSION: ClassVar[int] = 1

    def header(self) -> dict[str, Any]:
        return {"format": f"fedmed/{self.FORMAT}", "version": self.VERSION, "fedmed_version": __version__}

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON values, header first."""
        body: dict[str, Any] = encode(self)
        return self.header() | body

    def to_bytes(self) -> bytes:
        """The file of the record. InputError where it would be larger than what is read again."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        data = (text + "\n").encode("utf-8")
        if len(data) > MAX_RECORD_BYTES:
            raise InputError(
                f"this {self.FORMAT} would have {len(data):,} bytes; at most {MAX_RECORD_BYTES:,} are read again",
                hint="fewer sites, adapters, rounds or columns at once make it smaller",
            )
        return data

    @classmethod
    def from_bytes(cls: type[T], data: bytes, name: str) -> T:
        """Parse and check a record; InputError names the file, the expected and the found value."""
        return cls.from_dict(parse_json(data, name), name)

    @classmethod
    def from_dict(cls: type[T], value: Any, name: str) -> T:
        if not isinstance(value, dict):
            raise InputError(f"{name}: expected an object, found {type(value).__name__}")
        rest = check_header(value, cls.FORMAT, cls.VERSION, name)
        try:
            return typing.cast(T, decode_fields(cls, rest, ""))
        except ValueError as error:
            raise InputError(f"{name}: {reason_of(error)}") from None

    @classmethod
    def read(cls: type[T], path: Path) -> T:
        return cls.from_bytes(read_file(path), str(path))


def check_header(value: dict[str, Any], kind: str, version: int, name: str) -> dict[str, Any]:
    """The fields after `format`, `version` and `fedmed_version`; InputError unless those are as expected."""
    rest = dict(value)
    stated = rest.pop("format", None)
    if stated != f"fedmed/{kind}":
        raise InputError(f"{name}: expected format 'fedmed/{kind}', found {describe_value(stated)}")
    stated = rest.pop("version", None)
    if type(stated) is not int or stated != version:
        raise InputError(
            f"{name}: expected version {version}, found {describe_value(stated)}",
            hint="a newer fedmed wrote this file; install that version to read it",
        )
    writer = rest.pop("fedmed_version", None)
    if not isinstance(writer, str) or not _VERSION.fullmatch(writer):
        raise InputError(f"{name}: expected fedmed_version to be a version, found {describe_value(writer)}")
    return rest
