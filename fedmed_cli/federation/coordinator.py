"""Aggregating one round in a workspace: read the contributions through the gate, combine them, file the round."""

from __future__ import annotations

import contextlib
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedmed_cli.adapters import adapter, card, gate
from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.adapters.archive import starting_adapter
from fedmed_cli.adapters.bundle import BUNDLE_SUFFIX, is_bundle
from fedmed_cli.adapters.gate import AdapterFolder
from fedmed_cli.aggregation.combine import Combination, combine
from fedmed_cli.aggregation.state import AcceptedContribution, AggregationSettings, Evaluator
from fedmed_cli.data import coordinator_examples
from fedmed_cli.errors import CombineError, ConflictError, FedmedError, InputError, UsageError
from fedmed_cli.events import Say
from fedmed_cli.federation.staging import stage
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.codec import read_file
from fedmed_cli.records.combining import METHODS, WEIGHTINGS
from fedmed_cli.records.digests import sha256_bytes
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.scores import Scores
from fedmed_cli.trust import keys
from fedmed_cli.workspace import Workspace, utc_now
from fedmed_cli.workspace.durable import new_folder, syncing, write_new

if TYPE_CHECKING:
    from fedmed_cli.adapters.signatures import Signer


@dataclass(frozen=True)
class RoundResult:
    """A round that was aggregated: its record and where its global adapter lies (None for a dry run)."""

    record: Aggregate
    path: Path | None
    num_bytes: int


def default_weights(workspace: Workspace) -> str:
    """ "agentic" where the coordinator has examples to measure on, else "tokens"."""
    return "agentic" if coordinator_examples.half(workspace, "decide") else "tokens"


def aggregate(
    workspace: Workspace,
    paths: Sequence[Path],
    settings: AggregationSettings,
    *,
    exclude: Sequence[str] = (),
    output: Path | None = None,
    dry_run: bool = False,
    evaluator: Evaluator | None = None,
    require_signatures: bool = False,
    signer: Signer | None = None,
    say: Say = lambda message: None,
) -> RoundResult:
    """Combine the contributions in `paths` and write `rounds/NNN/`, or with `output` only that folder.

    A contribution that does not pass the gate aborts (its FedmedError gets the hint to exclude its site).
    With `dry_run` nothing is written. `evaluator` measures on the coordinator's examples, for the settings
    that need it. With `signer` the record is signed. `say` is told of what is skipped and of what is not signed.
    The caller holds the workspace's lock.
    """
    started = time.perf_counter()
    plan = workspace.read_plan()
    for site in exclude:
        if site not in plan.sites.names:
            raise UsageError(f"--exclude {site}: the plan has no such site ({', '.join(plan.sites.names)})")
    method = METHODS[settings.method]
    if not method.starts_round and output is None and not dry_run:
        raise UsageError(
            f"--method {settings.method} makes an adapter {method.about}: no round can start from it",
            hint="add --output DIR; for the next round use --method svd",
        )
    chosen = _candidates(paths, exclude, say)
    round_number = _round_of(workspace, chosen, output)
    if output is not None and output.exists():
        raise ConflictError(f"{output} exists already", hint="name another folder with --output")
    parent = starting_adapter(workspace, plan, round_number)
    before = starting_adapter(workspace, plan, round_number - 1) if round_number > 1 else None
    if settings.server_momentum and before is None:
        say("no server momentum in round 1: there is no step before it")
    target = None if dry_run else output or workspace.round(round_number)
    with _stage(workspace, target) as folder:
        archive = folder if output is None else folder / "sites"
        signers: dict[str, str] = {}
        contributions = _admit(chosen, plan, round_number, parent, exclude, archive, require_signatures, signers, say)
        _check_number(plan, contributions)
        missing = tuple(site for site in plan.sites.names if site not in contributions and site not in exclude)
        if missing:
            say(f"no contribution from {', '.join(missing)}")
        reads_scores = WEIGHTINGS[settings.weights].reads_scores
        scores = _read_scores(workspace, plan, round_number, say) if reads_scores else ()
        # Copies that are thrown away need not reach the disk.
        with contextlib.nullcontext() if output is not None or dry_run else syncing(archive):
            result = combine(plan, parent, contributions, settings, before=before, evaluator=evaluator, scores=scores)
        files = _global_files(plan, result, round_number, settings)
        record = Aggregate(
            round=round_number,
            plan=plan.digest,
            sites_digest=plan.sites.digest,
            base_fingerprint=plan.base.fingerprint,
            parent=parent.digest,
            adapter=result.adapter.digest,
            method=settings.method,
            weights=settings.weights,
            robust=settings.robust,
            num_malicious=settings.num_malicious,
            clip=settings.clip,
            server_lr=result.server_lr,
            server_momentum=settings.server_momentum,
            sites=result.decisions,
            missing=missing,
            excluded=tuple(sorted(exclude)),
            examination=result.examination,
            truncation=result.truncation,
            files=adapter.file_digests(result.adapter, files),
            parent_record=_parent_record(workspace, round_number),
            signers=dict(sorted(signers.items())),
            run={
                "created": utc_now(),
                "seconds": round(time.perf_counter() - started, 3),
                "python": platform.python_version(),
                "machine": platform.machine(),
            },
        )
        files[gate.AGGREGATE_NAME] = record.to_bytes()
        files |= keys.signed(gate.AGGREGATE_NAME, files, signer)
        num_bytes = sum(map(len, files.values()))
        if target is None:
            return RoundResult(record, None, num_bytes)
        home = folder if output is not None else folder / "global"
        home.mkdir(exist_ok=True)
        for name, data in files.items():
            write_new(home / name, data)
        if output is not None:
            shutil.rmtree(archive)
    if output is not None:
        return RoundResult(record, output, num_bytes)
    workspace.log(
        "aggregate",
        round=round_number,
        method=settings.method,
        weights=settings.weights,
        server_lr=record.server_lr,
        num_sites=len(contributions),
        num_rejected=sum(site.verdict == "rejected" for site in record.sites.values()),
        adapter=record.adapter,
        truncation=record.truncation.overall,
    )
    return RoundResult(record, workspace.global_adapter(round_number), num_bytes)


