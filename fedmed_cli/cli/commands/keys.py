"""`fedmed keys`: the keys that contributions and global adapters are signed with."""

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
    workspace: o.WorkspaceOption = Path("."),
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Make a private key for this hospital or coordinator, readable by its owner alone.

    Example: fedmed keys new --name B --passphrase
    """
    import os

    from fedmed_cli.adapters.signatures import create, public_path, refuse_inside
    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.errors import UsageError
    from fedmed_cli.trust.keys import default_key_path

    screen = Screen(as_json, quiet, verbose)
    path = key or default_key_path()
    refuse_inside(path, workspace)
    if not name.isprintable() or len(name) > 100:
        raise UsageError("--name: expected at most 100 printable characters")
    secret = None
    if passphrase:
        secret = os.environ.get("FEDMED_KEY_PASSPHRASE") or typer.prompt(
            "passphrase", hide_input=True, confirmation_prompt=True, err=True
        )
    signer = create(path, secret, name)
    screen.result(
        _facts(signer.public, public_path(path)),
        *_lines(signer.public),
        f"wrote {path} (keep it here) and {public_path(path)} (send it to the coordinator)",
    )


def show(
    file: Annotated[Path | None, typer.Argument(help=r"A public key (….pub) \[your own].", show_default=False)] = None,
    key: o.KeyOption = None,
    workspace: o.WorkspaceOption = Path("."),
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Show a public key, your own or a FILE, with its fingerprint, and the keys that the plan here pins.

    Example: fedmed keys show
    """
    from fedmed_cli.adapters.signatures import MAX_KEY_BYTES, fingerprint, parse_public, public_path, spoken
    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.errors import InputError
    from fedmed_cli.records.codec import read_file
    from fedmed_cli.report.parts import Table
    from fedmed_cli.trust.keys import default_key_path
    from fedmed_cli.workspace import Workspace

    screen = Screen(as_json, quiet, verbose)
    place = Workspace(workspace, screen.say)
    pinned = place.read_plan().sites.keys if place.plan_path.exists() else {}
    path = file or public_path(key or default_key_path())
    value: dict[str, Any] = {
        "pinned": {name: {"public": text, "fingerprint": fingerprint(text)} for name, text in pinned.items()}
    }
    shown: list[Table | str] = []
    if path.exists() or file is not None or key is not None:
        public = parse_public(read_file(path, MAX_KEY_BYTES).decode("utf-8", "replace"), str(path))
        value |= _facts(public, path)
        shown += _lines(public)
    elif not pinned:
        raise InputError(f"{path}: no such file", hint="make a key with 'fedmed keys new'")
    if pinned:
        rows = [[name, fingerprint(text), spoken(text)] for name, text in pinned.items()]
        shown.append(
            Table("Keys that the plan pins", ("who", "fingerprint", "to read aloud"), rows, frozenset({0, 1, 2}))
        )
    screen.result(value, *shown)


def trust(
    name: Annotated[str, typer.Argument(help="A site of the plan, or coordinator.")],
    public_key: Annotated[str, typer.Argument(help="Its public key: a file (….pub), or the line itself.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace a key that is already pinned.")] = False,
    workspace: o.WorkspaceOption = Path("."),
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Pin a public key in the plan: from then on nothing from NAME is taken unless that key signed it.

    Compare the fingerprint with its owner by telephone first. Send the changed federation.toml to all sites.

    Example: fedmed keys trust B hospital-b.pub
    """
    from fedmed_cli.adapters.signatures import ALGORITHM, MAX_KEY_BYTES, parse_public
    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.durable import write_file
    from fedmed_cli.records.codec import read_file
    from fedmed_cli.trust.keys import pin
    from fedmed_cli.workspace import Workspace

    screen = Screen(as_json, quiet, verbose)
    place = Workspace(workspace, screen.say)
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
    screen.result(
        _facts(public, place.plan_path) | {"name": name},
        *_lines(public),
        f"pinned for {name} in {place.plan_path}: read the fingerprint to its owner, then send this file to all sites",
    )


def _facts(public: str, path: Path) -> dict[str, str]:
    from fedmed_cli.adapters.signatures import fingerprint, spoken

    return {"public": public, "fingerprint": fingerprint(public), "spoken": spoken(public), "path": str(path)}


def _lines(public: str) -> list[Any]:
    from fedmed_cli.adapters.signatures import fingerprint, spoken

    return [public, f"fingerprint    {fingerprint(public)}", f"to read aloud  {spoken(public)}"]
