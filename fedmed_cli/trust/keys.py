"""The keys on this machine, which sign, and those that a plan pins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fedmed_cli.adapters.signers import SignaturePolicy, check_signature, name_party
from fedmed_cli.errors import ConflictError, InputError, TrustError
from fedmed_cli.records.codec import Record, read_file
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import sha256_bytes, short
from fedmed_cli.records.measures import COORDINATOR
from fedmed_cli.records.plan import MAX_PLAN_BYTES, Plan
from fedmed_cli.records.scores import Scores
from fedmed_cli.workspace import PLAN_NAME, Workspace
from fedmed_cli.workspace.durable import write_file

if TYPE_CHECKING:  # loading cryptography takes longer than reading an unsigned folder
    from fedmed_cli.records.comparison import Comparison
    from fedmed_cli.records.signatures import Signer

R = TypeVar("R", "Comparison", Scores, Contribution)


def config_folder() -> Path:
    """The user's configuration, for what belongs to a person or a hospital and never into a workspace."""
    from platformdirs import user_config_path

    given = os.environ.get("FEDMED_CONFIG")
    return Path(given) if given else user_config_path("fedmed", appauthor=False)


def default_key_path() -> Path:
    """Where a person's key lies unless another file is named."""
    return config_folder() / "id_ed25519"


def sign_record(name: str, files: Mapping[str, bytes], signer: Signer | None) -> dict[str, bytes]:
    """The signature file of the record `name` among `files`; empty without a key."""
    if signer is None:
        return {}
    from fedmed_cli.records.signatures import sign

    return {f"{name}.sig": sign(signer, files[name])}


def write_signed(place: Workspace, path: Path, record: Record, signer: Signer | None) -> None:
    """Write a record, and its signature in NAME.sig where there is a key, in place of older ones."""
    files = {path.name: record.to_bytes()}
    files |= sign_record(path.name, files, signer)
    for name in (path.name, f"{path.name}.sig"):
        place.set_aside(path.with_name(name))
    for name, data in files.items():
        write_file(path.with_name(name), data)


def write_plan(place: Workspace, plan: Plan, signer: Signer | None) -> None:
    """Write the plan, signed where it pins a key for the coordinator, and take its keys for those pinned here.

    A file that says the same stays as it is; one whose comments the new one lacks is kept in `.fedmed/replaced/`, which
    is said. TrustError unless `signer` has the coordinator's key. The caller holds the lock.
    """
    old = read_file(place.plan_path, MAX_PLAN_BYTES)
    is_same = Plan.from_bytes(old, str(place.plan_path)) == plan
    files = {PLAN_NAME: old if is_same else plan.to_bytes()}
    if COORDINATOR in plan.sites.keys:
        files |= sign_record(PLAN_NAME, files, signer_for(COORDINATOR, plan, signer))
    _keep_comments(place, old, files[PLAN_NAME])
    for name, data in files.items():
        write_file(place.root / name, data)
    place.remember_pins(plan)


def _keep_comments(place: Workspace, old: bytes, new: bytes) -> None:
    lines = set(new.split(b"\n"))
    if all(line in lines for line in old.split(b"\n") if b"#" in line):
        return
    kept = place.private / "replaced" / f"{PLAN_NAME}-{short(sha256_bytes(old))}"
    place.make_private()
    write_file(kept, old)
    place.say(f"{place.plan_path}: rewritten without its comments; the previous file is kept in {place.relative(kept)}")


def read_site_record(kind: type[R], path: Path, plan: Plan, policy: SignaturePolicy) -> tuple[R, bytes]:
    """A record that a site sent, with the file's bytes; its signature is in NAME.sig beside it.

    InputError where either is not what it should be, TrustError unless it is signed as the plan and the policy ask.
    """
    data = read_file(path, links=False)
    record = kind.from_bytes(data, str(path))
    if record.site is None:
        raise InputError(
            f"{path}: was not measured by a hospital",
            hint="a hospital writes reports/compare-SITE.json with 'fedmed compare --site SITE'",
        )
    signature, signer = path.with_name(f"{path.name}.sig"), None
    if os.path.lexists(signature):
        from fedmed_cli.records.signatures import MAX_SIGNATURE_BYTES, verify

        signer = verify(data, read_file(signature, MAX_SIGNATURE_BYTES, links=False), str(signature))
    check_signature(path, path.name, record.site, signer, plan, policy)
    return record, data


def signer_for(name: str, plan: Plan, signer: Signer | None) -> Signer | None:
    """The key with which to sign as `name`, or None. TrustError where the plan pins another key for it."""
    pinned = plan.sites.keys.get(name)
    if pinned is None or (signer is not None and signer.public == pinned):
        return signer
    from fedmed_cli.records.signatures import fingerprint

    present = f"found {signer.fingerprint}" if signer else "there is no key here"
    raise TrustError(
        f"the plan pins the key {fingerprint(pinned)} for {name_party(name)}, {present}",
        hint="name the key with --key FILE; what another key signs would be refused",
    )


def pin(plan: Plan, name: str, public: str, replace_other: bool) -> Plan:
    """The plan with the key `public` for a site or the coordinator. ConflictError where another is pinned."""
    if name != COORDINATOR and name not in plan.sites.names:
        raise InputError(
            f"the plan has no site {name[:80]!a}",
            hint=f"pin a key for {', '.join(plan.sites.names)} or coordinator",
        )
    known = plan.sites.keys.get(name)
    if known is not None and known != public and not replace_other:
        from fedmed_cli.records.signatures import fingerprint

        raise ConflictError(
            f"the plan pins the key {fingerprint(known)} for {name}, found {fingerprint(public)}",
            hint="if its owner says that the key changed, add --replace",
        )
    try:
        return replace(plan, sites=replace(plan.sites, keys={**plan.sites.keys, name: public}))
    except ValueError as error:
        raise InputError(str(error)) from None