def check(
    workspace: Workspace,
    plan: Plan,
    paths: Sequence[Path],
    exclude: Sequence[str],
    output: Path | None,
    require_signatures: bool = False,
) -> None:
    """Pass every contribution through the gate and keep none: the errors of `aggregate`, before a model is loaded."""
    chosen = _candidates(paths, exclude, lambda message: None)
    round_number = _round_of(workspace, chosen, output)
    parent = starting_adapter(workspace, plan, round_number)
    for path in chosen:
        folder = _gate(path, plan, round_number, parent.digest)
        _check_signer(folder, plan, require_signatures, lambda message: None)


def _round_of(workspace: Workspace, paths: Sequence[Path], output: Path | None) -> int:
    """The next round; for a result that goes elsewhere, an archived round may be combined anew."""
    newest = workspace.newest_round() + 1
    return newest if output is None else min(newest, *(_stated_round(path) for path in paths))


@contextlib.contextmanager
def _stage(workspace: Workspace, target: Path | None) -> Iterator[Path]:
    """Where contributions are copied to: the folder that becomes `target`, or one that is thrown away."""
    if target is not None:
        with new_folder(target) as folder:
            yield folder
        return
    workspace.private.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=workspace.private, prefix=".dry-run.", suffix=".tmp") as name:
        yield Path(name)


def _admit(
    paths: Sequence[Path],
    plan: Plan,
    round_number: int,
    parent: Adapter,
    exclude: Sequence[str],
    archive: Path,
    require_signatures: bool,
    signers: dict[str, str],
    say: Say,
) -> dict[str, AcceptedContribution]:
    """Read each folder through the gate and copy it into the archive, one in memory at a time.

    `signers` is given the fingerprint of each key that the plan pins and that signed.
    """
    contributions: dict[str, AcceptedContribution] = {}
    homes: dict[str, Path] = {}
    for path in paths:
        folder = _gate(path, plan, round_number, parent.digest)
        assert folder.contribution is not None
        site = folder.contribution.site
        fingerprint = _check_signer(folder, plan, require_signatures, say)
        if site in homes:
            raise CombineError(f"site {site} appears in two folders: {homes[site]} and {path}")
        if site in exclude:
            say(f"{path}: left out (--exclude {site})")
            continue
        homes[site] = path
        if fingerprint is not None:
            signers[site] = fingerprint
        contributions[site] = stage(folder, archive / site)
    return contributions


