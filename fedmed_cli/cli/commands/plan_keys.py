"""`fedmed keys trust`, `sign` and `accept`: the keys that the plan pins, and the plan's own signature."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmed_cli.cli import options as o

if TYPE_CHECKING:
    from fedmed_cli.records.plan import Plan


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
    from fedmed_cli.cli.signing import load_signer
    from fedmed_cli.cli.tables.keys import describe_key, key_lines
    from fedmed_cli.records.measures import COORDINATOR
    from fedmed_cli.records.signatures import ALGORITHM, parse_public, read_public
    from fedmed_cli.trust.keys import pin, write_plan

    screen, place = common.open()
    if public_key.startswith(ALGORITHM + " "):
        public = parse_public(public_key, "PUBLIC_KEY")
    else:
        public = read_public(Path(public_key))
    place.read_plan()  # a folder without a plan gets no lock file
    with place.lock():
        before = place.read_plan()
        plan = pin(before, name, public, replace)
        if plan != before:
            is_signed = COORDINATOR in plan.sites.keys
            write_plan(place, plan, load_signer(screen, key, place.root) if is_signed else None)
    screen.result(
        describe_key(public, place.plan_path) | {"name": name},
        *key_lines(public),
        f"pinned for {name} in {place.plan_path}: compare the fingerprint with its owner, {_send(plan)}",
    )


def sign(key: o.KeyOption = None, common: o.CommonOptions = o.CommonOptions()) -> None:
    """Sign the plan as its coordinator: from then on hospitals accept only plans that your key signed.

    It pins your key as the coordinator's if the plan pins none yet. 'fedmed keys trust' signs again by itself; use
    this command after editing federation.toml by hand.

    Example: fedmed keys sign
    """
    from fedmed_cli.cli.signing import load_signer
    from fedmed_cli.cli.tables.keys import changes
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
    changed, shown = changes(before, plan)
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
    from fedmed_cli.cli.tables.keys import changes

    screen, place = common.open()
    place.read_sent_plan()  # a folder without a plan gets no lock file
    with place.lock():
        plan, before = place.read_sent_plan(), place.known_pins()
        place.remember_pins(plan)
    changed, shown = changes(before, plan)
    screen.result({"changed": changed}, *shown, f"{len(changed)} keys changed; the plan's keys are pinned here now")


def _send(plan: Plan) -> str:
    from fedmed_cli.records.measures import COORDINATOR
    from fedmed_cli.workspace import PLAN_NAME, PLAN_SIGNATURE_NAME

    files = [PLAN_NAME] + [PLAN_SIGNATURE_NAME] * (COORDINATOR in plan.sites.keys)
    return f"then send {' and '.join(files)} to all sites"
