"""`fedmed keys new` and `show`: this machine's own key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedmed_cli.cli import options as o

if TYPE_CHECKING:
    from fedmed_cli.reporting.parts import Table


def keys() -> None:
    """Create, show and pin signing keys.

    A key is an OpenSSH key (Ed25519), so 'ssh-keygen -Y verify -n fedmed' checks a signature without fedmed.

    Example: fedmed keys new
    """


def new(
    name: Annotated[str, typer.Option("--name", help="A comment in the public key, such as the site's name.")] = "",
    passphrase: Annotated[bool, typer.Option("--passphrase", help="Ask for a passphrase to protect it.")] = False,
    key: o.KeyOption = None,
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Create a private key for this hospital or coordinator, readable only by its owner.

    Example: fedmed keys new --name B --passphrase
    """
    import os

    from fedmed_cli.cli.tables.keys import describe_key, key_lines
    from fedmed_cli.errors import UsageError
    from fedmed_cli.records.signatures import create, public_path, refuse_inside
    from fedmed_cli.trust.keys import default_key_path

    screen, place = common.open()
    path = key or default_key_path()
    refuse_inside(path, place.root)
    if not name.isprintable() or len(name) > 100:
        raise UsageError("--name: expected at most 100 printable characters")
    secret = None
    if passphrase:
        secret = os.environ.get("FEDMED_KEY_PASSPHRASE") or typer.prompt(
            "passphrase", hide_input=True, confirmation_prompt=True, err=True
        )
    signer = create(path, secret, name)
    screen.result(
        describe_key(signer.public, public_path(path)),
        *key_lines(signer.public),
        f"wrote {path} (keep it here) and {public_path(path)} (send it to the coordinator)",
    )


def show(
    file: Annotated[Path | None, typer.Argument(help=r"A public key (….pub) \[your own].", show_default=False)] = None,
    key: o.KeyOption = None,
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Show a public key, your own or that in FILE, with its fingerprint, and the keys that the plan pins.

    Example: fedmed keys show
    """
    from fedmed_cli.cli.tables.keys import describe_key, key_lines, pinned_table
    from fedmed_cli.errors import InputError
    from fedmed_cli.records.signatures import fingerprint, public_path, read_public
    from fedmed_cli.trust.keys import default_key_path

    screen, place = common.open()
    pinned = place.read_plan().sites.keys if place.plan_path.exists() else {}
    path = file or public_path(key or default_key_path())
    value: dict[str, Any] = {
        "pinned": {name: {"public": text, "fingerprint": fingerprint(text)} for name, text in pinned.items()}
    }
    lines: list[Table | str] = []
    if path.exists() or file is not None or key is not None:
        public = read_public(path)
        value |= describe_key(public, path)
        lines += key_lines(public)
    elif not pinned:
        raise InputError(f"{path}: no such file", hint="make a key with 'fedmed keys new'")
    screen.result(value, *lines, *([pinned_table(pinned)] if pinned else []))
