"""Aggregating one round in a workspace: read the contributions through the gate, combine them, file the round."""

from __future__ import annotations

import contextlib
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedmed_cli.adapters import adapter, card, gate
from fedmed_cli.adapters.adapter import Adapter
from fedmed_cli.adapters.archive import starting_adapter
from fedmed_cli.adapters.bundle import BUNDLE_SUFFIX, is_bundle
from fedmed_cli.adapters.folder import AGGREGATE_NAME
from fedmed_cli.adapters.signers import SignaturePolicy
from fedmed_cli.aggregation.combine import Combination, combine
from fedmed_cli.aggregation.state import AcceptedContribution, AggregationSettings, Evaluator, default_server_lr
from fedmed_cli.data import coordinator_examples
from fedmed_cli.errors import CombineError, ConflictError, FedmedError, InputError, UsageError
from fedmed_cli.events import Say, say_first
from fedmed_cli.federation.staging import stage
from fedmed_cli.records.aggregate import Aggregate
from fedmed_cli.records.codec import read_file
from fedmed_cli.records.combining import LARGEST_STEP, METHODS, WEIGHTINGS
from fedmed_cli.records.contribution import Contribution
from fedmed_cli.records.digests import sha256_bytes
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.scores import Scores
from fedmed_cli.trust import keys
from fedmed_cli.workspace import Workspace, utc_now
from fedmed_cli.workspace.durable import new_folder, syncing, write_new

if TYPE_CHECKING:
    from fedmed_cli.records.signatures import Signer


@dataclass(frozen=True)
class RoundResult:
    """A round that was aggregated: its record, those it was made of, and where its adapter lies (None: a dry run)."""

    record: Aggregate
    contributions: dict[str, Contribution]
    path: Path | None
    num_bytes: int


@dataclass(frozen=True)
class _Inputs:
    """What a round is made of. `before` is the global adapter before `parent`, where there is server momentum."""

    round_number: int
    parent: Adapter
    before: Adapter | None
    contributions: dict[str, AcceptedContribution]
    excluded: tuple[str, ...]
    missing: tuple[str, ...]


def default_weights(workspace: Workspace, say: Say = lambda message: None) -> str:
    """ "agentic" where the coordinator has examples of at least two groups to decide with, else "tokens"."""
    group_by = workspace.group_column()
    groups = {row.group(group_by) for row in coordinator_examples.half(workspace, "decide")}
    if len(groups) == 1:
        say("the coordinator's examples to decide with are of one group, which decides nothing: weights by tokens")
    return "agentic" if len(groups) > 1 else "tokens"


def default_settings(
    workspace: Workspace, weights: str | None = None, say: Say = lambda message: None
) -> AggregationSettings:
    """Those of `weights`, by default measured ones where the coordinator has examples, else by tokens."""
    settings = AggregationSettings(weights=weights or default_weights(workspace, say))
    return replace(settings, server_lr=default_server_lr(settings.method, settings.weights))


def aggregate(
    workspace: Workspace,
    paths: Sequence[Path],
    settings: AggregationSettings,
    *,
    exclude: Sequence[str] = (),
    output: Path | None = None,
    dry_run: bool = False,
    make_evaluator: Callable[[], Evaluator | None] | None = None,
    require_signatures: bool = False,
    signer: Signer | None = None,
    say: Say = lambda message: None,
) -> RoundResult:
    """Combine the contributions in `paths` and write `rounds/NNN/`, or with `output` only that folder.

    A contribution that does not pass the gate aborts (its FedmedError gets the hint to exclude its site).
    With `dry_run` nothing is written. `make_evaluator` is called when all contributions have passed; it measures on the
    coordinator's examples, for the settings that need it. With `signer` the record is signed. `say` is told of what is
    skipped and of what is not signed. The caller holds the workspace's lock.
    """
    started = time.perf_counter()
    plan = workspace.read_plan()
    _check_request(plan, settings, exclude, output, dry_run)
    folders = _choose_folders(paths, exclude, say)
    target = None if dry_run else output or workspace.round(workspace.newest_round() + 1)
    with _open_staging(workspace, target) as staged:
        archive = staged if output is None else staged / "sites"
        policy = SignaturePolicy(require_signatures, say)
        passed = _admit(folders, plan, exclude, archive, policy)
        inputs = _make_inputs(workspace, plan, passed, settings, exclude, say, is_new_round=output is None)
        scores = (
            _read_scores(workspace, plan, inputs.round_number, policy)
            if WEIGHTINGS[settings.weights].reads_scores
            else ()
        )
        evaluator = make_evaluator() if make_evaluator else None
        # Copies that are thrown away need not reach the disk.
        with contextlib.nullcontext() if output is not None or dry_run else syncing(archive):
            result = combine(
                plan,
                inputs.parent,
                inputs.contributions,
                settings,
                before=inputs.before,
                evaluator=evaluator,
                scores=scores,
            )
        if settings.server_lr is None and result.server_lr == LARGEST_STEP:
            say(f"the server's step is {LARGEST_STEP:g}: no longer one is taken")
        files = _make_files(plan, result, inputs.round_number, settings)
        record = _make_record(
            workspace, plan, settings, inputs, result, adapter.file_digests(result.adapter, files), started
        )
        files[AGGREGATE_NAME] = record.to_bytes()
        files |= keys.sign_record(AGGREGATE_NAME, files, signer)
        num_bytes = sum(map(len, files.values()))
        contributions = {name: one.record for name, one in inputs.contributions.items()}
        if target is None:
            return RoundResult(record, contributions, None, num_bytes)
        home = staged / "global" if output is None else staged
        home.mkdir(exist_ok=True)
        for name, data in files.items():
            write_new(home / name, data)
        if output is not None:
            shutil.rmtree(archive)
    if output is None:
        _log(workspace, record)
    return RoundResult(record, contributions, output or workspace.global_adapter(record.round), num_bytes)


