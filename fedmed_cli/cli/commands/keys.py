"""`fedmed keys`: the keys that adapters, comparisons and scores are signed with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedmed_cli.cli import options as o


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
    """Make a private key for this hospital or coordinator, readable only by its owner.

    Example: fedmed keys new --name B --passphrase
    """
    import os

    from fedmed_cli.adapters.signatures import create, public_path, refuse_inside
    from fedmed_cli.errors import UsageError
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
        _describe_key(signer.public, public_path(path)),
        *_key_lines(signer.public),
        f"wrote {path} (keep it here) and {public_path(path)} (send it to the coordinator)",
    )


def show(
    file: Annotated[Path | None, typer.Argument(help=r"A public key (….pub) \[your own].", show_default=False)] = None,
    key: o.KeyOption = None,
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Show a public key, your own or a FILE, with its fingerprint, and the keys that the plan here pins.

    Example: fedmed keys show
    """
    from fedmed_cli.adapters.signatures import (
        MAX_KEY_BYTES,
        fingerprint,
        fingerprint_digits,
        parse_public,
        public_path,
    )
    from fedmed_cli.errors import InputError
    from fedmed_cli.records.codec import read_file
    from fedmed_cli.reporting.parts import Table
    from fedmed_cli.trust.keys import default_key_path

    screen, place = common.open()
    pinned = place.read_plan().sites.keys if place.plan_path.exists() else {}
    path = file or public_path(key or default_key_path())
    value: dict[str, Any] = {
        "pinned": {name: {"public": text, "fingerprint": fingerprint(text)} for name, text in pinned.items()}
    }
    lines: list[Table | str] = []
    if path.exists() or file is not None or key is not None:
        public = parse_public(read_file(path, MAX_KEY_BYTES).decode("utf-8", "replace"), str(path))
        value |= _describe_key(public, path)
        lines += _key_lines(public)
    elif not pinned:
        raise InputError(f"{path}: no such file", hint="make a key with 'fedmed keys new'")
    if pinned:
        rows = [[name, fingerprint(text), fingerprint_digits(text)] for name, text in pinned.items()]
        lines.append(
            Table("Keys that the plan pins", ("who", "fingerprint", "to read aloud"), rows, frozenset({0, 1, 2}))
        )
    screen.result(value, *lines)


def trust(
    name: Annotated[str, typer.Argument(help="A site of the plan, or coordinator.")],
    public_key: Annotated[str, typer.Argument(help="Its public key: a file (….pub), or the line itself.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace a key that is already pinned.")] = False,
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Pin a public key in the plan: from then on nothing from NAME is taken unless that key signed it.

    Compare the fingerprint with its owner by telephone first. Send the changed federation.toml to all sites.

    Example: fedmed keys trust B hospital-b.pub
    """
    from fedmed_cli.adapters.signatures import ALGORITHM, MAX_KEY_BYTES, parse_public
    from fedmed_cli.records.codec import read_file
    from fedmed_cli.trust.keys import pin
    from fedmed_cli.workspace.durable import write_file

    screen, place = common.open()
    if public_key.startswith(ALGORITHM + " "):
        public = parse_public(public_key, "PUBLIC_KEY")
    else:
        public = parse_public(
            read_file(Path(public_key), MAX_KEY_BYTES).decode("utf-8", "replace"), str(Path(public_key))
        )
    place.read_plan()  # a folder without a plan gets no lock file
    with place.lock():
        plan = pin(place.read_plan(), name, public, replace)
        write_file(place.plan_path, plan.to_bytes())
        place.remember_pins(plan)
    screen.result(
        _describe_key(public, place.plan_path) | {"name": name},
        *_key_lines(public),
        f"pinned for {name} in {place.plan_path}: read the fingerprint to its owner, then send this file to all sites",
    )


def accept(common: o.CommonOptions = o.CommonOptions()) -> None:
    """Take the keys of a plan that changed or dropped some which were pinned here before.

    Every command refuses such a plan until then. Compare the fingerprints with their owners by telephone first.

    Example: fedmed keys accept
    """
    from fedmed_cli.adapters.signatures import fingerprint
    from fedmed_cli.records.plan import Plan
    from fedmed_cli.reporting.parts import Table

    screen, place = common.open()
    plan = Plan.read(place.plan_path)
    with place.lock():
        before, now = place.known_pins(), plan.sites.keys
        place.remember_pins(plan)
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    rows = [
        [name, *(fingerprint(keys[name]) if name in keys else "none" for keys in (before, now))] for name in changed
    ]
    shown = [Table("Keys that changed", ("who", "before", "now"), rows, frozenset({1, 2}))] if rows else []
    screen.result({"changed": changed}, *shown, f"{len(changed)} keys changed; the plan's keys are pinned here now")


def _describe_key(public: str, path: Path) -> dict[str, str]:
    from fedmed_cli.adapters.signatures import fingerprint, fingerprint_digits

    return {
        "public": public,
        "fingerprint": fingerprint(public),
        "spoken": fingerprint_digits(public),
        "path": str(path),
    }


def _key_lines(public: str) -> list[Any]:
    from fedmed_cli.adapters.signatures import fingerprint, fingerprint_digits

    return [public, f"fingerprint    {fingerprint(public)}", f"to read aloud  {fingerprint_digits(public)}"]
