"""Making sites out of one data set: two passes over the rows, and the proof that nothing leaked."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from fedmed_cli.data import identifiers, partition, row_index, split_files, topics
from fedmed_cli.data.near_duplicates import SIMILARITY, Sketches, merge
from fedmed_cli.data.sources import DEFAULT_MAX_BAD, BadRows, Source
from fedmed_cli.errors import ConflictError, InputError, UsageError
from fedmed_cli.events import Say, StageProgress
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.split import BadRowCounts, NearDuplicates, SiteCounts, SplitRecord
from fedmed_cli.workspace import Workspace, utc_now
from fedmed_cli.workspace.durable import write_file

MAX_ATTEMPTS = 3
MAX_LABELS = 10_000  # of all sites together, in the record


@dataclass(frozen=True)
class SplitOptions:
    """How to divide: the options of `fedmed split` that are not the plan's."""

    names: tuple[str, ...]
    by: str | None = None
    assign: Mapping[str, Sequence[str]] | None = None
    alpha: float = 0.5
    sizes: tuple[int, ...] | None = None
    min_size: int | None = None
    labels_per_site: int = 2
    label: str | None = None
    num_topics: int = topics.DEFAULT_TOPICS
    group_by: str | None = None
    near_duplicates: float | None = SIMILARITY
    shares: Mapping[str, float] = field(default_factory=lambda: dict(partition.DEFAULT_SHARES))
    max_bad: float = DEFAULT_MAX_BAD
    phi: identifiers.Mode = "warn"
    file_format: split_files.Format = "jsonl"


@dataclass(frozen=True)
class SplitResult:
    """What `split` did, and the plan it wrote or found."""

    record: SplitRecord
    plan: Plan
    wrote_plan: bool


