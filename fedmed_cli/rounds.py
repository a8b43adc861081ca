"""Aggregating one round in a workspace: read the contributions through the gate, combine them, file the round."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedmed_cli import adapters, trust
from fedmed_cli.adapters import Adapter, AdapterFolder
from fedmed_cli.aggregation.coordinator import DEFAULT_CLIP, combine
from fedmed_cli.bundles import BUNDLE_SUFFIX, is_bundle
from fedmed_cli.codec import read_file
from fedmed_cli.digests import sha256_bytes, short
from fedmed_cli.errors import CombineError, ConflictError, FedmedError, InputError, UsageError
from fedmed_cli.records import Aggregate, Plan
from fedmed_cli.workspace import Workspace, utc_now, write_folder

if TYPE_CHECKING:
    from fedmed_cli.signatures import Signer

Say = Callable[[str], None]


@dataclass(frozen=True)
class RoundResult:
    """A round that was aggregated: its record and where its global adapter lies."""

    record: Aggregate
    path: Path
    num_bytes: int


def starting_adapter(workspace: Workspace, plan: Plan, round_number: int) -> Adapter:
    """The adapter that a round starts from: the round before's global one, or the plan's initial one."""
    if round_number == 1:
        return adapters.plan_adapter(plan, adapters.initial_factors(plan))
    path = workspace.global_adapter(round_number - 1)
    folder = adapters.read_global(path, plan)
    assert folder.aggregate is not None
    if folder.aggregate.round != round_number - 1:
        raise InputError(f"{path}: expected round {round_number - 1}, found round {folder.aggregate.round}")
    return folder.adapter


def aggregate(
    workspace: Workspace,
    paths: Sequence[Path],
    *,
    method: str = "svd",
    weights: str = "tokens",
    clip: float | None = DEFAULT_CLIP,
    exclude: Sequence[str] = (),
    output: Path | None = None,
    require_signatures: bool = False,
    signer: Signer | None = None,
    say: Say = lambda message: None,
) -> RoundResult:
    """Combine the contributions in `paths` and write `rounds/NNN/`, or with `output` only that folder.

    A contribution that does not pass the gate aborts (its FedmedError gets the hint to exclude its site).
    `say` is told of what is skipped and of what is not signed. With `signer` the record is signed. The caller
    holds the workspace's lock.
    """
    started = time.perf_counter()
    plan = workspace.read_plan()
    for site in exclude:
        if site not in plan.sites.names:
            raise UsageError(f"--exclude {site}: the plan has no such site ({', '.join(plan.sites.names)})")
    if method == "stack" and output is None:
        raise UsageError(
            "--method stack makes an adapter of a higher rank, for release: no round can start from it",
            hint="add --output DIR; for the next round use --method svd",
        )
    chosen = _candidates(paths, exclude, say)
    round_number = workspace.newest_round() + 1
    if output is not None:
        round_number = min(round_number, *(_stated_round(path) for path in chosen))
        if output.exists():
            raise ConflictError(f"{output} exists already", hint="name another folder with --output")
    parent = starting_adapter(workspace, plan, round_number)
    folders: dict[str, AdapterFolder] = {}
    for path in chosen:
        folder = _gate(path, plan, round_number, parent.digest, require_signatures, say)
        assert folder.contribution is not None
        site = folder.contribution.site
        if site in folders:
            raise CombineError(f"site {site} stands in two folders: {folders[site].path} and {path}")
        if site in exclude:
            say(f"{path}: left out (--exclude {site})")
        else:
            folders[site] = folder
    missing = tuple(site for site in plan.sites.names if site not in folders and site not in exclude)
    if missing:
        say(f"no contribution from {', '.join(missing)}")
    if len(folders) < plan.sites.min_sites:
        raise CombineError(
            f"the plan wants contributions from at least {plan.sites.min_sites} sites, found "
            f"{len(folders)}{' (' + ', '.join(sorted(folders)) + ')' if folders else ''}",
            hint="wait for more sites, or lower min_sites in federation.toml",
        )
    result = combine(plan, parent, folders, method=method, weights=weights, clip=clip)
    readme = adapters.readme(
        plan.base,
        result.adapter,
        f"Global adapter of round {round_number}",
        f"Combined by fedmed ({method}) from the contributions of {', '.join(sorted(folders))}.",
    )
    files = adapters.adapter_files(result.adapter, readme)
    record = Aggregate(
        round=round_number,
        plan=plan.digest,
        sites_digest=plan.sites.digest,
        base_fingerprint=plan.base.fingerprint,
        parent=parent.digest,
        adapter=result.adapter.digest,
        method=method,  # type: ignore[arg-type]  # one of RULES, which the command checked
        weights=weights,  # type: ignore[arg-type]  # likewise
        clip=clip,
        server_lr=1.0,
        sites=result.decisions,
        missing=missing,
        excluded=tuple(sorted(exclude)),
        truncation=result.truncation,
        files={name: sha256_bytes(data) for name, data in files.items()},
        parent_record=_parent_record(workspace, round_number),
        signers=trust.pinned_signers(folders, plan),
        run={
            "created": utc_now(),
            "seconds": round(time.perf_counter() - started, 3),
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
    )
    files[adapters.AGGREGATE_NAME] = record.to_bytes()
    files |= trust.signed(adapters.AGGREGATE_NAME, files, signer)
    num_bytes = sum(map(len, files.values()))
    if output is not None:
        write_folder(output, dict(files))
        return RoundResult(record, output, num_bytes)
    archive: dict[str, bytes | memoryview] = {f"global/{name}": data for name, data in files.items()}
    for site, folder in folders.items():
        archive |= {f"{site}/{name}": data for name, data in folder.files.items()}
    write_folder(workspace.round(round_number), archive)
    workspace.log(
        "aggregate",
        round=round_number,
        method=method,
        weights=weights,
        num_sites=len(folders),
        adapter=record.adapter,
        truncation=record.truncation.overall,
    )
    return RoundResult(record, workspace.global_adapter(round_number), num_bytes)


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
    return sha256_bytes(read_file(workspace.global_adapter(round_number - 1) / adapters.AGGREGATE_NAME))


def _stated_round(path: Path) -> int:
    record = adapters.read_folder(path).contribution
    if record is None:
        raise InputError(f"{path}: has no {adapters.CONTRIBUTION_NAME}")
    return record.round


def _gate(path: Path, plan: Plan, round_number: int, parent: str, require: bool, say: Say) -> AdapterFolder:
    try:
        folder = adapters.read_contribution(path, plan, round_number, parent)
        trust.check_signer(folder, plan, require, say)
        return folder
    except FedmedError as error:
        error.hint = (error.hint + "; or " if error.hint else "") + f"go on without it: --exclude {_site_of(path)}"
        raise


def accept_global(
    workspace: Workspace, plan: Plan, path: Path, require_signatures: bool = False, say: Say = lambda message: None
) -> tuple[AdapterFolder, int, bool]:
    """Check a global adapter that came from the coordinator: it, its round, and whether it is new here.

    It must be of the newest round known here or a later one; a different adapter for a known round is refused.
    """
    folder = adapters.read_global(path, plan)
    trust.check_signer(folder, plan, require_signatures, say)
    record = folder.aggregate
    assert record is not None
    filed = workspace.global_adapter(record.round)
    if filed.exists():
        known = adapters.read_global(filed, plan)
        if known.adapter.digest != folder.adapter.digest:
            raise ConflictError(
                f"{path}: round {record.round} is already filed here with adapter {short(known.adapter.digest)}, "
                f"found {short(folder.adapter.digest)}",
                hint="ask the coordinator which of the two holds",
            )
        return folder, record.round, False
    if record.round < workspace.newest_round():
        raise ConflictError(f"{path}: is of round {record.round}, but round {workspace.newest_round()} is filed here")
    return folder, record.round, True
