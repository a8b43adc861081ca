"""Making sites out of one data set: two passes over the rows, and the proof that nothing leaked."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedmed_cli.data import disclosure, leak_check, row_index, screening, split_files, topics
from fedmed_cli.data import partition as partitioning
from fedmed_cli.data.composition import count_sites
from fedmed_cli.data.leakage_groups import merge
from fedmed_cli.data.partition import Partition
from fedmed_cli.data.row_index import Index
from fedmed_cli.data.sources import Source
from fedmed_cli.data.split_options import SplitOptions
from fedmed_cli.errors import ConflictError
from fedmed_cli.events import Say, StageProgress
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.split import NearDuplicates, SplitRecord
from fedmed_cli.workspace import Workspace, utc_now
from fedmed_cli.workspace.durable import private_files, write_file

MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class SplitResult:
    """What `split` did, and the plan it wrote or found."""

    record: SplitRecord
    plan: Plan
    wrote_plan: bool


@dataclass(frozen=True)
class _Written:
    """The sets on disk: their division, the index that it was made of, and what the check found."""

    folder: Path
    division: Partition
    index: Index
    checks: dict[str, int]
    near_duplicates: NearDuplicates | None


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
    if workspace.data.exists():
        raise ConflictError(
            f"{workspace.data} exists already", hint="use another folder with --workspace; nothing was changed"
        )
    options.check()
    if source.has_patients:
        option = "--by" if options.label == options.column else "--label"
        disclosure.check_not_group(option, options.label, options.group_by)
    seed = plan.training.seed
    wrote_plan = not workspace.plan_path.exists()
    with _make_staging(workspace) as staged, ThreadPoolExecutor(1) as pool:
        with private_files():
            source.fetch(staged / "hub")
            digest = pool.submit(source.digest)
            index = _read_index(source, options, seed, staged / "bands", say, progress)
            written = _write_disjoint_sets(staged, source, index, options, seed, say, progress)
            record = _make_record(source, digest.result(), options, seed, written, started)
            write_file(written.folder / "split.json", record.to_bytes())
        if wrote_plan:
            write_file(workspace.plan_path, plan.to_bytes())
        written.folder.rename(workspace.data)
    if record.num_left_out:
        say(f"{record.num_left_out} of {len(index)} examples are in no set, as --sizes asks")
    workspace.log("split", num_examples=record.num_examples, num_sites=len(options.names), seed=seed)
    return SplitResult(record, plan, wrote_plan)


@contextlib.contextmanager
def _make_staging(workspace: Workspace) -> Iterator[Path]:
    """A folder for what is not finished, empty at first and removed at the end."""
    staged = workspace.private / "split"
    shutil.rmtree(staged, ignore_errors=True)
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _read_index(
    source: Source, options: SplitOptions, seed: int, scratch: Path, say: Say, progress: StageProgress
) -> Index:
    """The first pass; where labels are needed and there are none, topics are learnt before."""
    by_topic = None
    if options.uses_topics:
        by_topic = topics.fit(source.batches(), options.num_topics, seed)
        say(f"no label column: {options.num_topics} topics of the texts are the labels (name a column with --label)")
    return row_index.build(
        source, options, seed, scratch, say, topics=by_topic, progress=lambda rows: progress("reading", rows, 0)
    )


def _write_disjoint_sets(
    staged: Path,
    source: Source,
    index: Index,
    options: SplitOptions,
    seed: int,
    say: Say,
    progress: StageProgress,
) -> _Written:
    """Divide, write and check; near-duplicates that the check finds in two sets are joined, and all is done again.

    RuntimeError where a text or a group is in two sets.
    """
    folder, similarity, names = staged / "data", options.near_duplicates, options.names
    num_rows = len(index)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        division = partitioning.partition(index, options, seed)
        split_files.write_sets(
            folder,
            screening.screen(source.batches(), options.phi),
            division.assignment,
            names,
            index.columns,
            options.file_format,
            progress=lambda rows: progress("writing", rows, num_rows),
        )
        source.check_unchanged()
        files = split_files.file_names(folder, names, options.file_format)
        near = None
        if similarity is None:
            break
        num_pairs, pairs = leak_check.find_near_leaks(folder, files, similarity, staged / "bands")
        if num_pairs >= leak_check.MAX_NEAR_PAIRS:
            say(f"the check for near-duplicates in two sets stopped at {num_pairs:,} pairs that look similar")
        near = NearDuplicates(similarity, index.num_near_duplicates, num_pairs, len(np.unique(pairs)))
        if not len(pairs) or attempt == MAX_ATTEMPTS:
            break
        say(f"near-duplicate pairs that the search missed and the check found: {len(pairs):,}; dividing again")
        first, second = split_files.written_rows(division.assignment, len(names))[pairs].T
        index = replace(
            index,
            group_of=merge(index.group_of, first, second),
            num_near_duplicates=index.num_near_duplicates + len(np.unique(pairs)),
        )
    checks = leak_check.count_leaks(folder, files, options.group_by)
    num_written = int(np.count_nonzero(division.assignment != partitioning.NOWHERE))
    if checks["rows"] != num_written or checks["texts_in_two_sets"] or checks["groups_in_two_sets"]:
        raise RuntimeError("the written sets are not disjoint")
    return _Written(folder, division, index, checks, near)


def _make_record(
    source: Source, source_digest: str, options: SplitOptions, seed: int, written: _Written, started: float
) -> SplitRecord:
    index = written.index
    sites = count_sites(options.names, index, written.division, source.has_patients)
    num_examples = sum(counts.total for counts in sites.values())
    return SplitRecord(
        source=source.kind,
        source_digest=source_digest,
        method=options.method,
        column=options.column,
        label_column=options.label,
        group_by=options.group_by,
        alpha=options.alpha if options.method in ("dirichlet", "quantity") else None,
        seed=seed,
        limit=source.limit,
        requested_sizes=options.sizes,
        shares=dict(options.shares),
        num_examples=num_examples,
        num_groups=written.division.num_groups,
        num_moved=written.division.num_moved,
        checks=written.checks,
        sites=sites,
        bad_rows=index.bad.to_record(),
        labels_per_site=options.labels_per_site if options.method == "pathological" else None,
        max_bad=options.max_bad,
        min_size=options.min_size,
        near_duplicates=written.near_duplicates,
        num_left_out=len(index) - num_examples,
        num_turns_left_out=index.bad.turns_left_out,
        phi=options.phi,
        phi_found=index.identifiers.by_kind(),
        topics=options.num_topics if options.uses_topics else None,
        run={"created": utc_now(), "seconds": round(time.perf_counter() - started, 3)},
    )
