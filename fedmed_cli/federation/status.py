"""Where a federation stands: what is here, awaited or refused, what the last round gained, and what to do next.

It only reads, and loads neither torch nor a model.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from fedmed_cli.adapters import archive, gate
from fedmed_cli.adapters.bundle import BUNDLE_SUFFIX, is_bundle
from fedmed_cli.adapters.folder import AGGREGATE_NAME, ContributionFolder
from fedmed_cli.errors import FedmedError, InputError
from fedmed_cli.federation.plan import check_site
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.codec import Record
from fedmed_cli.records.measures import COORDINATOR
from fedmed_cli.records.metrics import find_measurement, read_metrics
from fedmed_cli.records.plan import Plan
from fedmed_cli.text import first_few
from fedmed_cli.workspace import Workspace

SiteState = Literal["here", "awaited", "late", "refused"]
Signature = Literal["pinned key", "unknown key", "none"]
Measured = Literal["coordinator's other examples", "examples that decided"]

TRAIN_SETS = ("train.jsonl", "train.parquet")


@dataclass(frozen=True)
class SiteStatus:
    """One site in the current round. `path` is what lies in the mailbox under its name, and `round` what that is for.

    A contribution is late where its round was combined without it.
    """

    state: SiteState
    path: str | None = None
    round: int | None = None
    signature: Signature | None = None
    has_data: bool = False
    has_checkpoint: bool = False


@dataclass(frozen=True)
class Refused:
    """What commands will refuse here, with what they will say."""

    path: str
    reason: str
    hint: str | None = None


@dataclass(frozen=True)
class SiteOutcome:
    """What a round's record says of a site. `reported_gain` is the site's own claim, in nats per answer token."""

    verdict: str
    weight: float
    reported_gain: float | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class LastRound:
    """The newest round that is combined. The loss is in nats per answer token; None where nobody measured it here."""

    round: int
    sites: dict[str, SiteOutcome]
    missing: tuple[str, ...]
    excluded: tuple[str, ...]
    loss_before: float | None = None
    loss_after: float | None = None
    measured_on: Measured | None = None


@dataclass(frozen=True)
class NextStep:
    """What somebody should do: a command where there is one, and why."""

    who: str
    command: str | None
    why: str


@dataclass(frozen=True)
class Status(Record):
    """All that `fedmed status` says. `round` is the one that contributions are awaited for."""

    FORMAT: ClassVar[str] = "status"

    round: int
    base: str
    plan: str
    min_sites: int
    sites: dict[str, SiteStatus]
    refused: tuple[Refused, ...]
    last: LastRound | None
    next: tuple[NextStep, ...]
    notes: tuple[str, ...]


@dataclass
class _Reader:
    """A workspace as it is read: what is refused and what is odd is kept, and the reading goes on."""

    workspace: Workspace
    plan: Plan
    refused: list[Refused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)  # notes, which come last: they may be many

    @contextlib.contextmanager
    def refusals(self, path: Path) -> Iterator[None]:
        """Keep the refusal of what lies at `path`."""
        try:
            yield
        except FedmedError as error:
            self.refuse(path, error.message, error.hint)
        except OSError as error:
            self.refuse(path, f"{path}: cannot be read ({error.strerror})")

    def refuse(self, path: Path, reason: str, hint: str | None = None) -> None:
        self.refused.append(Refused(self.workspace.relative(path), reason, hint))

    def is_refused(self, path: Path) -> bool:
        return any(one.path == self.workspace.relative(path) for one in self.refused)

    def command(self, words: str) -> str:
        """A command line for this workspace."""
        root = self.workspace.root
        return f"fedmed {words}" + ("" if root == Path() else f" -C {shlex.quote(str(root))}")


def read_status(workspace: Workspace, site: str | None = None) -> Status:
    """Where the federation in this workspace stands, and what is next: for `site` too where it is given.

    Each contribution passes the gate as it would for `aggregate`. Raises InputError where there is no plan or no such
    site in it, and TrustError where keys that were pinned here before changed.
    """
    plan = workspace.read_plan(remember=False)
    if site is not None:
        check_site(plan, site)
    reader = _Reader(workspace, plan)
    newest, parent, record = workspace.newest_round(), None, None
    with reader.refusals(workspace.global_adapter(newest)):
        if newest:
            record = archive.archived_global(workspace, plan, newest).record
        parent = record.adapter if record else archive.starting_adapter(workspace, plan, 1).digest
    sites = _read_sites(reader, newest + 1, parent)
    last = _read_last_round(reader, record) if record else None
    _note_left_overs(reader)
    if record is not None and record.sites_digest != plan.sites.digest:
        reader.notes.append(f"the plan's list of sites or keys changed since round {newest}")
    if parent is None:
        steps = [_next_without_start(reader, newest)]
    else:
        steps = [_next_for_coordinator(reader, sites, newest)]
        if site is not None:
            steps.insert(0, _next_for_site(reader, site, sites[site], newest))
    return Status(
        round=newest + 1,
        base=plan.base.name,
        plan=plan.digest,
        min_sites=plan.sites.min_sites,
        sites=sites,
        refused=tuple(reader.refused),
        last=last,
        next=tuple(steps),
        notes=(*reader.notes, *reader.plain),
    )


def _read_sites(reader: _Reader, round_number: int, parent: str | None) -> dict[str, SiteStatus]:
    """Each site of the plan, by what lies in the mailbox; `parent` is the digest that the round starts from, if known.

    What is refused there is kept.
    """
    workspace = reader.workspace
    found: dict[str, tuple[Path, SiteState, ContributionFolder]] = {}
    for path in sorted(workspace.adapters.glob("[!.]*")):
        if path.is_file() and not is_bundle(path):
            reader.plain.append(f"{workspace.relative(path)}: is a plain file, and is skipped")
            continue
        with reader.refusals(path):
            folder = gate.read_contribution(path, reader.plan)
            site = folder.record.site
            if site in found:
                raise InputError(f"site {site} appears in two folders: {found[site][0]} and {path}")
            found[site] = path, _judge(reader, folder, round_number, parent), folder
            if folder.record.sites != reader.plan.sites.digest:
                where = workspace.relative(path)
                reader.notes.append(f"{where}: site {site} trained under another list of sites or pinned keys")
    return {name: _site_status(reader, name, found.get(name)) for name in reader.plan.sites.names}


def _judge(reader: _Reader, folder: ContributionFolder, round_number: int, parent: str | None) -> SiteState:
    """Whether a contribution that passed the gate is to this round; TrustError where it never can be."""
    record = folder.record
    if record.round < round_number:
        path = reader.workspace.global_adapter(record.round) / AGGREGATE_NAME
        if not path.exists():
            return "awaited"
        decision = Aggregate.read(path).sites.get(record.site)
        return "awaited" if decision and decision.contribution == folder.record_digest else "late"
    if parent is not None:
        gate.check_lineage(folder.path, record, round_number, parent)
    return "here"


def _site_status(reader: _Reader, name: str, found: tuple[Path, SiteState, ContributionFolder] | None) -> SiteStatus:
    workspace, keys = reader.workspace, reader.plan.sites.keys
    has_data = any((workspace.site_data(name) / file).exists() for file in TRAIN_SETS)
    has_checkpoint = (workspace.private / "checkpoints" / f"{name}.npz").exists()
    if found is None:
        paths = [workspace.contribution(name), workspace.adapters / f"{name}{BUNDLE_SUFFIX}"]
        bad = next((path for path in paths if reader.is_refused(path)), None)
        if bad is None:
            return SiteStatus("awaited", has_data=has_data, has_checkpoint=has_checkpoint)
        where = workspace.relative(bad)
        return SiteStatus("refused", where, has_data=has_data, has_checkpoint=has_checkpoint)
    path, state, folder = found
    signature: Signature = "none"
    if folder.signer is not None:
        signature = "pinned key" if folder.signer == keys.get(name) else "unknown key"
    return SiteStatus(state, workspace.relative(path), folder.record.round, signature, has_data, has_checkpoint)


def _read_last_round(reader: _Reader, record: Aggregate) -> LastRound:
    """What the newest round came to, by its record and by what was measured of it here.

    What was measured on the coordinator's other examples goes before the numbers that the round was decided by.
    """
    outcomes = {
        name: SiteOutcome(one.verdict, one.weight, one.evidence.reported_gain, one.reasons)
        for name, one in record.sites.items()
    }
    last = LastRound(record.round, outcomes, record.missing, record.excluded)
    events: list[dict[str, Any]] = []
    try:
        events, _ = read_metrics(reader.workspace.root / "metrics.jsonl")
    except InputError as error:
        reader.notes.append(error.message)
    if (event := find_measurement(events, record.round, record.adapter)) is not None:
        values = (event.get(f"coordinator_{when}") for when in ("before", "after"))
        before, after = (value if isinstance(value, int | float) else None for value in values)
        return replace(last, loss_before=before, loss_after=after, measured_on="coordinator's other examples")
    if (one := record.examination) is not None:
        before, after = one.parent.mean, one.result.mean
        return replace(last, loss_before=before, loss_after=after, measured_on="examples that decided")
    return last


def _note_left_overs(reader: _Reader) -> None:
    """Note a command that works here now, or was interrupted."""
    workspace = reader.workspace
    if (process := workspace.lock_holder()) is not None:
        reader.notes.append(f"process {process} works here, or was killed while it did")
    for orphan, target in workspace.list_left_overs():
        end = "puts it in place" if target is not None and not target.exists() else "removes it"
        reader.notes.append(
            f"{workspace.relative(orphan)}: not finished; if nothing works here, the next command {end}"
        )


def _next_without_start(reader: _Reader, newest: int) -> NextStep:
    """What is next where the adapter that the round starts from is refused."""
    where = reader.workspace.relative(reader.workspace.global_adapter(newest))
    return NextStep("everybody", reader.command("verify"), f"{where} is refused, and no round can start from it")


def _next_for_site(reader: _Reader, name: str, site: SiteStatus, newest: int) -> NextStep:
    """What a hospital does next in a workspace that holds a plan and a valid start."""
    round_number, who = newest + 1, f"site {name}"
    train = f"train-local --site {name}"
    if site.state == "here" and site.path is not None:
        then = reader.command(f"{train} --global PATH")
        why = f"then, with the global adapter of round {round_number}: {then}"
        if site.path.endswith(BUNDLE_SUFFIX):
            return NextStep(who, None, f"send {site.path}; {why}")
        packs = reader.command(f"pack {shlex.quote(str(reader.workspace.root / site.path))}")
        return NextStep(who, packs, f"send {site.path}, or this one file of it; {why}")
    command = reader.command(train + ("" if site.has_data else " --data FILE"))
    why = f"its contribution to round {round_number} is {'refused: train again' if site.state == 'refused' else 'due'}"
    if site.has_checkpoint:
        why += "; resumes from the checkpoint of a training that was interrupted"
    return NextStep(who, command, why)


def _next_for_coordinator(reader: _Reader, sites: Mapping[str, SiteStatus], newest: int) -> NextStep:
    """What the coordinator does next, or, where all sites' data are here, whoever runs the pilot."""
    places = reader.workspace
    here = [name for name, site in sites.items() if site.state == "here"]
    due = [name for name in sites if name not in here]
    refused = [name for name in due if sites[name].state == "refused"]
    of_sites = {site.path for site in sites.values()}
    strange = [one.path for one in reader.refused if one.path not in of_sites]
    if strange:
        return NextStep(COORDINATOR, None, f"move {first_few(strange)} elsewhere: 'fedmed aggregate' would refuse it")
    if all(site.has_data for site in sites.values()) and (refused or not reader.plan.sites.keys):
        again = reader.command(f"train-local --site {refused[0]}") if refused else reader.command("round")
        why = f"the contribution of {refused[0]} is refused: train again" if refused else "all sites' data are here"
        return NextStep(COORDINATOR, again, why)
    if len(here) < reader.plan.sites.min_sites:
        sent = places.relative(places.global_adapter(newest) if newest else places.plan_path)
        lead = "" if here else f"send {sent} to the sites, and "
        least = f"{len(here)} of at least {reader.plan.sites.min_sites} are here"
        return NextStep(COORDINATOR, None, f"{lead}wait for {', '.join(due)} in adapters/: {least}")
    excluded = "".join(f" --exclude {name}" for name in due if sites[name].path)
    why = f"goes on without {', '.join(due)}; or wait for them" if due else "all contributions are here"
    return NextStep(COORDINATOR, reader.command(f"aggregate{excluded}"), why)
