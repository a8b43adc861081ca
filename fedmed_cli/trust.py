"""Whose signature the plan wants: the keys it pins for its sites and its coordinator."""

from __future__ import annotations

from collections.abc import Callable

from fedmed_cli.adapters import AGGREGATE_NAME, CONTRIBUTION_NAME, AdapterFolder
from fedmed_cli.errors import TrustError
from fedmed_cli.records import COORDINATOR, Plan

Say = Callable[[str], None]


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
    who = COORDINATOR if name == COORDINATOR else f"site {name}"
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
    from fedmed_cli.signatures import fingerprint

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