def _check_request(
    plan: Plan, settings: AggregationSettings, exclude: Sequence[str], output: Path | None, dry_run: bool
) -> None:
    for site in exclude:
        if site not in plan.sites.names:
            raise UsageError(f"--exclude {site}: the plan has no such site ({', '.join(plan.sites.names)})")
    method = METHODS[settings.method]
    if not method.starts_round and output is None and not dry_run:
        raise UsageError(
            f"--method {settings.method} makes an adapter {method.about}: no round can start from it",
            hint="add --output DIR; for the next round use --method svd",
        )
    if output is not None and output.exists():
        raise ConflictError(f"{output} exists already", hint="name another folder with --output")


def _choose_folders(paths: Sequence[Path], exclude: Sequence[str], say: Say) -> list[Path]:
    chosen = []
    skipped = dict.fromkeys(path for path in paths if path.is_file() and not is_bundle(path))
    say_first(say, [f"{path}: skipped, it is a plain file" for path in skipped], "such files")
    for path in paths:
        if path in skipped:
            continue
        if _site_of(path) in exclude:
            say(f"{path}: left out (--exclude {_site_of(path)})")
        else:
            chosen.append(path)
    if not chosen:
        raise InputError("there is no contribution to aggregate", hint="run 'fedmed train-local' first")
    return sorted(chosen, key=lambda path: path.name)


def _site_of(path: Path) -> str:
    """The site that a folder's or a bundle's name speaks of."""
    return path.name.removesuffix(BUNDLE_SUFFIX)


@contextlib.contextmanager
def _open_staging(workspace: Workspace, target: Path | None) -> Iterator[Path]:
    """Where contributions are copied to: the folder that becomes `target`, or one that is thrown away."""
    if target is not None:
        with new_folder(target) as folder:
            yield folder
        return
    workspace.make_private()
    with tempfile.TemporaryDirectory(dir=workspace.private, prefix=".dry-run.", suffix=".tmp") as name:
        yield Path(name)


def _admit(
    paths: Sequence[Path], plan: Plan, exclude: Sequence[str], archive: Path, policy: SignaturePolicy
) -> dict[Path, AcceptedContribution]:
    """Read each folder through the gate and copy it into the archive, one in memory at a time."""
    passed: dict[Path, AcceptedContribution] = {}
    homes: dict[str, Path] = {}
    for path in paths:
        with _hint_to_exclude(path, paths, plan):
            folder = gate.read_contribution(path, plan, policy=policy)
        site = folder.record.site
        if folder.record.sites != plan.sites.digest:
            policy.say(
                f"{path}: site {site} trained under another list of sites or pinned keys; compare federation.toml there"
            )
        if site in homes:
            raise CombineError(f"site {site} appears in two folders: {homes[site]} and {path}")
        if site in exclude:
            policy.say(f"{path}: left out (--exclude {site})")
            continue
        homes[site] = path
        passed[path] = stage(folder, archive / site)
        del folder  # before the next one is read
    return passed


@contextlib.contextmanager
def _hint_to_exclude(path: Path, paths: Collection[Path], plan: Plan) -> Iterator[None]:
    """Have a refusal of the contribution at `path`, one of `paths`, say how to go on without it and no other."""
    try:
        yield
    except FedmedError as error:
        hint = "put the folders that the sites sent into adapters/, or name where they are"
        if path.exists():
            site = _site_of(path)
            is_alone = site in plan.sites.names and [_site_of(one) for one in paths].count(site) == 1
            way = f"--exclude {site}" if is_alone else "move it elsewhere"
            hint = (error.hint + "; or " if error.hint else "") + f"go on without it: {way}"
        raise type(error)(error.message, hint) from None


