"""The key that a command signs with: where it lies, and asking for its passphrase."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedmed_cli.cli.screen import Screen
from fedmed_cli.errors import InputError

if TYPE_CHECKING:
    from fedmed_cli.records.signatures import Signer


def passphrase_for(path: Path) -> str | None:
    """The passphrase of a key that has one: FEDMED_KEY_PASSPHRASE, else asked for on the terminal."""
    from fedmed_cli.records.codec import read_file
    from fedmed_cli.records.signatures import MAX_KEY_BYTES, is_encrypted

    if not is_encrypted(read_file(path, MAX_KEY_BYTES)):
        return None
    given = os.environ.get("FEDMED_KEY_PASSPHRASE")
    if given:
        return given
    if not sys.stdin.isatty():
        raise InputError(
            f"{path}: is protected by a passphrase, and there is no terminal to ask for it",
            hint="set FEDMED_KEY_PASSPHRASE",
        )
    return str(typer.prompt(f"passphrase of {path}", hide_input=True, err=True))


def load_signer(screen: Screen, key: Path | None, workspace: Path) -> Signer | None:
    """The key to sign with: `key`, else the default one, else None, which is said."""
    from fedmed_cli.trust.keys import default_key_path

    path = key or default_key_path()
    if key is None and not path.exists():
        screen.say("not signing: there is no key yet ('fedmed keys new' makes one)")
        return None
    from fedmed_cli.records.signatures import (  # loads cryptography, which unsigned work need not wait for
        load,
        refuse_inside,
    )

    refuse_inside(path, workspace)
    signer = load(path, passphrase_for(path))
    screen.say(f"signing with {signer.fingerprint}")
    return signer
