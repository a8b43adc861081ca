"""Whose signature a record needs: the keys that the plan pins, and what is asked where it pins none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmed_cli.adapters.folder import AdapterFolder
from fedmed_cli.errors import TrustError
from fedmed_cli.events import Say
from fedmed_cli.records.measures import COORDINATOR
from fedmed_cli.records.plan import Plan


@dataclass(frozen=True)
class SignaturePolicy:
    """What is asked of a record whose sender has no key in the plan. Where the plan pins one, nothing else will do.

    With `required` it is refused; else `say` is told that nothing proves where the record comes from.
    """

    required: bool = False
    say: Say = lambda message: None


def name_party(sender: str) -> str:
    """A site or the coordinator, as sentences name it."""
    return "the coordinator" if sender == COORDINATOR else f"site {sender}"


def check_signer(folder: AdapterFolder, plan: Plan, policy: SignaturePolicy) -> None:
    """TrustError (exit code 7) unless a folder that passed the gate is signed as the plan and the policy ask.

    Where the plan pins the sender's key, no signature is as wrong as another key's, for anyone can take one away. A
    folder without a record has no sender: a plan that pins keys does not take it, for anyone can take a record away.
    """
    if folder.sender is not None:
        check_signature(folder.path, f"{folder.record_name}", folder.sender, folder.signer, plan, policy)
    elif folder.record is not None and plan.sites.keys:
        raise TrustError(
            f"{folder.path}: is a private adapter, which nobody signs, and the plan pins keys",
            hint="in the hospital's own workspace name it: personal-SITE",
        )
    elif plan.sites.keys or policy.required:
        raise TrustError(
            f"{folder.path}: has no record, so nothing proves who made it",
            hint="use the folder as it was sent, with its record and signature",
        )


def check_signature(
    path: Path, record: str, sender: str, signer: str | None, plan: Plan, policy: SignaturePolicy
) -> None:
    """TrustError (exit code 7) unless `signer` is whose key the plan and the policy ask of `sender`.

    `path` is what was sent, and `record` the name of the file in it that is signed.
    """
    who = name_party(sender)
    pinned = plan.sites.keys.get(sender)
    if signer is None:
        if pinned is not None:
            raise TrustError(
                f"{path}: is not signed, but the plan pins a key for {who}: {record}.sig is missing",
                hint=f"ask {who} for its signature; 'ssh-keygen -Y sign -n fedmed -f KEY {record}' "
                "signs one that was made before the key was pinned",
            )
        if policy.required:
            raise TrustError(
                f"{path}: is not signed, and --require-signatures is given",
                hint=f"ask {who} for a key ('fedmed keys new') and trust it: fedmed keys trust {sender} KEY.pub",
            )
        policy.say(f"{path}: is not signed: nothing proves that it comes from {who}")
        return
    from fedmed_cli.records.signatures import fingerprint  # loads cryptography, for which unsigned work need not wait

    if pinned is None:
        if policy.required:
            raise TrustError(
                f"{path}: is signed with {fingerprint(signer)}, but the plan pins no key for {who}",
                hint=f"compare the fingerprint with {who} and trust it: fedmed keys trust {sender} KEY.pub",
            )
        policy.say(
            f"{path}: is signed with {fingerprint(signer)}, which the plan does not know: anyone could have made it"
        )
    elif signer != pinned:
        raise TrustError(
            f"{path}: the plan expects {who}'s key {fingerprint(pinned)}, found a signature with {fingerprint(signer)}",
            hint=f"compare fingerprints with {who} by telephone; a new key needs 'fedmed keys trust {sender} KEY.pub'",
        )
