"""Making sites out of one data set: partition, write, prove that nothing leaked."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedmed_cli import partition
from fedmed_cli.errors import ConflictError, InputError, UsageError
from fedmed_cli.examples import SITE_COLUMN, Dataset, Example, to_jsonl
from fedmed_cli.plans import PlanOptions, check_options, make_plan
from fedmed_cli.records import Plan, SiteCounts, SplitRecord
from fedmed_cli.workspace import Workspace, utc_now, write_file, write_folder

Say = Callable[[str], None]


@dataclass(frozen=True)
class SplitResult:
    """What `split` did, and the plan it wrote or found."""

    record: SplitRecord
    plan: Plan
    wrote_plan: bool


def split(
    workspace: Workspace,
    dataset: Dataset,
    plan_options: PlanOptions,
    *,
    names: tuple[str, ...],
    by: str | None,
    assign: Mapping[str, Sequence[str]] | None,
    alpha: float,
    sizes: tuple[int, ...] | None,
    label: str | None,
    group_by: str | None,
    shares: Mapping[str, float],
    limit: int | None,
    say: Say,
) -> SplitResult:
    """Divide `dataset` among the sites and write `data/` and, where there is none, the plan.

    `by` is "iid", "dirichlet" (over the label column) or "column:NAME". The caller holds the lock.
    """
    started = time.perf_counter()
    if workspace.data.exists():
        raise ConflictError(
            f"{workspace.data} exists already", hint="use another folder with --workspace; nothing was changed"
        )
    if not all(0 <= share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        raise UsageError("the shares of validation, coordinator and test must leave something to train on")
    method, column = _method(by, dataset.label_column)
    label = label or (column if method == "column" else dataset.label_column)
    if method == "dirichlet" and label is None:
        raise UsageError("--by dirichlet needs a label column", hint="name it with --label COLUMN")
    if method != "column" and assign:
        raise UsageError("--assign goes with --by column:NAME")
    if method == "column" and sizes:
        raise UsageError("--sizes goes with --by iid or dirichlet: a column's values have the sizes they have")
    for site in assign or ():
        if site not in names:
            raise UsageError(f"--assign names site {site!r}, which is not among {', '.join(names)}")
    group_by = group_by or dataset.group_column
    wrote_plan = not workspace.plan_path.exists()
    if wrote_plan:
        plan = make_plan(plan_options, names, None, say)
    else:
        plan = workspace.read_plan()
        check_options(plan_options, plan)
        if plan.sites.names != names:
            raise UsageError(f"the plan's sites are {', '.join(plan.sites.names)}, found {', '.join(names)}")
    division = partition.partition(
        dataset.examples,
        names,
        method,
        column=column,
        label_column=label,
        assign={value: site for site, values in (assign or {}).items() for value in values} or None,
        alpha=alpha,
        sizes=sizes,
        group_by=group_by,
        shares=shares,
        seed=plan.training.seed,
    )
    pool = partition.histogram(
        [row for sets in division.sets.values() for part in sets.values() for row in part], label
    )
    sites = {name: _counts(sets, label, pool) for name, sets in division.sets.items()}
    files: dict[str, bytes | memoryview] = {}
    for name, sets in division.sets.items():
        files[f"{name}/train.jsonl"] = to_jsonl(sets["train"])
        files[f"{name}/validation.jsonl"] = to_jsonl(sets["validation"])
    for part in ("coordinator", "test"):
        files[f"{part}.jsonl"] = b"".join(
            to_jsonl(sets[part], lambda example, name=name: {SITE_COLUMN: name})  # type: ignore[misc]
            for name, sets in division.sets.items()
        )
    total = sum(counts.total for counts in sites.values())
    staged = workspace.private / "split"
    shutil.rmtree(staged, ignore_errors=True)
    write_folder(staged, files)
    checks = partition.count_leaks(staged, names, group_by)
    if checks["rows"] != total or checks["texts_in_two_sets"] or checks["groups_in_two_sets"]:
        raise RuntimeError("the written sets are not disjoint")
    record = SplitRecord(
        source=dataset.source,  # type: ignore[arg-type]  # one of the three by construction
        source_digest=dataset.digest,
        method=method,  # type: ignore[arg-type]  # likewise
        column=column,
        label_column=label,
        group_by=group_by,
        alpha=alpha if method == "dirichlet" else None,
        seed=plan.training.seed,
        limit=limit,
        requested_sizes=sizes,
        shares=dict(shares),
        num_examples=total,
        num_groups=division.num_groups,
        num_moved=division.num_moved,
        checks=checks,
        sites=sites,
        run={"created": utc_now(), "seconds": round(time.perf_counter() - started, 3)},
    )
    write_file(staged / "split.json", record.to_bytes())
    if wrote_plan:
        write_file(workspace.plan_path, plan.to_bytes())
    staged.rename(workspace.data)
    if total < len(dataset.examples):
        say(f"{len(dataset.examples) - total} of {len(dataset.examples)} examples are in no set, as --sizes asks")
    workspace.log("split", num_examples=total, num_sites=len(names), seed=plan.training.seed)
    return SplitResult(record, plan, wrote_plan)


def _method(by: str | None, label_column: str | None) -> tuple[str, str | None]:
    by = by or ("dirichlet" if label_column else "iid")
    if by.startswith("column:") and len(by) > len("column:"):
        return "column", by.removeprefix("column:")
    if by not in ("iid", "dirichlet"):
        raise UsageError(f"--by: expected iid, dirichlet or column:NAME, found {by!r}")
    return by, None


def _counts(sets: Mapping[str, list[Example]], label: str | None, pool: Mapping[str, int]) -> SiteCounts:
    own = partition.histogram([row for part in sets.values() for row in part], label)
    if not sets["train"]:
        raise InputError("a site would have no training example")
    return SiteCounts(
        train=len(sets["train"]),
        validation=len(sets["validation"]),
        coordinator=len(sets["coordinator"]),
        test=len(sets["test"]),
        labels=own,
        jensen_shannon=round(partition.jensen_shannon(own, pool), 6),
    )


def default_names(count: int) -> tuple[str, ...]:
    """A, B, C, … for up to 26 hospitals, then H001, H002, …"""
    if count <= 26:
        return tuple(chr(ord("A") + i) for i in range(count))
    return tuple(f"H{i + 1:03d}" for i in range(count))
