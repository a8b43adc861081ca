"""A hospital's examples: what split made, or its own file, divided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedmed_cli.data import examples, identifiers, partition, row_index, split
from fedmed_cli.data.examples import Example
from fedmed_cli.data.near_duplicates import SIMILARITY, Sketches
from fedmed_cli.errors import ConflictError, InputError
from fedmed_cli.events import Say
from fedmed_cli.records.plan import Plan
from fedmed_cli.records.split import DivisionRecord, NearDuplicates
from fedmed_cli.workspace import DIVISION_NAME, Workspace, utc_now


@dataclass(frozen=True)
class SiteData:
    """A site's training and validation examples; `pending` is the folder data/SITE to write once the step succeeded."""

    train: list[Example]
    validation: list[Example]
    group_by: str | None
    pending: dict[str, bytes]


def workspace_data(workspace: Workspace, site: str) -> SiteData:
    """The examples that `split`, or an earlier `train-local --data`, put into the workspace."""
    folder = workspace.site_data(site)
    if examples.find_set(folder / "train.jsonl") is None:
        raise InputError(
            f"{workspace.relative(folder)}: holds no train.jsonl for site {site}",
            hint=f"give the hospital's own file with --data FILE, or copy the folder data/{site} here",
        )
    validation = folder / "validation.jsonl"
    return SiteData(
        examples.read_jsonl(folder / "train.jsonl"),
        examples.read_jsonl(validation) if examples.find_set(validation) else [],
        workspace.group_column(site),
        {},
    )


def file_data(
    workspace: Workspace,
    plan: Plan,
    site: str,
    dataset: examples.Dataset,
    group_by: str | None,
    say: Say,
    *,
    near_duplicates: float | None = SIMILARITY,
    phi_mode: identifiers.Mode = "warn",
) -> SiteData:
    """Divide a hospital's own file into train, validation and test; nothing is written yet.

    `say` is told what was skipped, which identifiers were found, and where no test example is left.
    ConflictError where the workspace holds data of this site that came from `split`; InputError where
    `phi_mode` is block and there are identifiers.
    """
    folder = workspace.site_data(site)
    if folder.exists() and not (folder / DIVISION_NAME).exists():
        raise ConflictError(
            f"{workspace.relative(folder)} holds the examples that 'fedmed split' made",
            hint="omit --data, or use another workspace",
        )
    split.tell_bad(dataset.bad, say)
    rows, found = _screened(dataset.examples, phi_mode, say)
    roots, near = _roots(rows, group_by, near_duplicates, workspace.private / "bands")
    chosen, num_groups = partition.divide_file(roots, [row.group(group_by) for row in rows], plan.training.seed)
    sets = {name: [rows[number] for number in numbers] for name, numbers in chosen.items()}
    for name in ("train", "validation"):
        if not sets[name]:
            raise InputError(f"--data: {num_groups} groups are too few: the {name} set would be empty")
    if not sets["test"]:
        say(f"--data: {num_groups} groups leave no test examples, so 'fedmed compare --site {site}' will have none")
    record = DivisionRecord(
        site=site,
        source_digest=dataset.digest,
        group_by=group_by,
        seed=plan.training.seed,
        train=len(sets["train"]),
        validation=len(sets["validation"]),
        test=len(sets["test"]),
        num_groups=num_groups,
        bad_rows=split.bad_row_counts(dataset.bad),
        near_duplicates=near,
        phi=phi_mode,
        phi_found=found,
        run={"created": utc_now()},
    )
    pending = {f"{name}.jsonl": examples.to_jsonl(members) for name, members in sets.items()}
    if _is_divided(folder, record, pending):
        pending = {}
    else:
        pending[DIVISION_NAME] = record.to_bytes()
    return SiteData(sets["train"], sets["validation"], group_by, pending)


def _screened(rows: list[Example], mode: identifiers.Mode, say: Say) -> tuple[list[Example], dict[str, int]]:
    """The examples as they are used, and how many identifiers of each kind the scan found."""
    if mode == "off":
        return rows, {}
    counts = [identifiers.count(row.question) + identifiers.count(row.answer) for row in rows]
    found = dict(sorted(sum(counts, Counter()).items()))
    split.tell_phi(mode, found, sum(map(bool, counts)), len(rows), say)
    if mode == "redact":
        rows = [
            replace(row, question=identifiers.redact(row.question), answer=identifiers.redact(row.answer))
            if count
            else row
            for row, count in zip(rows, counts, strict=True)
        ]
    return rows, found


def _roots(
    rows: Sequence[Example], group_by: str | None, similarity: float | None, scratch: Path
) -> tuple[partition.Ints, NearDuplicates | None]:
    """For each example the first one that it must stay with: by group, text or likeness."""
    if group_by is not None and not any(group_by in row.columns for row in rows):
        names = ", ".join(sorted({name[:40] for row in rows for name in row.columns})[:30]) or "no other column"
        raise InputError(f"the data have no column {group_by!r}, found {names}")
    texts = np.array([row_index.text_key(row.question, row.answer) for row in rows], dtype=np.uint64)
    groups = [row.columns.get(group_by) for row in rows] if group_by is not None else []
    keys = np.array([row_index.group_key(value) for value in groups], dtype=np.uint64) if groups else None
    roots = partition.roots_of(texts, keys, size=len(rows))
    if similarity is None:
        return roots, None
    sketches = Sketches(scratch)
    try:
        sketches.add([row.question for row in rows], [row.answer for row in rows])
        roots, alike = sketches.united(roots, similarity)
    finally:
        sketches.close()
    return roots, NearDuplicates(similarity, alike, 0, 0)


def _is_divided(folder: Path, record: DivisionRecord, files: dict[str, bytes]) -> bool:
    """Whether the folder already holds exactly this division."""
    if not folder.exists() or replace(DivisionRecord.read(folder / DIVISION_NAME), run=record.run) != record:
        return False
    return all((folder / name).exists() and (folder / name).read_bytes() == data for name, data in files.items())
