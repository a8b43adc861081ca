"""Whose signature the plan wants: the keys it pins for its sites and its coordinator."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedmed_cli.adapters.gate import AGGREGATE_NAME, CONTRIBUTION_NAME, AdapterFolder
from fedmed_cli.errors import ConflictError, InputError, TrustError
from fedmed_cli.events import Say
from fedmed_cli.records.measures import COORDINATOR
from fedmed_cli.records.plan import Plan

if TYPE_CHECKING:  # loading cryptography takes longer than reading an unsigned folder
    from fedmed_cli.adapters.signatures import Signer


def default_key_path() -> Path:
    """Where a person's key lies unless another file is named: in the user's configuration, never in a workspace."""
    from platformdirs import user_config_path

    given = os.environ.get("FEDMED_CONFIG")
    return (Path(given) if given else user_config_path("fedmed", appauthor=False)) / "id_ed25519"


def signed(name: str, files: Mapping[str, bytes], signer: Signer | None) -> dict[str, bytes]:
    """The signature file of the record `name` among `files`; empty without a key."""
    if signer is None:
        return {}
    from fedmed_cli.adapters.signatures import sign

    return {f"{name}.sig": sign(signer, files[name])}


def signer_for(name: str, plan: Plan, signer: Signer | None) -> Signer | None:
    """The key with which to sign as `name`, or None. TrustError where the plan pins another key for it."""
    pinned = plan.sites.keys.get(name)
    if pinned is None or (signer is not None and signer.public == pinned):
        return signer
    from fedmed_cli.adapters.signatures import fingerprint

    who = "the coordinator" if name == COORDINATOR else f"site {name}"
    found = f"found {signer.fingerprint}" if signer else "there is no key here"
    raise TrustError(
        f"the plan pins the key {fingerprint(pinned)} for {who}, {found}",
        hint="name the key with --key FILE; what another key signs would be refused",
    )


def party(folder: AdapterFolder) -> str:
    """Who should have signed a folder: its site, or the coordinator."""
    return folder.contribution.site if folder.contribution else COORDINATOR


def check_signer(folder: AdapterFolder, plan: Plan, require: bool, say: Say = lambda message: None) -> str | None:
    """Check who signed a folder that came in, and return the key's fingerprint where the plan pins it.

    Where the plan pins a key, nothing else will do: TrustError (exit code 7) for another key, and for no
    signature, which anyone could have taken away. Where it pins none, `say` is told so, or with `require` it
    is a TrustError too.
    """
    name = party(folder)
    who = "the coordinator" if name == COORDINATOR else f"site {name}"
    pinned = plan.sites.keys.get(name)
    record = CONTRIBUTION_NAME if folder.contribution else AGGREGATE_NAME
    if folder.signer is None:
        if pinned is not None:
            raise TrustError(
                f"{folder.path}: is not signed, but the plan pins a key for {who}: {record}.sig is missing",
                hint=f"ask {who} to send the folder again, with its signature",
            )
        if require:
            raise TrustError(
                f"{folder.path}: is not signed, and --require-signatures is given",
                hint=f"ask {who} for a key ('fedmed keys new') and trust it: fedmed keys trust {name} KEY.pub",
            )
        say(f"{folder.path}: is not signed: nothing proves that it comes from {who}")
        return None
    from fedmed_cli.adapters.signatures import fingerprint

    found = fingerprint(folder.signer)
    if pinned is None:
        if require:
            raise TrustError(
                f"{folder.path}: is signed with {found}, but the plan pins no key for {who}",
                hint=f"compare the fingerprint with {who} and trust it: fedmed keys trust {name} KEY.pub",
            )
        say(f"{folder.path}: is signed with {found}, which the plan does not know: anyone could have made it")
        return None
    if folder.signer != pinned:
        raise TrustError(
            f"{folder.path}: the plan expects {who}'s key {fingerprint(pinned)}, found a signature with {found}",
            hint=f"compare fingerprints with {who} by telephone; a new key needs 'fedmed keys trust {name} KEY.pub'",
        )
    return found


def pin(plan: Plan, name: str, public: str, replace_other: bool) -> Plan:
    """The plan with the key `public` for a site or the coordinator. ConflictError where another is pinned."""
    if name != COORDINATOR and name not in plan.sites.names:
        raise InputError(
            f"the plan has no site {name[:80]!a}",
            hint=f"pin a key for {', '.join(plan.sites.names)} or coordinator",
        )
    known = plan.sites.keys.get(name)
    if known is not None and known != public and not replace_other:
        from fedmed_cli.adapters.signatures import fingerprint

        raise ConflictError(
            f"the plan pins the key {fingerprint(known)} for {name}, found {fingerprint(public)}",
            hint="if its owner says that the key changed, add --replace",
        )
    try:
        return replace(plan, sites=replace(plan.sites, keys={**plan.sites.keys, name: public}))
    except ValueError as error:
        raise InputError(str(error)) from None
