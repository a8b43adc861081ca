"""Strict reading and writing of records: dataclasses to JSON and back, with every deviation an error."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from fedmed_cli import __version__
from fedmed_cli.errors import InputError

MAX_RECORD_BYTES = 1_000_000
MAX_DEPTH = 12

T = TypeVar("T", bound="Record")


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Turn a JSON or TOML value into `kind`; ValueError names the place, what it wants and what it found."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        for option in options:
            if option is not type(None):
                try:
                    return _decode(option, value, where)
                except ValueError:
                    if len([o for o in options if o is not type(None)]) == 1:
                        raise
        raise ValueError(f"{where} has an unexpected type ({type(value).__name__})")
    if origin is Literal:
        if value not in typing.get_args(kind):
            known = ", ".join(map(str, typing.get_args(kind)))
            raise ValueError(f"{where} must be one of {known}, found {str(value)[:80]!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, found {type(value).__name__}")
        item = typing.get_args(kind)[0]
        return tuple(_decode(item, part, f"{where}[{i}]") for i, part in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, found {type(value).__name__}")
        item = typing.get_args(kind)[1]
        return {key: _decode(item, part, f"{where}.{key[:80]}") for key, part in value.items()}
    if dataclasses.is_dataclass(kind):
        return decode_fields(typing.cast(type, kind), value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{where} must be {kind.__name__}, found {type(value).__name__}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{where} must be finite, found {value}")
    return value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def decode_fields(kind: type, value: Any, where: str) -> Any:
    """Turn an object into the dataclass `kind`; ValueError for a missing, an unknown or an ill-typed field."""
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'the file'} must be an object, found {type(value).__name__}")
    hints = _hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    for name in value:
        if name not in known:
            raise ValueError(f"unknown field {prefix + name[:80]!r}")
    arguments = {}
    for name, f in known.items():
        if name in value:
            arguments[name] = _decode(hints[name], value[name], prefix + name)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"missing field {prefix + name!r}")
    return kind(**arguments)


def encode(value: Any) -> Any:
    """Turn a dataclass into plain JSON values, keys sorted."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: encode(getattr(value, name)) for name in sorted(f.name for f in dataclasses.fields(value))}
    if isinstance(value, dict):
        return {key: encode(part) for key, part in sorted(value.items())}
    if isinstance(value, tuple | list):
        return [encode(part) for part in value]
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} appears twice")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _depth(value: Any) -> int:
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

    Refuses more than `max_bytes`, nesting deeper than `MAX_DEPTH`, duplicate keys, NaN and Infinity, and
    bytes that are not UTF-8 (InputError, exit code 3).
    """
    if len(data) > max_bytes:
        raise InputError(f"{name}: expected at most {max_bytes:,} bytes, found {len(data):,}")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{name}: is not JSON at line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{name}: {reason}") from None
    if _depth(value) > MAX_DEPTH:
        raise InputError(f"{name}: nested deeper than {MAX_DEPTH} levels")
    return value


def read_file(path: Path, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
    """Read a small file whole, once; InputError where it is missing, unreadable or too large."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > max_bytes:
        raise InputError(f"{path}: expected at most {max_bytes:,} bytes, found more")
    return data


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
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        return (text + "\n").encode("utf-8")

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
            raise InputError(f"{name}: {error}") from None

    @classmethod
    def read(cls: type[T], path: Path) -> T:
        return cls.from_bytes(read_file(path), str(path))


def check_header(value: dict[str, Any], kind: str, version: int, name: str) -> dict[str, Any]:
    """The fields after `format`, `version` and `fedmed_version`; InputError unless those are as expected."""
    rest = dict(value)
    found = rest.pop("format", None)
    if found != f"fedmed/{kind}":
        raise InputError(f"{name}: expected format 'fedmed/{kind}', found {str(found)[:80]!r}")
    found = rest.pop("version", None)
    if type(found) is not int or found != version:
        raise InputError(
            f"{name}: expected version {version}, found {str(found)[:80]}",
            hint="a newer fedmed wrote this file; install that version to read it",
        )
    writer = rest.pop("fedmed_version", None)
    if not isinstance(writer, str):
        raise InputError(f"{name}: missing field 'fedmed_version'")
    return rest
