"""`fedmed keys`: the keys that adapters, comparisons and scores are signed with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedmed_cli.cli import options as o

if TYPE_CHECKING:
    from fedmed_cli.cli.screen import Screen
    from fedmed_cli.records.plan import Plan
    from fedmed_cli.records.signatures import Signer
    from fedmed_cli.reporting.parts import Table
    from fedmed_cli.workspace import Workspace


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
        _describe_key(signer.public, public_path(path)),
        *_key_lines(signer.public),
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
    from fedmed_cli.errors import InputError
    from fedmed_cli.records.codec import read_file
    from fedmed_cli.records.signatures import (
        MAX_KEY_BYTES,
        fingerprint,
        fingerprint_digits,
        parse_public,
        public_path,
    )
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
    key: o.KeyOption = None,
    common: o.CommonOptions = o.CommonOptions(),
) -> None:
    """Pin a public key in the plan: from then on files from NAME are accepted only if that key signed them.

    First compare the fingerprint with its owner by telephone; afterwards send the changed federation.toml to all
    sites. Once the coordinator's key is pinned, only the coordinator can change the plan (federation.toml.sig).

    Example: fedmed keys trust B hospital-b.pub
    """
    from fedmed_cli.records.codec import read_file
    from fedmed_cli.records.signatures import ALGORITHM, MAX_KEY_BYTES, parse_public
    from fedmed_cli.trust.keys import pin, write_plan

    screen, place = common.open()
    if public_key.startswith(ALGORITHM + " "):
        public = parse_public(public_key, "PUBLIC_KEY")
    else:
        public = parse_public(
            read_file(Path(public_key), MAX_KEY_BYTES).decode("utf-8", "replace"), str(Path(public_key))
        )
    place.read_plan()  # a folder without a plan gets no lock file
    with place.lock():
        before = place.read_plan()
        plan = pin(before, name, public, replace)
        if plan != before:
            write_plan(place, plan, _plan_signer(screen, plan, key, place))
    screen.result(
        _describe_key(public, place.plan_path) | {"name": name},
        *_key_lines(public),
        f"pinned for {name} in {place.plan_path}: compare the fingerprint with its owner, {_send(plan)}",
    )


def sign(key: o.KeyOption = None, common: o.CommonOptions = o.CommonOptions()) -> None:
    """Sign the plan as its coordinator: from then on hospitals accept only plans that your key signed.

    It pins your key as the coordinator's if the plan pins none yet. 'fedmed keys trust' signs again by itself; use
    this command after editing federation.toml by hand.

    Example: fedmed keys sign
    """
    from fedmed_cli.cli.signing import load_signer
    from fedmed_cli.errors import InputError
    from fedmed_cli.records.digests import short
    from fedmed_cli.records.measures import COORDINATOR
    from fedmed_cli.records.plan import Plan
    from fedmed_cli.trust.keys import pin, write_plan

    screen, place = common.open()
    Plan.read(place.plan_path)  # a folder without a plan gets no lock file
    signer = load_signer(screen, key, place.root)
    if signer is None:
        raise InputError("there is no key to sign the plan with", hint="make one with 'fedmed keys new'")
    with place.lock():
        plan, before = Plan.read(place.plan_path), place.known_pins()
        if COORDINATOR not in plan.sites.keys:
            plan = pin(plan, COORDINATOR, signer.public, replace_other=False)
        write_plan(place, plan, signer)
    changed, shown = _changes(before, plan)
    screen.result(
        {"plan": plan.digest, "fingerprint": signer.fingerprint, "changed": changed},
        *shown,
        f"signed {place.plan_path} (plan {short(plan.digest)}): {_send(plan)}",
    )


def accept(common: o.CommonOptions = o.CommonOptions()) -> None:
    """Accept a plan that changes or drops keys which were pinned here before.

    Every command refuses such a plan until then. Compare the fingerprints with their owners by telephone first.

    Example: fedmed keys accept
    """
    screen, place = common.open()
    place.read_sent_plan()  # a folder without a plan gets no lock file
    with place.lock():
        plan, before = place.read_sent_plan(), place.known_pins()
        place.remember_pins(plan)
    changed, shown = _changes(before, plan)
    screen.result({"changed": changed}, *shown, f"{len(changed)} keys changed; the plan's keys are pinned here now")


def _changes(before: dict[str, str], plan: Plan) -> tuple[list[str], list[Table]]:
    """Whose keys in the plan are not those pinned before, and a table of them."""
    from fedmed_cli.records.signatures import fingerprint
    from fedmed_cli.reporting.parts import Table

    now = plan.sites.keys
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    rows = [
        [name, *(fingerprint(keys[name]) if name in keys else "none" for keys in (before, now))] for name in changed
    ]
    return changed, [Table("Keys that changed", ("who", "before", "now"), rows, frozenset({1, 2}))] if rows else []


def _plan_signer(screen: Screen, plan: Plan, key: Path | None, place: Workspace) -> Signer | None:
    """The key to sign the plan with; None where it pins none for the coordinator."""
    from fedmed_cli.cli.signing import load_signer
    from fedmed_cli.records.measures import COORDINATOR

    return load_signer(screen, key, place.root) if COORDINATOR in plan.sites.keys else None


def _send(plan: Plan) -> str:
    from fedmed_cli.records.measures import COORDINATOR
    from fedmed_cli.workspace import PLAN_NAME, PLAN_SIGNATURE_NAME

    files = [PLAN_NAME] + [PLAN_SIGNATURE_NAME] * (COORDINATOR in plan.sites.keys)
    return f"then send {' and '.join(files)} to all sites"


def _describe_key(public: str, path: Path) -> dict[str, str]:
    from fedmed_cli.records.signatures import fingerprint, fingerprint_digits

    return {
        "public": public,
        "fingerprint": fingerprint(public),
        "spoken": fingerprint_digits(public),
        "path": str(path),
    }


def _key_lines(public: str) -> list[Any]:
    from fedmed_cli.records.signatures import fingerprint, fingerprint_digits

    return [public, f"fingerprint    {fingerprint(public)}", f"to read aloud  {fingerprint_digits(public)}"]