def split(
    workspace: Workspace,
    source: Source,
    plan: Plan,
    options: SplitOptions,
    say: Say,
    progress: StageProgress = lambda what, done, total: None,
) -> SplitResult:
    """Divide the examples of `source` among the plan's sites and write `data/` and, where there is none, the plan.

    The first pass keeps a few numbers a row, the second writes; nothing else grows with the data. The caller
    holds the lock.
    """
    started = time.perf_counter()
    method, column = _method(options, source.label_column)
    if workspace.data.exists():
        raise ConflictError(
            f"{workspace.data} exists already", hint="use another folder with --workspace; nothing was changed"
        )
    _check(options, method)
    label = options.label or (column if method == "column" else source.label_column)
    group_by = options.group_by or source.group_column
    wrote_plan = not workspace.plan_path.exists()
    seed = plan.training.seed
    staged = workspace.private / "split"
    shutil.rmtree(staged, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, staged, ignore_errors=True)
        source.fetch(staged / "hub")
        digest = stack.enter_context(ThreadPoolExecutor(1)).submit(source.digest)
        bad, hits = BadRows(), row_index.Hits() if options.phi != "off" else None
        sketches = Sketches(staged / "bands") if options.near_duplicates is not None else None
        if sketches is not None:
            stack.callback(sketches.close)
        by_topic = None
        if label is None and method in ("dirichlet", "pathological"):
            by_topic = topics.fit(source.batches(), options.num_topics, seed)
            say(
                f"no label column: {options.num_topics} topics of the texts are the labels (name a column with --label)"
            )
        first = [bad]  # what is skipped is counted in the first reading alone
        index = row_index.build(
            lambda: source.batches(first.pop() if first else None),
            seed=seed,
            group_by=group_by,
            label=label,
            column=column,
            topics=by_topic,
            mode=options.phi,
            hits=hits,
            sketches=sketches,
            progress=lambda rows: progress("reading", rows, 0),
        )
        bad.check(options.max_bad)
        tell_bad(bad, say)
        found = hits.by_kind() if hits is not None else {}
        if hits is not None:
            tell_phi(options.phi, found, hits.num_rows, len(index), say)
        roots = partition.roots_of(index.text, index.group, size=len(index))
        num_alike = 0
        if sketches is not None and options.near_duplicates is not None:
            roots, num_alike = sketches.united(roots, options.near_duplicates)
            sketches.close()
        written = staged / "data"
        for attempt in range(MAX_ATTEMPTS):
            division = partition.partition(
                index,
                roots,
                options.names,
                method,
                assign={value: site for site, values in (options.assign or {}).items() for value in values} or None,
                alpha=options.alpha,
                sizes=options.sizes,
                min_size=options.min_size,
                labels_per_site=options.labels_per_site,
                shares=options.shares,
                seed=seed,
            )
            split_files.write_sets(
                written,
                (row_index.screened(batch, options.phi, None, 0) for batch in source.batches()),
                division.places,
                options.names,
                index.columns,
                options.file_format,
                progress=lambda rows: progress("writing", rows, len(index)),
            )
            source.check_unchanged()
            files = split_files.file_names(written, options.names, options.file_format)
            num_pairs, torn = 0, np.empty((0, 2), dtype=np.int64)
            if options.near_duplicates is not None:
                num_pairs, pairs = split_files.find_near_leaks(
                    written, files, options.near_duplicates, staged / "bands"
                )
                rows = split_files.written_rows(division.places, len(options.names))
                torn = rows[np.array(pairs, dtype=np.int64).reshape(-1, 2)]
            if not len(torn) or attempt == MAX_ATTEMPTS - 1:
                break
            say(f"the check found {len(torn)} pairs of near-duplicates that the search had missed: dividing again")
            roots = merge(roots, torn[:, 0], torn[:, 1])
            num_alike += len(np.unique(torn))
        sites = _sites(options.names, index, division, hits)
        total = sum(counts.total for counts in sites.values())
        checks = split_files.count_leaks(written, files, group_by)
        if checks["rows"] != total or checks["texts_in_two_sets"] or checks["groups_in_two_sets"]:
            raise RuntimeError("the written sets are not disjoint")
        near = None
        if options.near_duplicates is not None:
            near = NearDuplicates(options.near_duplicates, num_alike, num_pairs, len(np.unique(torn)))
        record = SplitRecord(
            source=source.kind,
            source_digest=digest.result(),
            method=method,  # type: ignore[arg-type]  # one of METHODS
            column=column,
            label_column=label,
            group_by=group_by,
            alpha=options.alpha if method in ("dirichlet", "quantity") else None,
            seed=seed,
            limit=source.limit,
            requested_sizes=options.sizes,
            shares=dict(options.shares),
            num_examples=total,
            num_groups=division.num_units,
            num_moved=division.num_moved,
            checks=checks,
            sites=sites,
            bad_rows=bad_row_counts(bad),
            labels_per_site=options.labels_per_site if method == "pathological" else None,
            max_bad=options.max_bad,
            min_size=options.min_size,
            near_duplicates=near,
            num_left_out=len(index) - total,
            num_turns_left_out=bad.turns_left_out,
            phi=options.phi,
            phi_found=found,
            topics=options.num_topics if by_topic is not None else None,
            run={"created": utc_now(), "seconds": round(time.perf_counter() - started, 3)},
        )
        write_file(written / "split.json", record.to_bytes())
        if wrote_plan:
            write_file(workspace.plan_path, plan.to_bytes())
        written.rename(workspace.data)
    if total < len(index):
        say(f"{len(index) - total} of {len(index)} examples are in no set, as --sizes asks")
    workspace.log("split", num_examples=total, num_sites=len(options.names), seed=seed)
    return SplitResult(record, plan, wrote_plan)


def _method(options: SplitOptions, label_column: str | None) -> tuple[str, str | None]:
    by = options.by or ("dirichlet" if label_column else "iid")
    if by.startswith("column:") and len(by) > len("column:"):
        return "column", by.removeprefix("column:")
    if by == "column" or by not in partition.METHODS:
        known = ", ".join(method for method in partition.METHODS if method != "column")
        raise UsageError(f"--by: expected {known} or column:NAME, found {by!r}")
    return by, None