def _make_inputs(
    workspace: Workspace,
    plan: Plan,
    passed: Mapping[Path, AcceptedContribution],
    settings: AggregationSettings,
    exclude: Sequence[str],
    say: Say,
    is_new_round: bool,
) -> _Inputs:
    """Which round the contributions make, and what it starts from; an error where they are not all of it, or too few.

    A result that goes elsewhere may be an archived round combined again.
    """
    round_number = workspace.newest_round() + 1
    if not is_new_round:
        round_number = min([round_number, *(one.record.round for one in passed.values())])
    parent = starting_adapter(workspace, plan, round_number)
    for path, one in passed.items():
        with _hint_to_exclude(path, passed, plan):
            gate.check_lineage(path, one.record, round_number, parent.digest)
    contributions = {one.record.site: one for one in passed.values()}
    if len(contributions) < plan.sites.min_sites:
        raise CombineError(
            f"the plan requires contributions from at least {plan.sites.min_sites} sites, found "
            f"{len(contributions)}{' (' + ', '.join(sorted(contributions)) + ')' if contributions else ''}",
            hint="wait for more sites, or lower min_sites in federation.toml",
        )
    missing = tuple(site for site in plan.sites.names if site not in contributions and site not in exclude)
    if missing:
        say(f"no contribution from {', '.join(missing)}")
    if settings.server_momentum and round_number == 1:
        say("no server momentum in round 1: there is no step before it")
    has_step = settings.server_momentum and round_number > 1
    before = starting_adapter(workspace, plan, round_number - 1) if has_step else None
    return _Inputs(round_number, parent, before, contributions, tuple(sorted(exclude)), missing)


def _read_scores(workspace: Workspace, plan: Plan, round_number: int, policy: SignaturePolicy) -> list[Scores]:
    """The hospitals' scores of this round; those of another plan or round are named and left out.

    TrustError where one is not signed as the plan and the policy ask.
    """
    by_site: dict[str, Scores] = {}
    for path in sorted(workspace.scores.glob("*.json")):
        record, _ = keys.read_site_record(Scores, path, plan, policy)
        if record.site not in plan.sites.names:
            raise CombineError(f"{path}: site {record.site} is not in the plan")
        if record.plan != plan.digest or record.round != round_number:
            policy.say(f"{path}: skipped, it is of round {record.round} or of another plan")
        elif record.site in by_site:
            raise CombineError(f"{path}: site {record.site} has scored twice")
        else:
            by_site[record.site] = record
    return list(by_site.values())


def _make_files(plan: Plan, result: Combination, round_number: int, settings: AggregationSettings) -> dict[str, bytes]:
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


def _make_record(
    workspace: Workspace,
    plan: Plan,
    settings: AggregationSettings,
    inputs: _Inputs,
    result: Combination,
    files: dict[str, str],
    started: float,
) -> Aggregate:
    """The record of a round; `files` are the digests of its files, `started` the clock's reading when it began."""
    return Aggregate(
        round=inputs.round_number,
        plan=plan.digest,
        sites_digest=plan.sites.digest,
        base_fingerprint=plan.base.fingerprint,
        parent=inputs.parent.digest,
        adapter=result.adapter.digest,
        method=settings.method,
        weights=settings.weights,
        robust=settings.robust,
        num_malicious=settings.num_malicious,
        clip=settings.clip,
        server_lr=result.server_lr,
        server_momentum=settings.server_momentum,
        sites=result.decisions,
        missing=inputs.missing,
        excluded=inputs.excluded,
        examination=result.examination,
        truncation=result.truncation,
        files=files,
        parent_record=_digest_parent_record(workspace, inputs.round_number),
        signers=_list_signers(plan, inputs.contributions),
        run={
            "created": utc_now(),
            "seconds": round(time.perf_counter() - started, 3),
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
    )


def _digest_parent_record(workspace: Workspace, round_number: int) -> str | None:
    """SHA-256 of the previous round's aggregate.json, so that records form a chain; None for round 1."""
    if round_number == 1:
        return None
    return sha256_bytes(read_file(workspace.global_adapter(round_number - 1) / AGGREGATE_NAME))


def _list_signers(plan: Plan, sites: Iterable[str]) -> dict[str, str]:
    """The fingerprint of each pinned key that signed: the gate took nothing else from those sites."""
    pinned = {site: plan.sites.keys[site] for site in sorted(sites) if site in plan.sites.keys}
    if not pinned:
        return {}
    from fedmed_cli.records.signatures import fingerprint

    return {site: fingerprint(key) for site, key in pinned.items()}


def _log(workspace: Workspace, record: Aggregate) -> None:
    workspace.log(
        "aggregate",
        round=record.round,
        method=record.method,
        weights=record.weights,
        server_lr=record.server_lr,
        num_sites=len(record.sites),
        num_rejected=sum(site.verdict == "rejected" for site in record.sites.values()),
        adapter=record.adapter,
        truncation=record.truncation.overall,
    )
