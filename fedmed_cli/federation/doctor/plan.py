"""Checks of what the federation agreed on: the plan, keys, base model, versions, and what lies in the workspace."""

from __future__ import annotations

import contextlib
import importlib.metadata
import shlex
from collections.abc import Iterator
from pathlib import Path

from fedmed_cli import __version__
from fedmed_cli.adapters.folder import RECORDS
from fedmed_cli.errors import FedmedError
from fedmed_cli.federation.doctor.findings import Examined, Seen
from fedmed_cli.federation.plan import check_site
from fedmed_cli.federation.status import read_status
from fedmed_cli.models import bases
from fedmed_cli.records.codec import parse_json, read_file
from fedmed_cli.records.digests import short
from fedmed_cli.records.measures import COORDINATOR, Run
from fedmed_cli.text import first_few, number_of_bytes
from fedmed_cli.trust.keys import default_key_path
from fedmed_cli.workspace import PLAN_NAME, Workspace

LIBRARIES = ("torch", "transformers", "peft")


def check_plan(examined: Examined) -> Seen:
    """Read the plan; without one only the machine is examined."""
    workspace = examined.workspace
    if not workspace.plan_path.exists() and examined.request.site is None:
        remedy = f"copy the coordinator's {PLAN_NAME} here, or make a plan with 'fedmed init'"
        return "WARN", f"there is no {PLAN_NAME} here: only the machine was examined", remedy
    plan = workspace.read_plan(remember=False)
    examined.plan = plan
    sites = f"{len(plan.sites.names)} sites, at least {plan.sites.min_sites} per round"
    return (
        "PASS",
        f"{plan.base.name}, {plan.training.max_steps} steps per round, {sites}, plan {short(plan.digest)}",
        None,
    )


def check_site_name(examined: Examined) -> Seen:
    site = examined.request.site
    assert site is not None
    check_site(examined.agreed, site)
    examined.site = site
    return "PASS", f"the plan has site {site}", None


def check_pinned_keys(examined: Examined) -> Seen:
    """Whether the plan pins a key for everybody."""
    sites = examined.agreed.sites
    without = [name for name in (*sites.names, COORDINATOR) if name not in sites.keys]
    if not without:
        return "PASS", f"the plan pins the keys of all {len(sites.names)} sites and of the coordinator", None
    remedy = f"ask them for their public keys, and pin each: fedmed keys trust {without[0]} KEY.pub"
    return "WARN", f"the plan pins no key for {', '.join(without)}: nothing proves that files come from them", remedy


def check_own_key(examined: Examined) -> Seen:
    """The key on this machine: only its user can read it, and it is the one that the plan pins."""
    from fedmed_cli.records import signatures

    keys, who = examined.agreed.sites.keys, examined.site
    if examined.request.site is None:
        who = COORDINATOR
    name = "the coordinator" if who == COORDINATOR else f"site {who}"
    path = examined.request.key or default_key_path()
    if not path.exists():
        remedy = "make one with 'fedmed keys new', and have its public half pinned; or name it with --key"
        return (
            "FAIL" if who in keys else "WARN",
            f"{path}: there is no key, so nothing that leaves here is signed",
            remedy,
        )
    signatures.refuse_inside(path, examined.workspace.root)
    data = read_file(path, signatures.MAX_KEY_BYTES)
    signatures.check_mode(path)
    if signatures.is_encrypted(data):
        private, path = path, signatures.public_path(path)
        if not path.exists():
            command = shlex.join(["ssh-keygen", "-y", "-f", str(private)])
            remedy = f"make it of the private key: {command} > {shlex.quote(str(path))}"
            return "FAIL", f"{path}: the public half of a key with a passphrase is missing", remedy
        public = signatures.read_public(path)
    else:
        public = signatures.load(path, None).public
    whose = [name for name, key in keys.items() if key == public]
    seen = f"{path}: {signatures.fingerprint(public)}"
    if whose and (who is None or whose == [who]):
        return "PASS", f"{seen}, pinned for {whose[0]}", None
    if whose:
        return "FAIL", f"{seen}, which the plan pins for {whose[0]}", f"name the key of {name} with --key FILE"
    if who in keys:
        expected = signatures.fingerprint(keys[who])
        remedy = f"name the right key with --key FILE; a new one needs 'fedmed keys trust {who} KEY.pub --replace'"
        return "FAIL", f"{seen}, but the plan pins {expected} for {name}", remedy
    remedy = f"send the coordinator its public half: fedmed keys trust {examined.site or 'NAME'} KEY.pub"
    return "WARN", f"{seen}, which the plan does not pin", remedy


def check_adapters(examined: Examined) -> Seen:
    """What lies in adapters/ and rounds/, as `status` sees it."""
    status = read_status(examined.workspace)
    if status.refused:
        first = status.refused[0]
        more = f" ({len(status.refused)} refusals in all)" if len(status.refused) > 1 else ""
        return "FAIL", first.reason + more, first.hint or "'fedmed status' says what is next"
    states = [site.state for site in status.sites.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    if status.notes:
        return "WARN", first_few(status.notes, "; "), "'fedmed status' says what is next"
    return "PASS", f"round {status.round}: {counts}", None


def list_runs(workspace: Workspace) -> Iterator[tuple[Path, str, Run]]:
    """The readable records in the mailbox and of the newest round: path, the fedmed that wrote it, and its run."""
    newest = workspace.round(workspace.newest_round())
    for folder in (workspace.adapters, newest):
        for path in sorted(folder.glob("[!.]*/*.json")):
            if path.name not in RECORDS:
                continue
            with contextlib.suppress(FedmedError):  # check_adapters says what is wrong with it
                data = read_file(path)
                run = RECORDS[path.name].from_bytes(data, str(path)).run
                yield path, parse_json(data, str(path))["fedmed_version"], run


def check_versions(examined: Examined) -> Seen:
    """The libraries here against those that contributions name: of another minor version, losses need not be alike."""
    here = {"fedmed": __version__} | {name: importlib.metadata.version(name) for name in LIBRARIES}
    others: dict[str, list[str]] = {}
    for path, writer, run in list_runs(examined.workspace):
        theirs = {"fedmed": writer} | {name: str(run[name])[:40] for name in LIBRARIES if run.get(name)}
        for name, version in theirs.items():
            if _minor(version) != _minor(here[name]):
                others.setdefault(f"{name} {version}, here {here[name]}", []).append(path.parent.name)
    if others:
        seen = [f"{first_few(list(dict.fromkeys(names)))} used {what}" for what, names in others.items()]
        return "WARN", first_few(seen, "; "), "install the same versions everywhere: pip install -c constraints.txt ."
    return "PASS", ", ".join(f"{name} {version}" for name, version in here.items()), None


def _minor(version: str) -> list[str]:
    return version.partition("+")[0].split(".")[:2]


def check_base(examined: Examined) -> Seen:
    """The plan's base model on this machine, by its fingerprint."""
    base = examined.agreed.base
    examined.local = bases.find_here(base, examined.request.base, examined.temporary)
    size = number_of_bytes(base.num_bytes)
    if examined.local is None:
        remedy = "run 'fedmed train-local' once with a network, or copy the model here and name its folder with --base"
        return "WARN", f"{base.name} ({size}) is not on this machine, and is fetched first", remedy
    return "PASS", f"{base.name} ({size}) has the plan's fingerprint {short(base.fingerprint)}", None