def _check(options: SplitOptions, method: str) -> None:
    """UsageError where options do not go together."""
    shares = options.shares.values()
    if not all(0 <= share < 1 for share in shares) or sum(shares) >= 1:
        raise UsageError("the shares of validation, coordinator and test must leave something to train on")
    if method != "column" and options.assign:
        raise UsageError("--assign goes with --by column:NAME")
    if options.sizes and method not in ("iid", "dirichlet"):
        why = "a column's values have the sizes they have" if method == "column" else "this method draws them"
        raise UsageError(f"--sizes goes with --by iid or dirichlet: {why}")
    for site in options.assign or ():
        if site not in options.names:
            raise UsageError(f"--assign names site {site!r}, which is not among {', '.join(options.names)}")
    if options.file_format == "parquet" and len(options.names) > split_files.MAX_PARQUET_SITES:
        raise UsageError(f"--format parquet is for at most {split_files.MAX_PARQUET_SITES} hospitals")


def _sites(
    names: Sequence[str], index: row_index.Index, division: partition.Partition, hits: row_index.Hits | None
) -> dict[str, SiteCounts]:
    site_of = np.where(division.places == partition.NOWHERE, -1, division.places // len(partition.SETS))
    pool = partition.histogram(index.label, site_of >= 0)
    sizes = np.bincount(division.places[site_of >= 0], minlength=len(names) * len(partition.SETS))
    result = {}
    for number, name in enumerate(names):
        chosen = site_of == number
        own = partition.histogram(index.label, chosen)
        train, validation, coordinator, test = sizes[number * 4 : number * 4 + 4].tolist()
        result[name] = SiteCounts(
            train=train,
            validation=validation,
            coordinator=coordinator,
            test=test,
            labels=_commonest(own, max(1, MAX_LABELS // len(names))),
            jensen_shannon=round(partition.jensen_shannon(own, pool), 6),
            phi=hits.by_kind(chosen) if hits is not None else {},
        )
    return result


def _commonest(labels: Mapping[str, int], most: int) -> dict[str, int]:
    """The labels, the rarest pooled as "other" where there are more than `most`: a record has a largest size."""
    kept = sorted(labels, key=lambda label: (-labels[label], label))[:most]
    pooled = {label: labels[label] for label in kept}
    rest = sum(labels.values()) - sum(pooled.values())
    if rest:
        pooled["other"] = pooled.get("other", 0) + rest
    return dict(sorted(pooled.items()))


def bad_row_counts(bad: BadRows) -> dict[str, BadRowCounts]:
    """What was skipped, for a record."""
    return {kind: BadRowCounts(count, tuple(bad.lines[kind])) for kind, count in sorted(bad.counts.items())}


def tell_bad(bad: BadRows, say: Say) -> None:
    """Say what was skipped."""
    if bad.total:
        say(f"{bad.total} of {bad.num_rows} rows are not valid examples and are skipped: {bad.summary}")
    if bad.turns_left_out:
        say(
            f"{bad.turns_left_out} turns of conversations are left out: an example is the first question and its answer"
        )


def tell_phi(mode: identifiers.Mode, found: Mapping[str, int], num_rows: int, total: int, say: Say) -> None:
    """Say what the scan found; InputError where it must block."""
    what = ", ".join(f"{number} {kind}" for kind, number in found.items())
    if found and mode == "block":
        raise InputError(
            f"{num_rows} of {total} examples hold what may identify a patient ({what}); nothing was written",
            hint="correct the data, replace what was found with --phi redact, or accept it with --phi warn",
        )
    verb = "replaced" if mode == "redact" else "found"
    if found:
        say(f"identifiers {verb} in {num_rows} of {total} examples: {what}; {identifiers.NOTICE}")
    elif mode in ("block", "redact"):
        say(f"no identifiers found in {total} examples; {identifiers.NOTICE}")


def default_names(count: int) -> tuple[str, ...]:
    """A, B, C, … for up to 26 hospitals, then H001, H002, …"""
    if count <= 26:
        return tuple(chr(ord("A") + i) for i in range(count))
    return tuple(f"H{i + 1:03d}" for i in range(count))
