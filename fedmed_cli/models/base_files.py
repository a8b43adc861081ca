"""The files of a base model that are read: hashed all, and put together in a folder that holds nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fedmed_cli.adapters.safetensors import TensorInfo, parse_header
from fedmed_cli.errors import ConflictError, InputError
from fedmed_cli.records.digests import sha256_file, sha256_json
from fedmed_cli.workspace.durable import new_folder

MAX_HEADER_BYTES = 100_000_000
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# What transformers may read beside the weights. A model of another layout is refused when it is loaded.
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
OTHER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)
_TOKENIZERS = OTHER_FILES[:6]
# Where a file was, and what wrote it, changes nothing of what it means.
_VOLATILE = frozenset({"transformers_version", "_name_or_path", "name_or_path", "tokenizer_file"})


def weight_files(folder: Path) -> dict[str, set[str] | None]:
    """The weights files that transformers loads, each with the tensors that it must hold; None: whatever it holds.

    One file goes before an index of several, as in transformers. InputError where there are none.
    """
    if (folder / WEIGHTS).exists():
        return {WEIGHTS: None}
    if not (folder / INDEX).exists():
        raise InputError(
            f"{folder}: holds neither {WEIGHTS} nor {INDEX}",
            hint="fedmed reads base models from safetensors only; convert it first",
        )
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{folder / INDEX}: has no weight_map")
    result: dict[str, set[str] | None] = {}
    for tensor, name in places.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(
                f"{folder / INDEX}: places a tensor in {ascii(name)[:80]}, expected a safetensors file here"
            )
        tensors = result.setdefault(name, set())
        assert tensors is not None
        tensors.add(tensor)
    return dict(sorted(result.items()))


def hash_files(folder: Path) -> tuple[str, dict[str, TensorInfo]]:
    """The fingerprint of a model folder, and its tensors by name.

    It covers every tensor, and every file that the tokenizer, the templates and the configuration are read from.
    InputError where the weights are not what the index says.
    """
    digests: dict[str, str] = {}
    tensors: dict[str, TensorInfo] = {}
    for name, expected in weight_files(folder).items():
        found = _hash_tensors(folder / name)
        if expected is not None and set(found) != expected:
            odd = ascii(sorted(set(found) ^ expected)[0])[:80]
            raise InputError(f"{folder / name}: {INDEX} places other tensors here than it holds ({odd})")
        for tensor, (info, digest) in found.items():
            digests[tensor] = f"{info.dtype} {list(info.shape)} {digest}"
            tensors[tensor] = info
    files: dict[str, Any] = {name: sha256_file(folder / name) for name in OTHER_FILES if (folder / name).exists()}
    for name in JSON_FILES:
        if (folder / name).exists():
            files[name] = {key: value for key, value in read_json(folder / name).items() if key not in _VOLATILE}
    return sha256_json({"files": files, "weights": digests}), tensors


def missing_files(folder: Path) -> list[str]:
    """What the folder of a language model has as a rule beside its weights, and this one lacks."""
    missing = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).exists()]
    return missing if any((folder / name).exists() for name in _TOKENIZERS) else [*missing, "tokenizer.json"]


def link_files(folder: Path, target: Path) -> Path:
    """A folder that holds the files that `hash_files` covers and nothing else, as links; made where it is not there."""
    if target.is_dir():
        return target
    weights = weight_files(folder)
    index = () if weights == {WEIGHTS: None} else (INDEX,)
    try:
        with new_folder(target) as staged:
            for name in (*weights, *index, *JSON_FILES, *OTHER_FILES):
                if (folder / name).exists():
                    _link((folder / name).resolve(), staged / name)
    except (ConflictError, OSError):
        if not target.is_dir():  # else another process was faster
            raise
    return target


def _link(source: Path, target: Path) -> None:
    for link in (os.symlink, os.link, shutil.copyfile):  # Windows asks for a privilege for the first
        try:
            link(source, target)
            return
        except OSError as error:
            fault = error
    raise fault


def read_json(path: Path) -> dict[str, Any]:
    """A file of a model folder that holds one JSON object. InputError where it does not."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, so this is not a base model") from None
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{path}: is not readable JSON") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object")
    return value


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[tuple[BinaryIO, Mapping[str, TensorInfo], int]]:
    """A weights file, its tensors by name, and where their bytes begin. InputError where it cannot be read."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    with path.open("rb") as file:
        head = file.read(8)
        head += file.read(min(int.from_bytes(head, "little"), MAX_HEADER_BYTES))
        yield file, *parse_header(head, size, str(path), MAX_HEADER_BYTES)


def _hash_tensors(path: Path) -> dict[str, tuple[TensorInfo, str]]:
    """Header entry and SHA-256 of each tensor of one weights file, read in pieces."""
    result = {}
    with open_weights(path) as (file, tensors, start):
        for name, info in tensors.items():
            file.seek(start + info.start)
            digest, left = hashlib.sha256(), info.end - info.start
            while left:
                piece = file.read(min(left, 1 << 22))
                if not piece:
                    raise InputError(f"{path}: became shorter while it was read")
                digest.update(piece)
                left -= len(piece)
            result[name] = (info, digest.hexdigest())
    return result
