"""What Flower carries: a bundle's bytes, as `fedmed pack` writes it, and a few numbers and names beside it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedmed_cli.errors import InputError, UsageError
from fedmed_cli.records.plan import Plan
from fedmed_cli.trust.keys import default_key_path, signer_for

if TYPE_CHECKING:
    from fedmed_cli.records.signatures import Signer

INBOX_NAME = "flower"  # in .fedmed/: where what came over Flower lies
# Settings of a run. Those of `simulation` are the nodes' in Flower's simulation, where nodes have none.
RUN_SETTINGS = {
    "workspace": str,
    "rounds": int,
    "min-sites": int,
    "deadline": str,
    "poll": float,
    "weights": str,
    "key": str,
    "require-signatures": bool,
    "simulation.sites": str,
    "simulation.keys": str,
    "simulation.base": str,
    "simulation.max-steps": int,
    "simulation.max-eval-samples": int,
}

_log = logging.getLogger("flwr")


def say(message: str) -> None:
    """A sentence in Flower's log."""
    _log.info("fedmed: %s", message)


def make_content(bundle: bytes | None, **about: str | int) -> RecordDict:
    """The content of a message."""
    content = RecordDict({"about": ConfigRecord(dict(about))})
    if bundle is not None:
        content["bundle"] = ArrayRecord({"bundle": Array("uint8", (len(bundle),), "fedmed.bundle", bundle)})
    return content


def bundle_of(content: RecordDict) -> bytes | None:
    """The bundle in a message; None where it holds none."""
    arrays = content.array_records.get("bundle")
    return arrays["bundle"].data if arrays and "bundle" in arrays else None


def about(content: RecordDict) -> Mapping[str, object]:
    """What stands beside the bundle."""
    return content.config_records.get("about") or {}


def exit_code_of(content: RecordDict) -> int | None:
    """The exit code of what went wrong at an answer's node, None where nothing did. Texts of errors stay there."""
    code = about(content).get("exit_code")
    return code if isinstance(code, int) else None


def read_settings(given: Mapping[str, Any], kinds: Mapping[str, type]) -> dict[str, Any]:
    """The settings of a run or a node by name, None where one is not given or is an empty text.

    UsageError where one is not known or of another type.
    """
    settings: dict[str, Any] = dict.fromkeys(kinds)
    for name, value in given.items():
        if name not in kinds:
            raise UsageError(f"there is no setting {name!r}", hint=f"the settings are {', '.join(kinds)}")
        if kinds[name] is float and type(value) is int:
            value = float(value)
        if value != "" and type(value) is not kinds[name]:
            raise UsageError(f"{name}: expected {kinds[name].__name__}, found {type(value).__name__}")
        settings[name] = None if value == "" else value
    return settings


def load_signer(key: str | None, name: str, plan: Plan) -> Signer | None:
    """The key to sign with as `name`: that in the file `key`, else the user's own, if there is one."""
    path = Path(key) if key else default_key_path()
    if key is None and not path.exists():
        return signer_for(name, plan, None)
    from fedmed_cli.records.codec import read_file
    from fedmed_cli.records.signatures import MAX_KEY_BYTES, is_encrypted, load

    passphrase = os.environ.get("FEDMED_KEY_PASSPHRASE")
    if passphrase is None and is_encrypted(read_file(path, MAX_KEY_BYTES)):
        raise InputError(f"{path}: is protected by a passphrase", hint="set FEDMED_KEY_PASSPHRASE")
    return signer_for(name, plan, load(path, passphrase))
