"""The hospitals' comparisons merged into one table, site by adapter: only the numbers that they sent."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedmed_cli.adapters.signers import SignaturePolicy
from fedmed_cli.errors import CombineError, InputError
from fedmed_cli.evaluation.compared_adapters import worst_sites
from fedmed_cli.records.comparison import Comparison, Matrix, MatrixSite
from fedmed_cli.records.digests import sha256_bytes, short
from fedmed_cli.records.measures import OVERALL
from fedmed_cli.records.plan import Plan
from fedmed_cli.trust.keys import read_site_record
from fedmed_cli.workspace import utc_now


def merge(plan: Plan, paths: Sequence[Path], policy: SignaturePolicy = SignaturePolicy()) -> Matrix:
    """One matrix of what each hospital measured on its own examples (`fedmed compare --site SITE`).

    CombineError where files are of another plan or base, where a name stands for two adapters, where two sites measured
    the same examples, or where there are too many adapters for one record; InputError where a file is not a
    hospital's; TrustError where it is not signed as the plan and the policy ask. The policy's `say` is told of what is
    missing as well.
    """
    records: dict[str, Comparison] = {}
    files: dict[str, str] = {}
    adapters: dict[str, str | None] = {}
    first_files: dict[str, Path] = {}  # by adapter
    for path in paths:
        record, data = read_site_record(Comparison, path, plan, policy)
        site = _check_record(plan, path, record, records)
        for name, digest in record.adapters.items():
            if name in adapters and adapters[name] != digest:
                one, other = _short_digest(adapters[name]), _short_digest(digest)
                raise CombineError(
                    f"{first_files[name]} and {path}: {name!r} is adapter {one} in the one and {other} in the other",
                    hint="all hospitals compare the same adapters, after the same round",
                )
            first_files.setdefault(name, path)
        adapters |= record.adapters
        records[site], files[site] = record, sha256_bytes(data)
    names = [name for name in adapters if all(name in record.scores for record in records.values())]
    for name in adapters:
        if name not in names:
            where = ", ".join(site for site, record in records.items() if name in record.scores)
            policy.say(f"{name} was measured at {where} only, so it has no mean")
    if missing := [site for site in plan.sites.names if site not in records]:
        policy.say(f"no comparison from {', '.join(missing)}")
    overall = {
        site: {name: score[OVERALL] for name, score in record.scores.items()} for site, record in records.items()
    }
    rounds = {record.round for record in records.values()}
    return Matrix(
        plan=plan.digest,
        base_fingerprint=plan.base.fingerprint,
        round=rounds.pop() if len(rounds) == 1 else None,
        adapters=adapters,
        sites={
            site: MatrixSite(
                examples_digest=record.examples_digest,
                num_examples=overall[site]["base"].num_examples,
                num_groups=overall[site]["base"].num_groups,
                scores=overall[site],
            )
            for site, record in sorted(records.items())
        },
        means={name: statistics.fmean(overall[site][name].loss for site in records) for name in names},
        worst_sites=worst_sites({name: {site: overall[site][name] for site in records} for name in names}),
        files=files,
        run={"created": utc_now()},
    )


def _check_record(plan: Plan, path: Path, record: Comparison, records: Mapping[str, Comparison]) -> str:
    """The site that measured, where its file belongs to this plan and to no other file."""
    if record.site is None or record.site not in plan.sites.names:
        raise CombineError(f"{path}: site {record.site} is not in the plan ({', '.join(plan.sites.names)})")
    if record.plan != plan.digest:
        raise CombineError(f"{path}: is of plan {short(record.plan)}…, expected {short(plan.digest)}…")
    if record.base_fingerprint != plan.base.fingerprint:
        raise CombineError(
            f"{path}: is of base model {short(record.base_fingerprint)}…, expected {short(plan.base.fingerprint)}…"
        )
    if record.site in records:
        raise CombineError(f"{path}: site {record.site} appears in two files")
    for name in record.adapters:
        if OVERALL not in record.scores.get(name, {}):
            raise InputError(f"{path}: scores.{name[:80]} has no {OVERALL!r}")
    if record.adapters.get("base", "") is not None:
        raise InputError(f"{path}: adapters has no base")
    for site, other in records.items():
        if other.examples_digest == record.examples_digest:
            raise CombineError(f"{path}: sites {site} and {record.site} measured on the same examples")
    return record.site


def _short_digest(digest: str | None) -> str:
    return f"{short(digest)}…" if digest else "none"