def _check_number(plan: Plan, contributions: dict[str, AcceptedContribution]) -> None:
    if len(contributions) < plan.sites.min_sites:
        raise CombineError(
            f"the plan wants contributions from at least {plan.sites.min_sites} sites, found "
            f"{len(contributions)}{' (' + ', '.join(sorted(contributions)) + ')' if contributions else ''}",
            hint="wait for more sites, or lower min_sites in federation.toml",
        )


def _global_files(
    plan: Plan, result: Combination, round_number: int, settings: AggregationSettings
) -> dict[str, bytes]:
    readme = card.global_card(
        plan.base,
        result.adapter,
        round_number=round_number,
        method=settings.method,
        weights=settings.weights,
        decisions=result.decisions,
        examination=result.examination,
        truncation=result.truncation,
    )
    return adapter.adapter_files(result.adapter, readme)


def _read_scores(workspace: Workspace, plan: Plan, round_number: int, say: Say) -> list[Scores]:
    """The hospitals' scores of this round; those of another plan or round are named and left out."""
    found = {}
    for path in sorted(workspace.scores.glob("*.json")):
        record = Scores.read(path)
        if record.site not in plan.sites.names:
            raise CombineError(f"{path}: site {record.site} is not in the plan")
        if record.plan != plan.digest or record.round != round_number:
            say(f"{path}: skipped, it is of round {record.round} or of another plan")
        elif record.site in found:
            raise CombineError(f"{path}: site {record.site} has scored twice")
        else:
            found[record.site] = record
    return list(found.values())


def _candidates(paths: Sequence[Path], exclude: Sequence[str], say: Say) -> list[Path]:
    chosen = []
    for path in paths:
        if path.is_file() and not is_bundle(path):
            say(f"{path}: skipped, it is a plain file")
        elif _site_of(path) in exclude:
            say(f"{path}: left out (--exclude {_site_of(path)})")
        else:
            chosen.append(path)
    if not chosen:
        raise InputError("there is no contribution to aggregate", hint="run 'fedmed train-local' first")
    return sorted(chosen, key=lambda path: path.name)


def _site_of(path: Path) -> str:
    """The site that a folder's or a bundle's name speaks of."""
    return path.name.removesuffix(BUNDLE_SUFFIX)


def _parent_record(workspace: Workspace, round_number: int) -> str | None:
    """SHA-256 of the aggregate.json of the round before, so that records form a chain; None for round 1."""
    if round_number == 1:
        return None
    return sha256_bytes(read_file(workspace.global_adapter(round_number - 1) / gate.AGGREGATE_NAME))


def _stated_round(path: Path) -> int:
    record = gate.read_folder(path).contribution
    if record is None:
        raise InputError(f"{path}: has no {gate.CONTRIBUTION_NAME}")
    return record.round


def _gate(path: Path, plan: Plan, round_number: int, parent: str) -> AdapterFolder:
    try:
        return gate.read_contribution(path, plan, round_number, parent)
    except FedmedError as error:
        raise _with_way_out(error, path) from None


def _check_signer(folder: AdapterFolder, plan: Plan, require: bool, say: Say) -> str | None:
    try:
        return keys.check_signer(folder, plan, require, say)
    except FedmedError as error:
        raise _with_way_out(error, folder.path) from None


def _with_way_out(error: FedmedError, path: Path) -> FedmedError:
    """The error with the hint how to go on without that site."""
    if path.exists():
        error.hint = (error.hint + "; or " if error.hint else "") + f"go on without it: --exclude {_site_of(path)}"
    else:
        error.hint = "put the folders that the sites sent into adapters/, or name where they are"
    return error
